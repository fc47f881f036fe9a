package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
)

// otherAuthorities are those that vouch for nobody in the cluster; RSA keys take a while,
// so that the tests share them.
var otherAuthorities = sync.OnceValue(func() []*typesv1.CertAuthority {
	var out []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeDB, ca.TypeDBClient, ca.TypeJWT} {
		out = append(out, must(ca.Generate(keystore.Software(), cluster, typ, time.Now())))
	}
	return out
})

func newFullWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, cluster)
	w.cas = append(w.cas, otherAuthorities()...)
	w.load(t)
	return w
}

func parseAll(t *testing.T, ders [][]byte) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, der := range ders {
		out = append(out, must(x509.ParseCertificate(der)))
	}
	return out
}

func TestDatabaseClient(t *testing.T) {
	w := newFullWorld(t)
	for _, name := range []string{"alice", "alice@example.com", `o'hara "x", CN=postgres`, "ä"} {
		ders, err := w.signer.DatabaseClient(ca.DatabaseClientRequest{User: name, TLSKey: w.tlsDER, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		chain := parseAll(t, ders)
		cert := chain[0]
		if cert.Subject.CommonName != name || len(cert.Subject.Names) != 1 {
			t.Errorf("subject %q, want the common name %q alone", cert.Subject, name)
		}
		if len(chain) != 2 || !slices.ContainsFunc(w.trust.DatabaseClientCertificates(), chain[1].Equal) {
			t.Errorf("chain of %d certificates, want the authority second", len(chain))
		}
		if life := cert.NotAfter.Sub(w.now); life > time.Hour || life < time.Hour-time.Minute {
			t.Errorf("good for %s, want an hour", life)
		}
		if err := verifyBy(cert, w.trust.DatabaseClientCertificates(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Errorf("a database does not believe it: %v", err)
		}
		if err := verifyBy(cert, w.trust.DatabaseClientCertificates(), x509.ExtKeyUsageServerAuth); err == nil {
			t.Error("it is good for servers")
		}
		if id, err := w.trust.VerifyTLS(chain, w.now); err == nil {
			t.Errorf("the cluster takes it for %+v", id)
		}
	}
}

func verifyBy(cert *x509.Certificate, roots []*x509.Certificate, usage x509.ExtKeyUsage) error {
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestDatabaseServer(t *testing.T) {
	w := newFullWorld(t)
	key := must(keys.Generate(keys.RSA2048))
	ders, err := w.signer.DatabaseServer(ca.DatabaseServerRequest{
		Hosts: []string{"DB.example.com", "10.0.0.1", "::1", "*.db.example.com", "db.example.com"}, TLSKey: must(keys.PublicDER(key.Public())), TTL: 2190 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	cert := parseAll(t, ders)[0]
	if cert.Subject.CommonName != "DB.example.com" || !slices.Equal(cert.Subject.Organization, []string{cluster}) {
		t.Errorf("subject %q", cert.Subject)
	}
	if !slices.Equal(cert.DNSNames, []string{"db.example.com", "*.db.example.com"}) || len(cert.IPAddresses) != 2 {
		t.Errorf("names %v %v", cert.DNSNames, cert.IPAddresses)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verifyBy(cert, w.trust.DatabaseCertificates(), usage); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	if verifyBy(cert, w.trust.DatabaseClientCertificates(), x509.ExtKeyUsageClientAuth) == nil {
		t.Error("a database server can log in to others as a client")
	}
	for _, name := range []string{"db.example.com", "a.db.example.com", "10.0.0.1", "::1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if id, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now); err == nil {
		t.Errorf("the cluster takes it for %+v", id)
	}
	believed(t, tls.Certificate{Certificate: ders, PrivateKey: key}, w.trust.DatabaseCertificates())
}

// believed has a client of the standard library believe the server.
func believed(t *testing.T, cert tls.Certificate, roots []*x509.Certificate) {
	t.Helper()
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake() }()
	if err := tls.Client(b, &tls.Config{RootCAs: pool, ServerName: "db.example.com"}).Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDatabaseRequestsThatAreRefused(t *testing.T) {
	w := newFullWorld(t)
	bare := newWorld(t, cluster)
	own := must(keys.PublicDER(w.trust.DatabaseCertificates()[0].PublicKey))
	jwtKey := must(keys.PublicDER(jwtPublic(t)))
	client := func(s *ca.Signer, user string, key []byte, ttl time.Duration) func() error {
		return func() error {
			_, err := s.DatabaseClient(ca.DatabaseClientRequest{User: user, TLSKey: key, TTL: ttl})
			return err
		}
	}
	server := func(s *ca.Signer, key []byte, ttl time.Duration, hosts ...string) func() error {
		return func() error {
			_, err := s.DatabaseServer(ca.DatabaseServerRequest{Hosts: hosts, TLSKey: key, TTL: ttl})
			return err
		}
	}
	for name, tt := range map[string]struct {
		do   func() error
		want error
	}{
		"client_no_user":   {client(w.signer, "", w.tlsDER, time.Hour), fault.ErrInvalid},
		"client_newline":   {client(w.signer, "a\nb", w.tlsDER, time.Hour), fault.ErrInvalid},
		"client_nul":       {client(w.signer, "a\x00b", w.tlsDER, time.Hour), fault.ErrInvalid},
		"client_no_ttl":    {client(w.signer, "a", w.tlsDER, 0), fault.ErrInvalid},
		"client_long":      {client(w.signer, "a", w.tlsDER, ca.MaxDatabaseClientTTL+1), fault.ErrInvalid},
		"client_no_key":    {client(w.signer, "a", nil, time.Hour), fault.ErrInvalid},
		"client_own_key":   {client(w.signer, "a", own, time.Hour), fault.ErrDenied},
		"client_jwt_key":   {client(w.signer, "a", jwtKey, time.Hour), fault.ErrDenied},
		"client_no_ca":     {client(bare.signer, "a", w.tlsDER, time.Hour), fault.ErrUnsupported},
		"server_no_host":   {server(w.signer, w.tlsDER, time.Hour), fault.ErrInvalid},
		"server_newline":   {server(w.signer, w.tlsDER, time.Hour, "a\nb"), fault.ErrInvalid},
		"server_star":      {server(w.signer, w.tlsDER, time.Hour, "*"), fault.ErrInvalid},
		"server_two_stars": {server(w.signer, w.tlsDER, time.Hour, "*.*.a"), fault.ErrInvalid},
		"server_reserved":  {server(w.signer, w.tlsDER, time.Hour, "auth.teleport.cluster.local"), fault.ErrDenied},
		"server_many":      {server(w.signer, w.tlsDER, time.Hour, strings.Split(strings.Repeat("a,", 65), ",")...), fault.ErrInvalid},
		"server_long":      {server(w.signer, w.tlsDER, ca.MaxDatabaseServerTTL+1, "a"), fault.ErrInvalid},
		"server_own_key":   {server(w.signer, own, time.Hour, "a"), fault.ErrDenied},
		"server_no_ca":     {server(bare.signer, w.tlsDER, time.Hour, "a"), fault.ErrUnsupported},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// TestDatabaseAuthoritiesVouchForNobody has a thief of their keys write whatever identity.
func TestDatabaseAuthoritiesVouchForNobody(t *testing.T) {
	w := newFullWorld(t)
	for _, c := range otherAuthorities() {
		pairs := c.GetSpec().GetActiveKeys().GetTls()
		if len(pairs) == 0 {
			continue
		}
		parent := parsePEM(t, pairs[0].GetCert())
		key := must(keys.ParsePrivate(pairs[0].GetPrivateKey()))
		for _, id := range []identity.Identity{w.userRequest().Identity, w.hostRequest("").Identity} {
			template := &x509.Certificate{NotBefore: w.now.Add(-time.Minute), NotAfter: w.now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
			if err := id.EncodeTLS(template); err != nil {
				t.Fatal(err)
			}
			cert := forge(t, template, parent, w.tls.Public(), key)
			for _, chain := range [][]*x509.Certificate{{cert}, {cert, parent}} {
				if got, err := w.trust.VerifyTLS(chain, w.now); err == nil {
					t.Errorf("the %s authority vouches for %+v", c.GetSpec().GetType(), got)
				}
			}
		}
	}
	twice := slices.Clone(w.cas)
	for _, c := range twice {
		if c.GetSpec().GetType() == ca.TypeDB {
			broken := ca.Public(c)
			broken.Metadata.Name, broken.Spec.Type = ca.TypeDBClient, ca.TypeDBClient
			twice = slices.DeleteFunc(twice, func(o *typesv1.CertAuthority) bool { return o.GetSpec().GetType() == ca.TypeDBClient })
			twice = append(twice, broken)
			break
		}
	}
	if _, err := ca.NewTrust(twice); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("NewTrust with one key for servers and clients = %v, want ErrInvalid", err)
	}
}

func TestRevocationList(t *testing.T) {
	w := newFullWorld(t)
	for typ, authority := range map[string]*x509.Certificate{
		ca.TypeDB: w.trust.DatabaseCertificates()[0], ca.TypeDBClient: w.trust.DatabaseClientCertificates()[0], ca.TypeHost: w.trust.HostCertificates()[0],
	} {
		list, err := x509.ParseRevocationList(must(w.signer.RevocationList(typ)))
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(authority); err != nil || len(list.RevokedCertificateEntries) != 0 || !list.NextUpdate.After(w.now.Add(24*time.Hour)) {
			t.Errorf("%s: %v, next update %s", typ, err, list.NextUpdate)
		}
	}
	for _, typ := range []string{"", "jwt", "openssh", "saml"} {
		if _, err := w.signer.RevocationList(typ); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("RevocationList(%q) = %v, want ErrInvalid", typ, err)
		}
	}
	if _, err := newWorld(t, cluster).signer.RevocationList(ca.TypeDB); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("without the authority: %v, want ErrUnsupported", err)
	}
}

func jwtPublic(t *testing.T) *ecdsa.PublicKey {
	t.Helper()
	block, _ := pem.Decode([]byte(otherAuthorities()[2].GetSpec().GetActiveKeys().GetJwt()[0].GetPublicKey()))
	return must(x509.ParsePKIXPublicKey(block.Bytes)).(*ecdsa.PublicKey)
}

// TestSignToken has another implementation read the token, and find its key by the id.
func TestSignToken(t *testing.T) {
	w := newFullWorld(t)
	public := jose.JSONWebKey{Key: jwtPublic(t)}
	for range 300 { // numbers with leading zeros among them
		text, err := w.signer.SignToken(map[string]any{"sub": "alice", "roles": []string{"a", "<b>"}})
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			Sub   string   `json:"sub"`
			Roles []string `json:"roles"`
		}
		if err := token.Claims(public.Key, &claims); err != nil || claims.Sub != "alice" || !slices.Equal(claims.Roles, []string{"a", "<b>"}) {
			t.Fatalf("claims %+v, %v", claims, err)
		}
		if id := base64.RawURLEncoding.EncodeToString(must(public.Thumbprint(crypto.SHA256))); token.Headers[0].KeyID != id {
			t.Fatalf("key id %q, want %q", token.Headers[0].KeyID, id)
		}
	}
	if _, err := newWorld(t, cluster).signer.SignToken(nil); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("without the authority: %v, want ErrUnsupported", err)
	}
}

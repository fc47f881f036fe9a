package ca_test

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

func TestGenerate(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	var all []*typesv1.CertAuthority
	t.Run("types", func(t *testing.T) {
		for _, typ := range ca.Types() {
			t.Run(typ, func(t *testing.T) {
				t.Parallel()
				c, err := ca.Generate(keystore.Software(), cluster, typ, now)
				if err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
				if c.GetKind() != types.KindCertAuthority || c.GetMetadata().GetName() != typ || c.GetSpec().GetType() != typ {
					t.Errorf("Generate(%q) = %v", typ, c)
				}
				active := c.GetSpec().GetActiveKeys()
				for _, pair := range active.GetTls() {
					checkAuthorityCert(t, parsePEM(t, pair.GetCert()), now)
				}
				got := []int{len(active.GetSsh()), len(active.GetTls()), len(active.GetJwt())}
				want := map[string][]int{
					"host": {1, 1, 0}, "user": {1, 1, 0}, "db": {0, 1, 0}, "db_client": {0, 1, 0}, "openssh": {1, 0, 0}, "jwt": {0, 0, 1},
				}[typ]
				if !slices.Equal(got, want) {
					t.Errorf("keys ssh, tls, jwt = %v, want %v", got, want)
				}
			})
		}
	})
	if _, err := ca.NewTrust(all); err != nil {
		t.Errorf("NewTrust of all types = %v", err)
	}
	for _, c := range all {
		public := ca.Public(c)
		if strings.Contains(public.String(), "PRIVATE") || !strings.Contains(c.String(), "PRIVATE") {
			t.Errorf("Public(%s) has a private key, or the original lost it", c.GetSpec().GetType())
		}
	}
	for _, bad := range []struct{ name, cluster, typ string }{{"type", cluster, "root"}, {"cluster", "a b", ca.TypeHost}, {"no_cluster", "", ca.TypeHost}} {
		if _, err := ca.Generate(keystore.Software(), bad.cluster, bad.typ, now); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Generate with bad %s = %v, want ErrInvalid", bad.name, err)
		}
	}
}

func checkAuthorityCert(t *testing.T, cert *x509.Certificate, now time.Time) {
	t.Helper()
	if !cert.IsCA || !cert.MaxPathLenZero || cert.MaxPathLen != 0 || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("CA %v, path length %d, usage %v", cert.IsCA, cert.MaxPathLen, cert.KeyUsage)
	}
	if d := cert.NotAfter.Sub(now); d < 3649*24*time.Hour || d > 3651*24*time.Hour || !cert.NotBefore.Before(now) {
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	if cert.Subject.Organization[0] != cluster || !strings.HasPrefix(cert.Subject.CommonName, cluster+" ") {
		t.Errorf("subject %s", cert.Subject)
	}
}

func TestHost(t *testing.T) {
	w := newWorld(t, cluster)
	base := []string{hostID + ".example.com", hostID, "web1", "web1.example.com", "proxy.example.net"}
	for _, tc := range []struct {
		name    string
		service types.SystemRole
		dns     []string
	}{
		{"process", "", base},
		{"proxy", types.RoleProxy, append(slices.Clone(base), "proxy.teleport.cluster.local", "*.proxy.example.net")},
		{"auth", types.RoleAuth, append(slices.Clone(base), "auth.teleport.cluster.local")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cert, sshCert := w.host(t, tc.service, nil)
			if d := cmp.Diff(tc.dns, cert.DNSNames); d != "" {
				t.Errorf("DNS names (-want +got):\n%s", d)
			}
			if len(cert.IPAddresses) != 2 || cert.IPAddresses[0].String() != "10.1.2.3" || cert.IPAddresses[1].String() != "::1" {
				t.Errorf("addresses = %v", cert.IPAddresses)
			}
			// A name that was asked for is no SSH principal: it may be another server's.
			own := slices.DeleteFunc(slices.Clone(tc.dns), func(n string) bool { return strings.HasSuffix(n, "proxy.example.net") })
			if d := cmp.Diff(own, sshCert.ValidPrincipals); d != "" {
				t.Errorf("SSH principals (-want +got):\n%s", d)
			}
			if life := cert.NotAfter.Sub(w.now); life > ca.MaxHostTTL || life < ca.MaxHostTTL-2*time.Second || w.now.Sub(cert.NotBefore) < 59*time.Second {
				t.Errorf("valid from %s to %s, now %s", cert.NotBefore, cert.NotAfter, w.now)
			}
			id, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now)
			if err != nil {
				t.Fatal(err)
			}
			if id.Host.ID != hostID || id.Host.Service != tc.service || id.Host.Generation != 1 || id.Expires != cert.NotAfter {
				t.Errorf("VerifyTLS = %+v", id.Host)
			}
			if _, err := w.trust.VerifySSHHost(sshCert, "WEB1", w.now); err != nil {
				t.Errorf("VerifySSHHost(WEB1) = %v", err)
			}
		})
	}
	der, wire, err := w.signer.Host(func() ca.HostRequest { r := w.hostRequest(""); r.SSHKey = nil; return r }())
	if err != nil || der == nil || wire != nil {
		t.Errorf("Host without SSH key = %d bytes, %d bytes, %v", len(der), len(wire), err)
	}
}

func TestHostRefuses(t *testing.T) {
	w := newWorld(t, cluster)
	const other = "11111111-2222-4333-8444-555555555555"
	hostTLS := parsePEM(t, w.cas[0].GetSpec().GetActiveKeys().GetTls()[0].GetCert())
	for name, change := range map[string]func(*ca.HostRequest){
		"user":             func(r *ca.HostRequest) { r.Identity = w.userRequest().Identity },
		"nobody":           func(r *ca.HostRequest) { r.Identity.Host = nil },
		"other_cluster":    func(r *ca.HostRequest) { r.Identity.Cluster = "evil.com" },
		"too_long":         func(r *ca.HostRequest) { r.TTL = ca.MaxHostTTL + 1 },
		"negative":         func(r *ca.HostRequest) { r.TTL = -1 },
		"no_tls_key":       func(r *ca.HostRequest) { r.TLSKey = nil },
		"bad_tls_key":      func(r *ca.HostRequest) { r.TLSKey = []byte("x") },
		"bad_ssh_key":      func(r *ca.HostRequest) { r.SSHKey = []byte("x") },
		"empty_ssh_key":    func(r *ca.HostRequest) { r.SSHKey = []byte{} },
		"authority_key":    func(r *ca.HostRequest) { r.TLSKey = hostTLS.RawSubjectPublicKeyInfo },
		"authority_ssh":    func(r *ca.HostRequest) { r.SSHKey = authorityKey(t, w.cas[1]).Marshal() },
		"service_name":     func(r *ca.HostRequest) { r.Principals = []string{"auth.teleport.cluster.local"} },
		"service_case":     func(r *ca.HostRequest) { r.Principals = []string{"Auth.Teleport.Cluster.LOCAL"} },
		"comma":            func(r *ca.HostRequest) { r.Principals = []string{"a,b"} },
		"wildcard":         func(r *ca.HostRequest) { r.Principals = []string{"*.example.com"} },
		"empty_name":       func(r *ca.HostRequest) { r.Principals = []string{""} },
		"newline":          func(r *ca.HostRequest) { r.Principals = []string{"a\nb"} },
		"unspecified":      func(r *ca.HostRequest) { r.Principals = []string{"0.0.0.0"} },
		"zone":             func(r *ca.HostRequest) { r.Principals = []string{"fe80::1%eth0"} },
		"other_host":       func(r *ca.HostRequest) { r.Principals = []string{other} },
		"other_host_full":  func(r *ca.HostRequest) { r.Principals = []string{other + ".example.com"} },
		"named_like_other": func(r *ca.HostRequest) { r.Identity.Host.Name = other },
		"many":             func(r *ca.HostRequest) { r.Principals = make([]string, 65) },
	} {
		t.Run(name, func(t *testing.T) {
			req := w.hostRequest("")
			change(&req)
			der, wire, err := w.signer.Host(req)
			if fault.Kind(err) == nil || der != nil || wire != nil {
				t.Errorf("Host = %d bytes, %d bytes, %v; want nothing and a fault", len(der), len(wire), err)
			}
		})
	}
}

func TestUser(t *testing.T) {
	w := newWorld(t, cluster)
	cert, sshCert := w.user(t, func(r *ca.UserRequest) { r.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	id, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now)
	if err != nil {
		t.Fatal(err)
	}
	want := w.userRequest().Identity.User
	if d := cmp.Diff(want, id.User); d != "" {
		t.Errorf("VerifyTLS (-want +got):\n%s", d)
	}
	if len(cert.DNSNames)+len(cert.IPAddresses) != 0 || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("names %v %v, usage %v", cert.DNSNames, cert.IPAddresses, cert.ExtKeyUsage)
	}
	if sshCert.KeyId != "alice" || !slices.Equal(sshCert.ValidPrincipals, want.Logins) {
		t.Errorf("key id %q, principals %v", sshCert.KeyId, sshCert.ValidPrincipals)
	}
	_, pty := sshCert.Extensions["permit-pty"]
	_, ports := sshCert.Extensions["permit-port-forwarding"]
	_, agent := sshCert.Extensions["permit-agent-forwarding"]
	if !pty || !ports || agent {
		t.Errorf("extensions = %v", sshCert.Extensions)
	}
	if d := cmp.Diff(map[string]string{"source-address": "10.0.0.0/8"}, sshCert.CriticalOptions); d != "" {
		t.Errorf("critical options (-want +got):\n%s", d)
	}

	_, sshCert = w.user(t, func(r *ca.UserRequest) { r.Identity.User.Logins, r.NoLogins = nil, true })
	if sshCert != nil {
		t.Error("a user without logins got an SSH certificate")
	}
}

// TestRoutedUser: a certificate for one resource is TLS only.
func TestRoutedUser(t *testing.T) {
	w := newWorld(t, cluster)
	for name, change := range map[string]func(*identity.User){
		"app": func(u *identity.User) { u.App = &identity.AppRoute{Name: "grafana", SessionID: "s-1"} },
		"db": func(u *identity.User) {
			u.Database = &identity.DatabaseRoute{Service: "pg", Protocol: "postgres", User: "alice", Roles: []string{}}
		},
	} {
		cert, sshCert := w.user(t, func(r *ca.UserRequest) {
			r.Identity.User.Logins, r.NoLogins = nil, true
			change(r.Identity.User)
		})
		if sshCert != nil {
			t.Errorf("%s: an SSH certificate was made", name)
		}
		if id, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now); err != nil || !id.User.Routed() {
			t.Errorf("%s: VerifyTLS = %+v, %v", name, id, err)
		}
		req := w.userRequest()
		change(req.Identity.User)
		if _, _, err := w.signer.User(req); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: with logins: %v, want ErrInvalid", name, err)
		}
	}
}

func TestUserRefuses(t *testing.T) {
	w := newWorld(t, cluster)
	for name, change := range map[string]func(*ca.UserRequest){
		"host":            func(r *ca.UserRequest) { r.Identity = w.hostRequest("").Identity },
		"other_cluster":   func(r *ca.UserRequest) { r.Identity.Cluster = "evil.com" },
		"no_ttl":          func(r *ca.UserRequest) { r.TTL = 0 },
		"negative":        func(r *ca.UserRequest) { r.TTL = -time.Hour },
		"no_logins":       func(r *ca.UserRequest) { r.Identity.User.Logins = nil },
		"logins_denied":   func(r *ca.UserRequest) { r.NoLogins = true },
		"comma":           func(r *ca.UserRequest) { r.Identity.User.Logins = []string{"deploy,root"} },
		"empty_principal": func(r *ca.UserRequest) { r.Identity.User.Logins = []string{""} },
		"no_tls_key":      func(r *ca.UserRequest) { r.TLSKey = nil },
		"authority_key":   func(r *ca.UserRequest) { r.SSHKey = authorityKey(t, w.cas[0]).Marshal() },
		"certificate_key": func(r *ca.UserRequest) { _, c := w.host(t, "", nil); r.SSHKey = c.Marshal() },
		"source_host_bit": func(r *ca.UserRequest) { r.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} },
		"source_invalid":  func(r *ca.UserRequest) { r.Sources = []netip.Prefix{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			req := w.userRequest()
			change(&req)
			der, wire, err := w.signer.User(req)
			if fault.Kind(err) == nil || der != nil || wire != nil {
				t.Errorf("User = %d bytes, %d bytes, %v; want nothing and a fault", len(der), len(wire), err)
			}
		})
	}
}

func TestValidityStaysWithinAuthority(t *testing.T) {
	w := newWorld(t, cluster)
	authority := parsePEM(t, w.cas[1].GetSpec().GetActiveKeys().GetTls()[0].GetCert())
	cert, _ := w.user(t, func(r *ca.UserRequest) { r.TTL = 100 * 365 * 24 * time.Hour })
	if cert.NotAfter != authority.NotAfter {
		t.Errorf("certificate is valid until %s, its authority until %s", cert.NotAfter, authority.NotAfter)
	}
	for name, now := range map[string]time.Time{"after": authority.NotAfter.Add(time.Second), "before": authority.NotBefore.Add(-2 * time.Hour)} {
		w.now = now
		if _, _, err := w.signer.User(w.userRequest()); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "clock") {
			t.Errorf("User %s the authority's time = %v, want ErrInvalid that mentions the clock", name, err)
		}
	}
}

func TestSignAsHostCA(t *testing.T) {
	w, other := newWorld(t, cluster), newWorld(t, cluster)
	digest := sha256.Sum256([]byte("transcript"))
	sig, err := w.signer.SignAsHostCA(digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.trust.VerifyHostSignature(digest, sig); err != nil {
		t.Errorf("VerifyHostSignature = %v", err)
	}
	if err := other.trust.VerifyHostSignature(digest, sig); !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("VerifyHostSignature of another cluster = %v, want ErrUnauthenticated", err)
	}
	for name, s := range map[string][][]byte{
		"none": nil, "empty": {nil}, "garbage": {[]byte("x")}, "trailing": {append(slices.Clone(sig[0]), 0)},
		"behind a crowd": append(slices.Repeat([][]byte{{0}}, 100), sig[0]),
	} {
		if err := w.trust.VerifyHostSignature(digest, s); !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("VerifyHostSignature(%s) = %v, want ErrUnauthenticated", name, err)
		}
	}
}

func TestNewSignerAndTrustRefuse(t *testing.T) {
	w, other := newWorld(t, cluster), newWorld(t, cluster)
	foreign := newWorld(t, "evil.com")
	leaf, _ := w.host(t, types.RoleAuth, nil)
	change := func(f func(host, user *typesv1.CertAuthority)) []*typesv1.CertAuthority {
		host, user := proto.CloneOf(w.cas[0]), proto.CloneOf(w.cas[1])
		f(host, user)
		return []*typesv1.CertAuthority{host, user}
	}
	tlsOf := func(c *typesv1.CertAuthority) *typesv1.TlsKeyPair { return c.GetSpec().GetActiveKeys().GetTls()[0] }
	sshOf := func(c *typesv1.CertAuthority) *typesv1.SshKeyPair { return c.GetSpec().GetActiveKeys().GetSsh()[0] }
	for _, tc := range []struct {
		name          string
		cas           []*typesv1.CertAuthority
		signer, trust bool
	}{
		{"none", nil, true, true},
		{"host_only", w.cas[:1], true, true},
		{"twice", append(slices.Clone(w.cas), w.cas[0]), true, true},
		{"nil", []*typesv1.CertAuthority{nil, nil}, true, true},
		{"two_clusters", []*typesv1.CertAuthority{w.cas[0], foreign.cas[1]}, true, true},
		{"unknown_type", change(func(h, _ *typesv1.CertAuthority) { h.Spec.Type = "root" }), true, true},
		{"no_private", []*typesv1.CertAuthority{ca.Public(w.cas[0]), ca.Public(w.cas[1])}, true, false},
		{"other_private", change(func(h, _ *typesv1.CertAuthority) { tlsOf(h).PrivateKey = tlsOf(other.cas[0]).GetPrivateKey() }), true, false},
		{"other_ssh_private", change(func(h, _ *typesv1.CertAuthority) { sshOf(h).PrivateKey = sshOf(other.cas[0]).GetPrivateKey() }), true, false},
		{"leaf_as_authority", change(func(h, _ *typesv1.CertAuthority) { tlsOf(h).Cert = pemOf(leaf) }), true, true},
		{"other_cluster_cert", change(func(h, _ *typesv1.CertAuthority) { tlsOf(h).Cert = tlsOf(foreign.cas[0]).GetCert() }), true, true},
		{"two_certs", change(func(h, _ *typesv1.CertAuthority) { tlsOf(h).Cert += tlsOf(other.cas[0]).GetCert() }), true, true},
		{"no_cert", change(func(h, _ *typesv1.CertAuthority) { tlsOf(h).Cert = "" }), true, true},
		{"certificate_as_key", change(func(h, _ *typesv1.CertAuthority) {
			_, c := w.host(t, "", nil)
			sshOf(h).PublicKey = string(ssh.MarshalAuthorizedKey(c))
		}), true, true},
		{"key_with_options", change(func(h, _ *typesv1.CertAuthority) { sshOf(h).PublicKey = "cert-authority " + sshOf(h).GetPublicKey() }), true, true},
		{"two_keys", change(func(h, u *typesv1.CertAuthority) { sshOf(h).PublicKey += "\n" + sshOf(u).GetPublicKey() }), true, true},
		{"same_ssh_key", change(func(h, u *typesv1.CertAuthority) { sshOf(u).PublicKey = sshOf(h).GetPublicKey() }), true, true},
		{"same_tls_key", change(func(h, u *typesv1.CertAuthority) { tlsOf(u).Cert = tlsOf(h).GetCert() }), true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ca.NewSigner(keystore.Software(), tc.cas, time.Now); (fault.Kind(err) != nil) != tc.signer {
				t.Errorf("NewSigner = %v, want a fault: %v", err, tc.signer)
			}
			if _, err := ca.NewTrust(tc.cas); (fault.Kind(err) != nil) != tc.trust {
				t.Errorf("NewTrust = %v, want a fault: %v", err, tc.trust)
			}
		})
	}
	if _, err := ca.NewSigner(nil, w.cas, time.Now); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("NewSigner without keystore = %v, want ErrInvalid", err)
	}
}

func TestTrustKeepsNoPrivateKeys(t *testing.T) {
	w := newWorld(t, cluster)
	for _, c := range w.trust.Authorities() {
		if strings.Contains(c.String(), "PRIVATE") {
			t.Errorf("Authorities has the private key of %s", c.GetSpec().GetType())
		}
	}
}

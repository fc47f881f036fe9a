// Package oidcfake is an OpenID Connect issuer for tests: a discovery document, a key
// set and tokens with whatever claims a test wants, and a metadata service of Google
// Compute Engine on top of it. It signs for real, with code of its own, so that the
// verifier is not tested by itself.
package oidcfake

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Issuer is one issuer. Its fields may be changed until it is asked.
type Issuer struct {
	// URL is the iss of its tokens.
	URL string
	// Document, if set, changes the discovery document before it is sent.
	Document func(map[string]any)
	// KeySet, if set, replaces the answer to a request for the keys.
	KeySet func(w http.ResponseWriter, r *http.Request)
	// Algorithm of the next key: RS256 (the default), ES256, EdDSA and so on.
	Algorithm string

	mu       sync.Mutex
	keys     []*Key
	requests map[string]int
	down     bool
}

// Key is a key of the issuer.
type Key struct {
	ID, Algorithm string
	Private       crypto.Signer
}

// New returns an issuer with one key.
func New(t testing.TB, issuer, algorithm string) *Issuer {
	t.Helper()
	i := &Issuer{URL: issuer, Algorithm: algorithm, requests: map[string]int{}}
	i.Rotate(t)
	return i
}

// Rotate gives the issuer a new key, published as the only one.
func (i *Issuer) Rotate(t testing.TB) {
	t.Helper()
	key := NewKey(t, i.Algorithm)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []*Key{key}
}

// Publish sets the keys that are published; the first of them signs.
func (i *Issuer) Publish(keys ...*Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

// Key returns the key that signs.
func (i *Issuer) Key() *Key {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[0]
}

// SetDown makes the issuer answer with status 503, or again as it should.
func (i *Issuer) SetDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Requests returns how many requests came, for the document and for the keys.
func (i *Issuer) Requests() (document, keys int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests["document"], i.requests["keys"]
}

func (i *Issuer) count(what string) (down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.requests[what]++
	return i.down
}

// ServeHTTP answers requests for the discovery document and the keys.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u, err := url.Parse(i.URL)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	base := strings.TrimSuffix(u.Path, "/")
	switch r.URL.Path {
	case base + "/.well-known/openid-configuration":
		if i.count("document") {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		doc := map[string]any{
			"issuer": i.URL, "jwks_uri": strings.TrimSuffix(i.URL, "/") + "/jwks",
			"id_token_signing_alg_values_supported": []string{i.Key().Algorithm},
		}
		if i.Document != nil {
			i.Document(doc)
		}
		writeJSON(w, doc)
	case base + "/jwks":
		if i.count("keys") {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		if i.KeySet != nil {
			i.KeySet(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, i.JWKS())
	default:
		http.NotFound(w, r)
	}
}

// JWKS returns the key set.
func (i *Issuer) JWKS() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return Set(i.keys...)
}

// Set returns a key set of keys.
func Set(keys ...*Key) string {
	list := []any{}
	for _, k := range keys {
		list = append(list, k.Public())
	}
	b, _ := json.Marshal(map[string]any{"keys": list})
	return string(b)
}

// Mint signs claims with the issuer's key. What is missing of iss, iat and exp is
// filled in, for now and five minutes; a claim that is nil is left out.
func (i *Issuer) Mint(now time.Time, claims map[string]any) string {
	all := map[string]any{"iss": i.URL, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
	for name, v := range claims {
		all[name] = v
		if v == nil {
			delete(all, name)
		}
	}
	payload, _ := json.Marshal(all)
	return i.Key().Sign(nil, payload)
}

// NewKey makes a key for an algorithm.
func NewKey(t testing.TB, algorithm string) *Key {
	t.Helper()
	if algorithm == "" {
		algorithm = "RS256"
	}
	var private crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Key{ID: rand.Text()[:12], Algorithm: algorithm, Private: private}
}

// Public returns the key as a member of a key set.
func (k *Key) Public() map[string]any {
	out := map[string]any{"use": "sig", "alg": k.Algorithm}
	if k.ID != "" {
		out["kid"] = k.ID
	}
	switch p := k.Private.Public().(type) {
	case *rsa.PublicKey:
		out["kty"], out["n"], out["e"] = "RSA", encode(p.N.Bytes()), encode(big.NewInt(int64(p.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			return nil
		}
		half := (len(point) - 1) / 2
		out["kty"], out["crv"], out["x"], out["y"] = "EC", p.Params().Name, encode(point[1:1+half]), encode(point[1+half:])
	case ed25519.PublicKey:
		out["kty"], out["crv"], out["x"] = "OKP", "Ed25519", encode(p)
	}
	return out
}

// Sign makes a token of a payload. header replaces fields of the header; a field that
// is nil is left out.
func (k *Key) Sign(header map[string]any, payload []byte) string {
	h := map[string]any{"alg": k.Algorithm, "typ": "JWT"}
	if k.ID != "" {
		h["kid"] = k.ID
	}
	for name, v := range header {
		h[name] = v
		if v == nil {
			delete(h, name)
		}
	}
	b, _ := json.Marshal(h)
	signed := encode(b) + "." + encode(payload)
	return signed + "." + encode(k.signature([]byte(signed)))
}

// SignRaw is Sign with a header that is sent as it is.
func (k *Key) SignRaw(header string, payload []byte) string {
	signed := encode([]byte(header)) + "." + encode(payload)
	return signed + "." + encode(k.signature([]byte(signed)))
}

func (k *Key) signature(message []byte) []byte {
	if ed, ok := k.Private.(ed25519.PrivateKey); ok {
		return ed25519.Sign(ed, message)
	}
	var h hash.Hash
	var id crypto.Hash
	switch {
	case strings.HasSuffix(k.Algorithm, "384"):
		h, id = sha512.New384(), crypto.SHA384
	case strings.HasSuffix(k.Algorithm, "512"):
		h, id = sha512.New(), crypto.SHA512
	default:
		h, id = sha256.New(), crypto.SHA256
	}
	h.Write(message)
	digest := h.Sum(nil)
	switch private := k.Private.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, digest)
		if err != nil {
			return nil
		}
		size := (private.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		var opts crypto.SignerOpts = id
		if strings.HasPrefix(k.Algorithm, "PS") {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: id}
		}
		out, err := private.Sign(rand.Reader, digest, opts)
		if err != nil {
			return nil
		}
		return out
	}
	return nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Server serves handlers by host name over TLS, under an authority of its own.
type Server struct {
	// Addr is where it listens; CA its authority, as PEM.
	Addr, CA string
	// Roots are the same for code.
	Roots *x509.CertPool

	mu    sync.Mutex
	hosts map[string]http.Handler
}

// Serve starts a server for the hosts; 127.0.0.1 with any port is among the names of
// its certificate.
func Serve(t testing.TB, hosts map[string]http.Handler) *Server {
	t.Helper()
	s := &Server{hosts: hosts}
	names := []string{"localhost"}
	for host := range hosts {
		names = append(names, host)
	}
	cert, ca := certificate(t, names)
	server := httptest.NewUnstartedServer(s)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	// Handshakes that fail are what some tests are about.
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	s.Addr, s.CA = server.Listener.Addr().String(), ca
	s.Roots = x509.NewCertPool()
	s.Roots.AppendCertsFromPEM([]byte(ca))
	return s
}

// Handle adds a host; it must be one of the names that Serve was given, or an address
// of the server itself.
func (s *Server) Handle(host string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[host] = h
}

// Dial connects to the server, whatever the address.
func (s *Server) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, s.Addr)
}

// ServeHTTP passes a request to the handler of its host.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	s.mu.Lock()
	h := s.hosts[host]
	if h == nil {
		if name, _, err := net.SplitHostPort(host); err == nil {
			h = s.hosts[name]
		}
	}
	s.mu.Unlock()
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h.ServeHTTP(w, r)
}

func certificate(t testing.TB, names []string) (tls.Certificate, string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caCert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "oidcfake"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(50, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caCert, caCert, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: caCert.NotBefore, NotAfter: caCert.NotAfter, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, caCert, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
}

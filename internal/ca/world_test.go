package ca_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

const (
	cluster = "example.com"
	hostID  = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"
)

// world is a cluster with its signer and trust, and key pairs to certify.
type world struct {
	cas    []*typesv1.CertAuthority
	signer *ca.Signer
	trust  *ca.Trust
	now    time.Time

	tls    crypto.Signer
	ssh    ssh.Signer
	tlsDER []byte
}

func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{now: time.Now()}
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		c, err := ca.Generate(keystore.Software(), name, typ, w.now)
		if err != nil {
			t.Fatal(err)
		}
		w.cas = append(w.cas, c)
	}
	w.load(t)
	w.tls = must(keys.Generate(keys.ECDSAP256))
	w.tlsDER = must(keys.PublicDER(w.tls.Public()))
	w.ssh = must(ssh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	return w
}

func (w *world) load(t testing.TB) {
	t.Helper()
	var err error
	if w.signer, err = ca.NewSigner(keystore.Software(), w.cas, func() time.Time { return w.now }); err != nil {
		t.Fatal(err)
	}
	if w.trust, err = ca.NewTrust(w.cas); err != nil {
		t.Fatal(err)
	}
}

func (w *world) userRequest() ca.UserRequest {
	return ca.UserRequest{
		Identity: identity.Identity{Cluster: w.trust.Cluster(), User: &identity.User{
			Name: "alice", Roles: []string{"access"}, Logins: []string{"root", "alice"}, Traits: map[string][]string{"team": {"red"}},
		}},
		TLSKey: w.tlsDER, SSHKey: w.ssh.PublicKey().Marshal(), TTL: time.Hour, PermitPTY: true, PermitPortForwarding: true,
	}
}

func (w *world) hostRequest(service types.SystemRole) ca.HostRequest {
	return ca.HostRequest{
		Identity: identity.Identity{Cluster: w.trust.Cluster(), Host: &identity.Host{
			ID: hostID, Name: "Web1", Roles: []types.SystemRole{types.RoleAuth, types.RoleNode, types.RoleProxy}, Service: service, Generation: 1,
		}},
		TLSKey: w.tlsDER, SSHKey: w.ssh.PublicKey().Marshal(), Principals: []string{"proxy.example.net", "10.1.2.3", "::1"},
	}
}

func (w *world) user(t testing.TB, change func(*ca.UserRequest)) (*x509.Certificate, *ssh.Certificate) {
	t.Helper()
	req := w.userRequest()
	if change != nil {
		change(&req)
	}
	der, wire, err := w.signer.User(req)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der, wire)
}

func (w *world) host(t testing.TB, service types.SystemRole, change func(*ca.HostRequest)) (*x509.Certificate, *ssh.Certificate) {
	t.Helper()
	req := w.hostRequest(service)
	if change != nil {
		change(&req)
	}
	der, wire, err := w.signer.Host(req)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der, wire)
}

func parse(t testing.TB, der, wire []byte) (*x509.Certificate, *ssh.Certificate) {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if wire == nil {
		return cert, nil
	}
	sshCert, err := ca.ParseSSHCertificate(wire)
	if err != nil {
		t.Fatal(err)
	}
	return cert, sshCert
}

func authorityKey(t testing.TB, c *typesv1.CertAuthority) ssh.PublicKey {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.GetSpec().GetActiveKeys().GetSsh()[0].GetPublicKey()))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authoritySigners returns the private keys of an authority, as a thief has them.
func authoritySigners(t testing.TB, c *typesv1.CertAuthority) (*x509.Certificate, crypto.Signer, ssh.Signer) {
	t.Helper()
	active := c.GetSpec().GetActiveKeys()
	tlsKey := must(keys.ParsePrivate(active.GetTls()[0].GetPrivateKey()))
	sshKey := must(ssh.NewSignerFromSigner(must(keys.ParsePrivate(active.GetSsh()[0].GetPrivateKey()))))
	return parsePEM(t, active.GetTls()[0].GetCert()), tlsKey, sshKey
}

// forge signs a template with an authority's key, without the signer's checks.
func forge(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(7)
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, public, key))))
}

func parsePEM(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	return must(x509.ParseCertificate(block.Bytes))
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// must is for what cannot fail in a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

package sshauth

import (
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
)

var softwareKeys = keystore.Software()

// Extensions that permit something, and the option that binds to addresses.
const (
	permitPTY     = "permit-pty"
	permitPorts   = "permit-port-forwarding"
	permitAgent   = "permit-agent-forwarding"
	permitX11     = "permit-X11-forwarding"
	sourceAddress = "source-address"
)

// credential is a key with a certificate.
type credential struct {
	key  crypto.Signer
	cert *ssh.Certificate
}

// signer signs with the key and shows the certificate.
func (c credential) signer(t testing.TB) ssh.Signer {
	t.Helper()
	plain, err := ssh.NewSignerFromSigner(c.key)
	must(t, err)
	return shown{c.cert, plain}
}

// shown shows a key that may be another than it signs with.
type shown struct {
	public ssh.PublicKey
	ssh.Signer
}

// PublicKey returns what is shown.
func (s shown) PublicKey() ssh.PublicKey { return s.public }

// authority returns the key that a certificate authority signs SSH certificates with.
func authority(t testing.TB, a *typesv1.CertAuthority) ssh.Signer {
	t.Helper()
	key, err := softwareKeys.Signer(a.GetSpec().GetActiveKeys().GetSsh()[0].GetPrivateKey())
	must(t, err)
	signer, err := ssh.NewSignerFromSigner(key)
	must(t, err)
	return signer
}

// person is who a certificate is made for.
func (s *site) person(name string, roles ...string) *identity.Identity {
	return &identity.Identity{Cluster: clusterName, User: &identity.User{Name: name, Roles: roles, Logins: []string{s.login}}}
}

// unsigned makes what would be a good certificate if it were signed.
func (s *site) unsigned(t testing.TB, key crypto.Signer, id *identity.Identity) *ssh.Certificate {
	t.Helper()
	public, err := ssh.NewPublicKey(key.Public())
	must(t, err)
	c := &ssh.Certificate{
		Key: public, ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{
			CriticalOptions: map[string]string{},
			Extensions:      map[string]string{permitPTY: "", permitPorts: "", permitAgent: "", permitX11: ""},
		},
	}
	must(t, id.EncodeSSH(c))
	return c
}

// forge makes a certificate for alice, changed before the authority signs it.
func (s *site) forge(t testing.TB, alg keys.Algorithm, by ssh.Signer, change func(*ssh.Certificate)) credential {
	t.Helper()
	key, err := keys.Generate(alg)
	must(t, err)
	return s.forgeFor(t, key, s.person("alice", freeRole), by, change)
}

func (s *site) forgeFor(t testing.TB, key crypto.Signer, id *identity.Identity, by ssh.Signer, change func(*ssh.Certificate)) credential {
	t.Helper()
	c := s.unsigned(t, key, id)
	if change != nil {
		change(c)
	}
	must(t, c.SignCert(rand.Reader, by))
	return credential{key, c}
}

// good makes a certificate that is in order, for somebody with the roles.
func (s *site) good(t testing.TB, name string, roles ...string) credential {
	t.Helper()
	key, err := keys.Generate(keys.Ed25519)
	must(t, err)
	return s.forgeFor(t, key, s.person(name, roles...), authority(t, s.cas[ca.TypeUser]), nil)
}

// writeKey writes a private key as OpenSSH has it.
func (s *site) writeKey(name string, key crypto.Signer) {
	s.t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	must(s.t, err)
	s.write(name, string(pem.EncodeToMemory(block)))
}

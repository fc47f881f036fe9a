package client

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Keys are the private keys that a login certifies. They may be one and the same.
type Keys struct {
	SSH, TLS crypto.Signer
}

// NewKeys makes an Ed25519 key for SSH and a P-256 key for TLS.
func NewKeys() (Keys, error) {
	sshKey, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return Keys{}, fmt.Errorf("make an SSH key: %w", err)
	}
	tlsKey, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return Keys{}, fmt.Errorf("make a TLS key: %w", err)
	}
	return Keys{SSH: sshKey, TLS: tlsKey}, nil
}

// NewSingleKey makes one P-256 key for both, as identity files have it.
func NewSingleKey() (Keys, error) {
	key, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return Keys{}, fmt.Errorf("make a key: %w", err)
	}
	return Keys{SSH: key, TLS: key}, nil
}

// Public returns the public halves in the form that login and signing take.
func (k Keys) Public() (*loginv1.PublicKeys, error) {
	der, err := keys.PublicDER(k.TLS.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the TLS public key: %w", err)
	}
	pub, err := ssh.NewPublicKey(k.SSH.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the SSH public key: %w", err)
	}
	return &loginv1.PublicKeys{Tls: der, Ssh: pub.Marshal()}, nil
}

// Credentials are what a user works with: keys, their certificates and the
// authorities of the cluster.
type Credentials struct {
	Keys
	// SSHCert is nil for a user whose roles allow no logins.
	SSHCert *ssh.Certificate
	TLSCert *x509.Certificate
	Trust   *ca.Trust
	// Renew is the command that gets new ones, for messages about expiry.
	Renew string
}

// NewCredentials joins keys with the certificates that were issued for them and
// checks that they belong together.
func NewCredentials(k Keys, certs *loginv1.UserCertificates) (*Credentials, error) {
	tlsCert, err := x509.ParseCertificate(certs.GetTls())
	if err != nil {
		return nil, fault.Invalid("the cluster sent a TLS certificate that cannot be read: %w", err)
	}
	var sshCert *ssh.Certificate
	if len(certs.GetSsh()) > 0 {
		if sshCert, err = ca.ParseSSHCertificate(certs.GetSsh()); err != nil {
			return nil, fmt.Errorf("the cluster sent an SSH certificate that cannot be read: %w", err)
		}
	}
	trust, err := ca.NewTrust(certs.GetAuthorities())
	if err != nil {
		return nil, fmt.Errorf("authorities of the cluster: %w", err)
	}
	c := &Credentials{Keys: k, SSHCert: sshCert, TLSCert: tlsCert, Trust: trust, Renew: "tsh login"}
	return c, c.consistent()
}

// consistent checks that keys, certificates and authorities belong together.
func (c *Credentials) consistent() error {
	want, err := c.Public()
	if err != nil {
		return err
	}
	der, err := keys.PublicDER(c.TLSCert.PublicKey)
	if err != nil || !bytes.Equal(der, want.GetTls()) {
		return fault.Invalid("the TLS certificate is not for this private key")
	}
	if c.SSHCert != nil && (c.SSHCert.CertType != ssh.UserCert || !bytes.Equal(c.SSHCert.Key.Marshal(), want.GetSsh())) {
		return fault.Invalid("the SSH certificate is not a user certificate for this private key")
	}
	id, err := c.Identity()
	if err != nil {
		return err
	}
	if id.Cluster != c.Trust.Cluster() {
		return fault.Invalid("the certificate is of cluster %q, the authorities are of %q", id.Cluster, c.Trust.Cluster())
	}
	_, err = c.issuer()
	return err
}

// Identity returns what the certificate says about its holder.
func (c *Credentials) Identity() (*identity.Identity, error) {
	id, err := identity.FromTLS(c.TLSCert)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	if id.User == nil {
		return nil, fault.Invalid("the certificate is not a user's")
	}
	return id, nil
}

// Expires returns when the first of the two certificates ends.
func (c *Credentials) Expires() time.Time {
	end := c.TLSCert.NotAfter
	if c.SSHCert != nil && c.SSHCert.ValidBefore < uint64(end.Unix()) {
		end = time.Unix(int64(c.SSHCert.ValidBefore), 0)
	}
	return end
}

// Check refuses certificates that are not valid at now, with what to do about it.
func (c *Credentials) Check(now time.Time) error {
	if end := c.Expires(); now.After(end) {
		return fault.New(fault.ErrUnauthenticated, "your certificate expired at %s: run %s", stamp(end), c.Renew).WithCode(CodeNotLoggedIn)
	}
	if start := c.TLSCert.NotBefore; now.Before(start) {
		return fault.Unauthenticated("your certificate is not valid before %s, and this machine's clock says %s: set the clock",
			stamp(start), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// tls returns the client certificate for crypto/tls.
func (c *Credentials) tls() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.TLSCert.Raw}, PrivateKey: c.TLS, Leaf: c.TLSCert}
}

// signer returns the SSH certificate as something to authenticate with.
func (c *Credentials) signer() (ssh.Signer, error) {
	if c.SSHCert == nil {
		return nil, fault.Denied("your roles allow no logins on any node: ask for a role that does, then run %s", c.Renew)
	}
	key, err := ssh.NewSignerFromSigner(c.SSH)
	if err != nil {
		return nil, fmt.Errorf("use the SSH key: %w", err)
	}
	signer, err := ssh.NewCertSigner(c.SSHCert, key)
	if err != nil {
		return nil, fmt.Errorf("use the SSH certificate: %w", err)
	}
	return signer, nil
}

// parseKey reads one private key: PKCS#8 or OpenSSH's own form, unencrypted.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	data := pem.EncodeToMemory(block)
	if block.Type == "PRIVATE KEY" {
		return keys.ParsePrivate(data)
	}
	if block.Type != "OPENSSH PRIVATE KEY" {
		return nil, fault.Invalid("a private key of type %q is not supported: PKCS#8 or OpenSSH was expected", block.Type)
	}
	raw, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		return nil, fault.Invalid("the private key cannot be read: %w", err)
	}
	if k, ok := raw.(*ed25519.PrivateKey); ok {
		raw = *k
	}
	key, ok := raw.(crypto.Signer)
	if !ok {
		return nil, fault.Invalid("the private key is of a kind that cannot sign")
	}
	return key, keys.Check(key.Public())
}

// readTrust makes trust from what is kept on disk: TLS certificates of the host
// CA and the one that signed the user's own, and SSH keys of the host CA.
func readTrust(leaf *x509.Certificate, certs []*x509.Certificate, hostKeys []ssh.PublicKey) (*ca.Trust, error) {
	id, err := identity.FromTLS(leaf)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	host, user := &typesv1.CertAuthorityKeys{}, &typesv1.CertAuthorityKeys{}
	for _, cert := range certs {
		keep := host
		if leaf.CheckSignatureFrom(cert) == nil {
			keep = user
		}
		keep.Tls = append(keep.Tls, &typesv1.TlsKeyPair{Cert: string(encodeCert(cert.Raw))})
	}
	for _, key := range hostKeys {
		host.Ssh = append(host.Ssh, &typesv1.SshKeyPair{PublicKey: string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))})
	}
	var cas []*typesv1.CertAuthority
	for typ, active := range map[string]*typesv1.CertAuthorityKeys{ca.TypeHost: host, ca.TypeUser: user} {
		r := &typesv1.CertAuthority{
			Kind: types.KindCertAuthority, SubKind: typ, Version: "v2", Metadata: &typesv1.Metadata{Name: typ},
			Spec: &typesv1.CertAuthoritySpec{Type: typ, ClusterName: id.Cluster, ActiveKeys: active},
		}
		cas = append(cas, r)
	}
	return ca.NewTrust(cas)
}

// issuer returns the certificate that signed the user's own, in PEM.
func (c *Credentials) issuer() ([]byte, error) {
	for _, authority := range c.Trust.Authorities() {
		if authority.GetSpec().GetType() != ca.TypeUser {
			continue
		}
		for _, set := range []*typesv1.CertAuthorityKeys{authority.GetSpec().GetActiveKeys(), authority.GetSpec().GetAdditionalTrustedKeys()} {
			for _, pair := range set.GetTls() {
				block, _ := pem.Decode([]byte(pair.GetCert()))
				if block == nil {
					continue
				}
				if cert, err := x509.ParseCertificate(block.Bytes); err == nil && c.TLSCert.CheckSignatureFrom(cert) == nil {
					return encodeCert(cert.Raw), nil
				}
			}
		}
	}
	return nil, fault.Invalid("the certificate is not signed by the user CA of cluster %q", c.Trust.Cluster())
}

// hostCerts returns the host CA's TLS certificates in PEM.
func (c *Credentials) hostCerts() []byte {
	var out []byte
	for _, cert := range c.Trust.HostCertificates() {
		out = append(out, encodeCert(cert.Raw)...)
	}
	return out
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

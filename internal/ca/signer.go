package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/keystore"
)

// Signer signs with the active keys of a cluster's authorities. It may be used from
// several goroutines at once.
type Signer struct {
	cluster    string
	now        func() time.Time
	host, user authority
	// openssh signs the logins to OpenSSH servers; nil if the cluster has no such
	// authority.
	openssh ssh.Signer
	// database signs database servers, databaseClient those who log in to them, and
	// tokens says to applications who their user is. Each is empty if the cluster has
	// no such authority.
	database, databaseClient authority
	tokens                   tokenSigner
	// hostMore are the other TLS keys of the host authority: those of before or after a
	// rotation.
	hostMore []crypto.Signer
}

// authority is one pair of signing keys.
type authority struct {
	cert *x509.Certificate
	tls  crypto.Signer
	ssh  ssh.Signer
}

// NewSigner returns a signer for the cluster of the authorities, which must
// include host and user with the references of their private keys; the others are
// used if they are there.
func NewSigner(ks keystore.Keystore, cas []*typesv1.CertAuthority, now func() time.Time) (*Signer, error) {
	if ks == nil || now == nil {
		return nil, fault.Invalid("signer needs a keystore and a clock")
	}
	cluster, err := clusterOf(cas)
	if err != nil {
		return nil, err
	}
	s := &Signer{cluster: cluster, now: now}
	for _, c := range cas {
		switch c.GetSpec().GetType() {
		case TypeHost:
			if s.host, err = openAuthority(ks, c); err == nil {
				s.hostMore, err = openMore(ks, c)
			}
		case TypeUser:
			s.user, err = openAuthority(ks, c)
		case TypeOpenSSH:
			s.openssh, err = openSSH(ks, c)
		case TypeDB:
			s.database, err = openTLS(ks, c)
		case TypeDBClient:
			s.databaseClient, err = openTLS(ks, c)
		case TypeJWT:
			s.tokens, err = openJWT(ks, c)
		}
		if err != nil {
			return nil, fmt.Errorf("open the %s certificate authority: %w", c.GetSpec().GetType(), err)
		}
	}
	if s.host.cert == nil || s.user.cert == nil {
		return nil, fault.Invalid("signer needs the host and the user certificate authority")
	}
	return s, nil
}

// Cluster returns the name of the cluster that the signer signs for.
func (s *Signer) Cluster() string { return s.cluster }

// openAuthority loads the first active key of each kind, and makes sure that the
// private keys are those of the public ones.
func openAuthority(ks keystore.Keystore, c *typesv1.CertAuthority) (authority, error) {
	if len(c.GetSpec().GetActiveKeys().GetSsh()) == 0 {
		return authority{}, fault.Invalid("it has no active keys")
	}
	a, err := openTLS(ks, c)
	if err != nil {
		return authority{}, err
	}
	a.ssh, err = openSSH(ks, c)
	return a, err
}

// openSSH loads the first active SSH key of an authority.
func openSSH(ks keystore.Keystore, c *typesv1.CertAuthority) (ssh.Signer, error) {
	pairs := c.GetSpec().GetActiveKeys().GetSsh()
	if len(pairs) == 0 {
		return nil, fault.Invalid("it has no active keys")
	}
	public, err := parseAuthorizedKey(pairs[0].GetPublicKey())
	if err != nil {
		return nil, err
	}
	key, err := ks.Signer(pairs[0].GetPrivateKey())
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	if !sameSSH(public, signer.PublicKey()) {
		return nil, fault.Invalid("its SSH private key is not that of its public key")
	}
	return signer, nil
}

// openMore loads the additional trusted TLS keys whose private half is here.
func openMore(ks keystore.Keystore, c *typesv1.CertAuthority) ([]crypto.Signer, error) {
	var out []crypto.Signer
	for _, k := range c.GetSpec().GetAdditionalTrustedKeys().GetTls() {
		if len(k.GetPrivateKey()) == 0 {
			continue
		}
		key, err := ks.Signer(k.GetPrivateKey())
		if err != nil {
			return nil, fmt.Errorf("additional TLS key: %w", err)
		}
		out = append(out, key)
	}
	return out, nil
}

// SignAsHostCA signs the SHA-256 digest with every TLS key of the host authority, the
// active one first, and returns ASN.1 ECDSA signatures, see Trust.VerifyHostSignature:
// while a rotation overlaps, some know only the old key and some only the new one.
func (s *Signer) SignAsHostCA(digest [32]byte) ([][]byte, error) {
	var out [][]byte
	for _, key := range append([]crypto.Signer{s.host.tls}, s.hostMore...) {
		if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
			return nil, fault.Unsupported("the host certificate authority has a key that is not ECDSA")
		}
		sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("sign as host certificate authority: %w", err)
		}
		out = append(out, sig)
	}
	return out, nil
}

// validity returns the times between which a certificate of the authority is
// valid: whole seconds, and never beyond the authority's own.
func (s *Signer) validity(a authority, ttl time.Duration) (from, to time.Time, err error) {
	now := s.now().UTC()
	from, to = now.Add(-backdate).Truncate(time.Second), now.Add(ttl).Truncate(time.Second)
	if from.Before(a.cert.NotBefore) {
		from = a.cert.NotBefore
	}
	if to.After(a.cert.NotAfter) {
		to = a.cert.NotAfter
	}
	if !to.After(now) || !to.After(from) {
		return from, to, fault.Invalid("certificate authority %q is valid from %s to %s, but the clock says %s: check the clock, or rotate the authority",
			a.cert.Subject.CommonName, stamp(a.cert.NotBefore), stamp(a.cert.NotAfter), stamp(now))
	}
	return from, to, nil
}

// signTLS signs the template for the key, and returns the certificate as others
// will read it.
func (a authority) signTLS(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.tls)
	if err != nil {
		return nil, fmt.Errorf("sign TLS certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back TLS certificate: %w", err)
	}
	return cert, nil
}

// signSSH fills serial and signature of the certificate.
func (a authority) signSSH(cert *ssh.Certificate) error { return signSSH(a.ssh, cert) }

func signSSH(signer ssh.Signer, cert *ssh.Certificate) error {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("make serial number: %w", err)
	}
	for _, c := range b {
		cert.Serial = cert.Serial<<8 | uint64(c)
	}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		return fmt.Errorf("sign SSH certificate: %w", err)
	}
	return nil
}

// ownKey reports whether the public key is one that the signer signs with: an
// authority is never the holder of a certificate.
func (s *Signer) ownKey(tlsKey crypto.PublicKey, sshKey ssh.PublicKey) bool {
	if s.openssh != nil && sshKey != nil && sameSSH(s.openssh.PublicKey(), sshKey) {
		return true
	}
	if s.tokens.key != nil && tlsKey != nil && samePublic(s.tokens.key.Public(), tlsKey) {
		return true
	}
	return slices.ContainsFunc([]authority{s.host, s.user, s.database, s.databaseClient}, func(a authority) bool {
		return tlsKey != nil && a.cert != nil && samePublic(a.cert.PublicKey, tlsKey) || sshKey != nil && a.ssh != nil && sameSSH(a.ssh.PublicKey(), sshKey)
	})
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
)

// Trust says whose certificates are believed: those of one cluster's host and user
// authorities, active and additional keys alike. It never changes; a new set of
// authorities is a new Trust.
type Trust struct {
	cluster     string
	authorities []*typesv1.CertAuthority
	host, user  anchors
	// openssh is empty if the cluster has no such authority.
	openssh anchors
	// database and databaseClient vouch for nobody in the cluster; they are here for
	// those outside who trust them.
	database, databaseClient anchors
}

// anchors are the keys of one type of authority.
type anchors struct {
	typ   string
	certs []*x509.Certificate
	pool  *x509.CertPool
	ssh   []ssh.PublicKey
}

// NewTrust returns the trust in the authorities, which must be of one cluster and
// include host and user. Private keys are dropped.
func NewTrust(cas []*typesv1.CertAuthority) (*Trust, error) {
	cluster, err := clusterOf(cas)
	if err != nil {
		return nil, err
	}
	t := &Trust{cluster: cluster}
	for _, c := range cas {
		t.authorities = append(t.authorities, Public(c))
		switch c.GetSpec().GetType() {
		case TypeHost:
			t.host, err = readAnchors(c)
		case TypeUser:
			t.user, err = readAnchors(c)
		case TypeOpenSSH:
			t.openssh, err = readAnchors(c)
		case TypeDB:
			t.database, err = readAnchors(c)
		case TypeDBClient:
			t.databaseClient, err = readAnchors(c)
		}
		if err != nil {
			return nil, fmt.Errorf("read the %s certificate authority: %w", c.GetSpec().GetType(), err)
		}
	}
	if len(t.host.certs) == 0 || len(t.user.certs) == 0 {
		return nil, fault.Invalid("trust needs the host and the user certificate authority")
	}
	all := []anchors{t.host, t.user, t.openssh, t.database, t.databaseClient}
	for i, a := range all {
		for _, b := range all[:i] {
			if err := disjoint(b, a); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

func readAnchors(c *typesv1.CertAuthority) (anchors, error) {
	out := anchors{typ: c.GetSpec().GetType(), pool: x509.NewCertPool()}
	for _, k := range []*typesv1.CertAuthorityKeys{c.GetSpec().GetActiveKeys(), c.GetSpec().GetAdditionalTrustedKeys()} {
		for _, pair := range k.GetTls() {
			cert, err := parseAuthority(c.GetSpec().GetClusterName(), pair.GetCert())
			if err != nil {
				return out, err
			}
			out.certs = append(out.certs, cert)
			out.pool.AddCert(cert)
		}
		for _, pair := range k.GetSsh() {
			key, err := parseAuthorizedKey(pair.GetPublicKey())
			if err != nil {
				return out, err
			}
			out.ssh = append(out.ssh, key)
		}
	}
	return out, nil
}

// disjoint refuses a key that is in both authorities: who signed would no longer
// say whether a user or a host is meant.
func disjoint(a, b anchors) error {
	for _, x := range a.certs {
		for _, y := range b.certs {
			if bytes.Equal(x.RawSubjectPublicKeyInfo, y.RawSubjectPublicKeyInfo) {
				return fault.Invalid("the %s and the %s certificate authority have the same TLS key", a.typ, b.typ)
			}
		}
	}
	for _, x := range a.ssh {
		if b.trustsSSH(x) {
			return fault.Invalid("the %s and the %s certificate authority have the same SSH key", a.typ, b.typ)
		}
	}
	return nil
}

func (a anchors) trustsSSH(key ssh.PublicKey) bool {
	return slices.ContainsFunc(a.ssh, func(own ssh.PublicKey) bool { return sameSSH(own, key) })
}

// Cluster returns the name of the cluster.
func (t *Trust) Cluster() string { return t.cluster }

// Authorities returns the authorities without private keys. They must not be
// changed.
func (t *Trust) Authorities() []*typesv1.CertAuthority { return slices.Clone(t.authorities) }

// HostPool returns a pool of the certificates that sign hosts.
func (t *Trust) HostPool() *x509.CertPool { return t.host.pool.Clone() }

// UserPool returns a pool of the certificates that sign users.
func (t *Trust) UserPool() *x509.CertPool { return t.user.pool.Clone() }

// HostCertificates returns the certificates that sign hosts, the active ones first.
func (t *Trust) HostCertificates() []*x509.Certificate { return slices.Clone(t.host.certs) }

// DatabaseCertificates returns the certificates that sign database servers, the active
// ones first, and DatabaseClientCertificates those that sign who logs in to them.
func (t *Trust) DatabaseCertificates() []*x509.Certificate { return slices.Clone(t.database.certs) }

// DatabaseClientCertificates returns what databases are to trust for their clients.
func (t *Trust) DatabaseClientCertificates() []*x509.Certificate {
	return slices.Clone(t.databaseClient.certs)
}

// Pins returns the pins of the host authority, the active ones first: what
// `tctl status` shows and ca_pin takes.
func (t *Trust) Pins() []string {
	var out []string
	for _, c := range t.host.certs {
		if p := Pin(c); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// VerifyHostSignature checks the signatures of Signer.SignAsHostCA: one of them must
// be by a key that is trusted.
func (t *Trust) VerifyHostSignature(digest [32]byte, sigs [][]byte) error {
	for _, c := range t.host.certs {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if ok && slices.ContainsFunc(sigs[:min(len(sigs), maxSignatures)], func(sig []byte) bool { return ecdsa.VerifyASN1(key, digest[:], sig) }) {
			return nil
		}
	}
	return fault.Unauthenticated("signature is not by the host certificate authority of cluster %q", t.cluster)
}

// maxSignatures bounds the work on signatures that a stranger sent.
const maxSignatures = 8

// VerifyTLS returns whose certificate heads the chain. The holder has been proven
// by the handshake; the rest of the chain is not believed. Errors are
// fault.ErrUnauthenticated.
func (t *Trust) VerifyTLS(chain []*x509.Certificate, now time.Time) (*identity.Identity, error) {
	if len(chain) == 0 || chain[0] == nil {
		return nil, fault.Unauthenticated("no certificate was shown")
	}
	cert := chain[0]
	if cert.IsCA {
		return nil, fault.Unauthenticated("certificate %q is an authority's, a holder's is needed", clip(cert.Subject.String()))
	}
	var found *anchors
	var failure error
	for _, a := range []*anchors{&t.host, &t.user} {
		err := a.verifyTLS(cert, now)
		if err == nil {
			found = a
			break
		}
		// The more telling error is that of the authority the certificate names.
		if failure == nil || a.named(cert) {
			failure = err
		}
	}
	if found == nil {
		return nil, t.explain(cert, now, failure)
	}
	id, err := identity.FromTLS(cert)
	if err != nil {
		return nil, fault.Unauthenticated("certificate %q: %w", clip(cert.Subject.String()), err)
	}
	return t.accept(id, found)
}

func (a *anchors) verifyTLS(cert *x509.Certificate, now time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:         a.pool,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func (a *anchors) named(cert *x509.Certificate) bool {
	return slices.ContainsFunc(a.certs, func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, cert.RawIssuer) })
}

// accept holds an identity against the authority that vouched for it.
func (t *Trust) accept(id *identity.Identity, by *anchors) (*identity.Identity, error) {
	switch {
	case id.Host != nil && by.typ != TypeHost, id.User != nil && by.typ != TypeUser:
		return nil, fault.Unauthenticated("certificate of %q is signed by the %s certificate authority, which may not name it", id.Name(), by.typ)
	case id.Cluster != t.cluster:
		return nil, fault.Unauthenticated("certificate of %q is for cluster %q, but was signed by cluster %q", id.Name(), id.Cluster, t.cluster)
	}
	return id, nil
}

// explain makes one line of why a certificate was not believed.
func (t *Trust) explain(cert *x509.Certificate, now time.Time, cause error) error {
	if err := checkTimes(cert.NotBefore, cert.NotAfter, now); err != nil && (t.host.named(cert) || t.user.named(cert)) {
		return err
	}
	return fault.Unauthenticated("certificate %q by %q is not of cluster %q: %w", clip(cert.Subject.String()), clip(cert.Issuer.String()), t.cluster, cause)
}

// checkTimes tells early from late, and mentions the clock, which is the usual
// reason.
func checkTimes(from, to, now time.Time) error {
	switch {
	case now.Before(from):
		return fault.New(fault.ErrUnauthenticated, "certificate is not valid before %s, and the clock says %s: check the clocks of both machines",
			stamp(from), stamp(now)).WithCode(CodeNotYetValid)
	case !now.Before(to):
		return fault.New(fault.ErrUnauthenticated, "certificate expired at %s, and the clock says %s: get a new one, or check the clock",
			stamp(to), stamp(now)).WithCode(CodeExpired)
	}
	return nil
}

// Reason codes of certificates that are good at another time.
const (
	CodeExpired     = "certificate_expired"
	CodeNotYetValid = "certificate_not_yet_valid"
)

// Identify returns who is at the other end of a TLS connection; nil without an
// error if the peer showed no certificate. It asks anew each time, so a connection
// does not outlive the trust in its peer.
func (t *Trust) Identify(cs tls.ConnectionState) (*identity.Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, nil
	}
	return t.VerifyTLS(cs.PeerCertificates, time.Now())
}

const pinPrefix = "sha256:"

// Pin returns the pin of an authority's certificate: the SHA-256 of its public key.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// ParsePins checks pins as people write them and returns their one form, without
// repetitions. None given is none returned.
func ParsePins(pins []string) ([]string, error) {
	var out []string
	for _, p := range pins {
		p = strings.ToLower(strings.TrimSpace(p))
		sum, err := hex.DecodeString(strings.TrimPrefix(p, pinPrefix))
		if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(p, pinPrefix) {
			return nil, fault.Invalid("ca_pin %q: expected sha256: and 64 hexadecimal digits, as `tctl status` shows it", p)
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func sameSSH(a, b ssh.PublicKey) bool {
	return subtle.ConstantTimeCompare(a.Marshal(), b.Marshal()) == 1
}

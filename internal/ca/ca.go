// Package ca makes the cluster's certificate authorities, signs with them (hosts, users,
// what databases and OpenSSH servers trust, tokens for applications), and decides whose
// certificate a peer shows. Signing is Signer, checking is Trust, and ClientTLS,
// ServerTLS and PinnedTLS are the only ways to a TLS configuration. It stores nothing,
// and does not decide what the holder of a certificate may do.
//
// Three rules hold everywhere: an authority is known by the bytes of its plain
// key; who signed says what kind of identity may be read, and for which cluster;
// an empty list of principals is nobody.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

// Types of authority.
const (
	// TypeHost signs the certificates of processes.
	TypeHost = "host"
	// TypeUser signs the certificates of people and automations.
	TypeUser = "user"
	// TypeDB is what databases show to the database service.
	TypeDB = "db"
	// TypeDBClient is what the database service shows to databases.
	TypeDBClient = "db_client"
	// TypeOpenSSH signs user certificates for OpenSSH servers that did not join.
	TypeOpenSSH = "openssh"
	// TypeJWT signs the tokens that applications get.
	TypeJWT = "jwt"
)

const (
	// authorityLife is how long the certificate of an authority is valid.
	authorityLife = 10 * 365 * 24 * time.Hour
	// backdate is how far behind a peer's clock may be.
	backdate = time.Minute

	version        = "v2"
	pemCertificate = "CERTIFICATE"
	pemPublic      = "PUBLIC KEY"
)

// Types returns the types of authority that a cluster has, in the order in which
// they are made.
func Types() []string {
	return []string{TypeHost, TypeUser, TypeDB, TypeDBClient, TypeOpenSSH, TypeJWT}
}

// plan says which keys an authority of a type has; zero means none.
type plan struct{ ssh, tls, jwt keys.Algorithm }

func planOf(typ string) (plan, error) {
	switch typ {
	case TypeHost, TypeUser:
		return plan{ssh: keys.Ed25519, tls: keys.ECDSAP256}, nil
	case TypeDB, TypeDBClient:
		return plan{tls: keys.RSA2048}, nil
	case TypeOpenSSH:
		return plan{ssh: keys.Ed25519}, nil
	case TypeJWT:
		return plan{jwt: keys.ECDSAP256}, nil
	}
	return plan{}, fault.Invalid("unknown type of certificate authority %q: use %s", typ, strings.Join(Types(), ", "))
}

// Generate makes the authority of the type with new keys. RSA keys of the
// database authorities take a few hundred milliseconds each; Generate may be
// called for several types at once.
func Generate(ks keystore.Keystore, cluster, typ string, now time.Time) (*typesv1.CertAuthority, error) {
	p, err := planOf(typ)
	if err != nil {
		return nil, err
	}
	if err := identity.CheckHostname(cluster); err != nil {
		return nil, fmt.Errorf("cluster name: %w", err)
	}
	active := &typesv1.CertAuthorityKeys{}
	if p.ssh != 0 {
		pair, err := generateSSH(ks, p.ssh)
		if err != nil {
			return nil, fmt.Errorf("make the %s certificate authority: %w", typ, err)
		}
		active.Ssh = []*typesv1.SshKeyPair{pair}
	}
	if p.tls != 0 {
		pair, err := generateTLS(ks, p.tls, cluster, typ, now)
		if err != nil {
			return nil, fmt.Errorf("make the %s certificate authority: %w", typ, err)
		}
		active.Tls = []*typesv1.TlsKeyPair{pair}
	}
	if p.jwt != 0 {
		pair, err := generateJWT(ks, p.jwt)
		if err != nil {
			return nil, fmt.Errorf("make the %s certificate authority: %w", typ, err)
		}
		active.Jwt = []*typesv1.JwtKeyPair{pair}
	}
	return &typesv1.CertAuthority{
		Kind:     types.KindCertAuthority,
		Version:  version,
		Metadata: &typesv1.Metadata{Name: typ},
		Spec: &typesv1.CertAuthoritySpec{
			Type:                  typ,
			ClusterName:           cluster,
			ActiveKeys:            active,
			AdditionalTrustedKeys: &typesv1.CertAuthorityKeys{},
		},
	}, nil
}

func generateSSH(ks keystore.Keystore, alg keys.Algorithm) (*typesv1.SshKeyPair, error) {
	ref, signer, err := ks.Generate(alg)
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("make SSH public key: %w", err)
	}
	return &typesv1.SshKeyPair{PublicKey: authorizedKey(public), PrivateKey: ref}, nil
}

func generateTLS(ks keystore.Keystore, alg keys.Algorithm, cluster, typ string, now time.Time) (*typesv1.TlsKeyPair, error) {
	ref, signer, err := ks.Generate(alg)
	if err != nil {
		return nil, err
	}
	der, err := selfSign(signer, cluster, typ, now)
	if err != nil {
		return nil, err
	}
	return &typesv1.TlsKeyPair{Cert: string(encodePEM(pemCertificate, der)), PrivateKey: ref}, nil
}

func generateJWT(ks keystore.Keystore, alg keys.Algorithm) (*typesv1.JwtKeyPair, error) {
	ref, signer, err := ks.Generate(alg)
	if err != nil {
		return nil, err
	}
	der, err := keys.PublicDER(signer.Public())
	if err != nil {
		return nil, err
	}
	return &typesv1.JwtKeyPair{PublicKey: string(encodePEM(pemPublic, der)), PrivateKey: ref}, nil
}

func selfSign(signer crypto.Signer, cluster, typ string, now time.Time) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               authoritySubject(cluster, typ),
		NotBefore:             now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(authorityLife).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign authority certificate: %w", err)
	}
	return der, nil
}

func authoritySubject(cluster, typ string) pkix.Name {
	return pkix.Name{
		Organization: []string{cluster},
		CommonName:   cluster + " " + strings.ReplaceAll(typ, "_", " ") + " CA",
	}
}

// Public returns a copy of the authority without private keys: what may leave the
// Auth Service.
func Public(authority *typesv1.CertAuthority) *typesv1.CertAuthority {
	out := proto.CloneOf(authority)
	for _, k := range []*typesv1.CertAuthorityKeys{out.GetSpec().GetActiveKeys(), out.GetSpec().GetAdditionalTrustedKeys()} {
		for _, pair := range k.GetSsh() {
			pair.PrivateKey = nil
		}
		for _, pair := range k.GetTls() {
			pair.PrivateKey = nil
		}
		for _, pair := range k.GetJwt() {
			pair.PrivateKey = nil
		}
	}
	return out
}

// parseAuthority reads the certificate of an authority and refuses what must not
// be a trust anchor: leaves, foreign signatures, another cluster's.
func parseAuthority(cluster, text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != pemCertificate || strings.TrimSpace(string(rest)) != "" {
		return nil, fault.Invalid("authority certificate is not one PEM block %q", pemCertificate)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fault.Invalid("authority certificate cannot be read: %w", err)
	}
	if err := checkAuthority(cert); err != nil {
		return nil, err
	}
	if got := cert.Subject.Organization; len(got) != 1 || got[0] != cluster {
		return nil, fault.Invalid("authority certificate is of cluster %q, expected %q", got, cluster)
	}
	return cert, nil
}

// checkAuthority refuses a certificate that may not sign others, or is not signed
// by its own key.
func checkAuthority(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fault.Invalid("certificate %q is not an authority's", cert.Subject)
	}
	if err := keys.Check(cert.PublicKey); err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fault.Invalid("authority certificate %q is not signed by its own key", cert.Subject)
	}
	return nil
}

// parseAuthorizedKey reads one line of a plain key.
func parseAuthorizedKey(line string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) != 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, fault.Invalid("SSH authority key is not one line of type and key")
	}
	if err := keys.CheckSSH(key); err != nil {
		return nil, err
	}
	return key, nil
}

func authorizedKey(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func encodePEM(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

// serialNumber returns a random positive number of 127 bits.
func serialNumber() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 127)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// clusterOf returns the one cluster that all authorities belong to.
func clusterOf(cas []*typesv1.CertAuthority) (string, error) {
	if len(cas) == 0 {
		return "", fault.Invalid("no certificate authorities given")
	}
	cluster := cas[0].GetSpec().GetClusterName()
	if err := identity.CheckHostname(cluster); err != nil {
		return "", fmt.Errorf("cluster name of certificate authority: %w", err)
	}
	var seen []string
	for _, c := range cas {
		typ := c.GetSpec().GetType()
		switch {
		case c.GetSpec().GetClusterName() != cluster:
			return "", fault.Invalid("certificate authorities of two clusters given, %q and %q", cluster, c.GetSpec().GetClusterName())
		case !slices.Contains(Types(), typ):
			return "", fault.Invalid("unknown type of certificate authority %q", typ)
		case slices.Contains(seen, typ):
			return "", fault.Invalid("certificate authority %q given twice", typ)
		}
		seen = append(seen, typ)
	}
	return cluster, nil
}

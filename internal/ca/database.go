package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

// Lives of the certificates of the database authorities.
const (
	// MaxDatabaseClientTTL is the longest one of an agent that logs in to a database: it
	// goes on for so long while Auth is away.
	MaxDatabaseClientTTL = 12 * time.Hour
	// MaxDatabaseServerTTL is that of a database server: nothing of ours is there that
	// renews it.
	MaxDatabaseServerTTL = 365 * 24 * time.Hour

	maxDatabaseHosts = 64
	// revocationLife is how long a list of revoked certificates is good: as long as the
	// authority, as nobody fetches it again.
	revocationLife = authorityLife
)

// DatabaseClientRequest asks for a certificate with which an agent logs in to a database.
// Whether it may was decided before.
type DatabaseClientRequest struct {
	// User is the database user: the common name, and the whole subject.
	User string
	// TLSKey is a SubjectPublicKeyInfo, DER.
	TLSKey []byte
	// TTL is at most MaxDatabaseClientTTL.
	TTL time.Duration
}

// DatabaseClient signs it with the db_client authority, and returns the certificate and
// that of the authority, DER. It says nothing of who it is in the cluster, and nobody in
// the cluster believes it.
func (s *Signer) DatabaseClient(req DatabaseClientRequest) ([][]byte, error) {
	if err := types.ValidDatabaseUser(req.User); err != nil {
		return nil, fmt.Errorf("database user: %w", err)
	}
	if req.TTL <= 0 || req.TTL > MaxDatabaseClientTTL {
		return nil, fault.Invalid("certificate of %s for a database user asked for, at most %s are given", req.TTL, MaxDatabaseClientTTL)
	}
	return s.signDatabase(s.databaseClient, TypeDBClient, req.TLSKey, req.TTL, func(t *x509.Certificate) {
		t.Subject = pkix.Name{CommonName: req.User}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
}

// DatabaseServerRequest asks for the certificate of a database server.
type DatabaseServerRequest struct {
	// Hosts are the names and addresses that it is reached at; the first is the common
	// name. A name may begin with "*.".
	Hosts []string
	// TLSKey is a SubjectPublicKeyInfo, DER.
	TLSKey []byte
	// TTL is at most MaxDatabaseServerTTL.
	TTL time.Duration
}

// DatabaseServer signs it with the db authority, and returns the certificate and that of
// the authority, DER. Members of a cluster of databases also show it to each other.
func (s *Signer) DatabaseServer(req DatabaseServerRequest) ([][]byte, error) {
	if len(req.Hosts) == 0 || len(req.Hosts) > maxDatabaseHosts {
		return nil, fault.Invalid("%d names of a database server: give 1 to %d", len(req.Hosts), maxDatabaseHosts)
	}
	if req.TTL <= 0 || req.TTL > MaxDatabaseServerTTL {
		return nil, fault.Invalid("certificate of %s for a database server asked for, at most %s are given", req.TTL, MaxDatabaseServerTTL)
	}
	var names []string
	var addrs []net.IP
	for _, host := range req.Hosts {
		if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
			addrs = append(addrs, net.IP(addr.Unmap().AsSlice()))
			continue
		}
		host = strings.ToLower(host)
		if err := identity.CheckHostname(strings.TrimPrefix(host, "*.")); err != nil {
			return nil, err
		}
		if identity.ReservedName(host) {
			return nil, fault.Denied("host name %q is reserved for services of the cluster", host)
		}
		if !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	return s.signDatabase(s.database, TypeDB, req.TLSKey, req.TTL, func(t *x509.Certificate) {
		// MongoDB takes for members of one cluster those with the same O.
		t.Subject = pkix.Name{CommonName: req.Hosts[0], Organization: []string{s.cluster}}
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		t.DNSNames, t.IPAddresses = names, addrs
	})
}

func (s *Signer) signDatabase(a authority, typ string, tlsKey []byte, ttl time.Duration, fill func(*x509.Certificate)) ([][]byte, error) {
	if a.cert == nil {
		return nil, errNoAuthority(typ)
	}
	key, err := keys.ParsePublicTLS(tlsKey)
	if err != nil {
		return nil, err
	}
	if s.ownKey(key, nil) {
		return nil, fault.Denied("certificate for the key of a certificate authority asked for")
	}
	from, to, err := s.validity(a, ttl)
	if err != nil {
		return nil, err
	}
	template := leaf(from, to)
	fill(template)
	cert, err := a.signTLS(template, key)
	if err != nil {
		return nil, err
	}
	if err := checkDatabase(cert, a.cert, key); err != nil {
		return nil, fmt.Errorf("certificate was not handed out: %w", err)
	}
	return [][]byte{cert.Raw, a.cert.Raw}, nil
}

// checkDatabase is the last look at what a database authority signed.
func checkDatabase(cert, issuer *x509.Certificate, key crypto.PublicKey) error {
	switch {
	case cert.IsCA || cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return fault.Invalid("it could sign other certificates")
	case !samePublic(cert.PublicKey, key):
		return fault.Invalid("it is for another key")
	case !bytes.Equal(cert.RawIssuer, issuer.RawSubject):
		return fault.Invalid("it names another issuer")
	case len(cert.EmailAddresses)+len(cert.URIs) > 0 || len(cert.ExtKeyUsage) == 0:
		return fault.Invalid("it carries names that nobody asked for, or is good for everything")
	}
	if _, err := identity.FromTLS(cert); err == nil {
		return fault.Invalid("it names a holder in the cluster")
	}
	return nil
}

// RevocationList signs an empty list of revoked certificates of an authority, DER: some
// servers take no certificate without one. Certificates here are short-lived, and locks
// work at once.
func (s *Signer) RevocationList(typ string) ([]byte, error) {
	a, ok := map[string]authority{TypeHost: s.host, TypeUser: s.user, TypeDB: s.database, TypeDBClient: s.databaseClient}[typ]
	if !ok {
		return nil, fault.Invalid("no list of revoked certificates for the authority %q: use %s, %s, %s or %s", clip(typ), TypeHost, TypeUser, TypeDB, TypeDBClient)
	}
	if a.cert == nil {
		return nil, errNoAuthority(typ)
	}
	now := s.now().UTC().Truncate(time.Second)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(now.Unix()), ThisUpdate: now.Add(-backdate), NextUpdate: now.Add(revocationLife),
	}, a.cert, a.tls)
	if err != nil {
		return nil, fmt.Errorf("sign the list of revoked certificates: %w", err)
	}
	return der, nil
}

func errNoAuthority(typ string) error {
	return fault.Unsupported("the cluster has no %s certificate authority: it is made when the Auth Service starts", typ)
}

// openTLS loads the first active TLS key of an authority that has no other.
func openTLS(ks keystore.Keystore, c *typesv1.CertAuthority) (authority, error) {
	pairs := c.GetSpec().GetActiveKeys().GetTls()
	if len(pairs) == 0 {
		return authority{}, fault.Invalid("it has no active keys")
	}
	cert, err := parseAuthority(c.GetSpec().GetClusterName(), pairs[0].GetCert())
	if err != nil {
		return authority{}, err
	}
	key, err := ks.Signer(pairs[0].GetPrivateKey())
	if err != nil {
		return authority{}, fmt.Errorf("TLS key: %w", err)
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return authority{}, fault.Invalid("its TLS key is not that of its certificate")
	}
	return authority{cert: cert, tls: key}, nil
}

package db

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	databasev1 "teleport/api/database/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

const (
	signTimeout = 15 * time.Second
	// maxCertificates bounds those that are kept.
	maxCertificates = 10_000
	// spare is how long a certificate must still be good to be used.
	spare = time.Minute
)

// signer keeps the certificates with which the service logs in to databases, so that
// sessions begin without a question to Auth, and while it is away.
type signer struct {
	auth    func() databasev1.DatabaseServiceClient
	now     func() time.Time
	log     *slog.Logger
	flights singleflight.Group

	mu    sync.Mutex
	certs map[signRequest]*signed
}

// signRequest is what a certificate is for.
type signRequest struct {
	database, dbUser string
	admin            bool
}

type signed struct {
	cert *tls.Certificate
	// renew is when a new one is fetched while this one is still used.
	renew, expires time.Time
}

func newSigner(auth func() databasev1.DatabaseServiceClient, now func() time.Time, log *slog.Logger) *signer {
	return &signer{auth: auth, now: now, log: log, certs: map[signRequest]*signed{}}
}

// certificate returns one that is good now. userCert is that of who wants it.
func (s *signer) certificate(ctx context.Context, r signRequest, userCert []byte) (*tls.Certificate, error) {
	s.mu.Lock()
	have := s.certs[r]
	s.mu.Unlock()
	now := s.now()
	usable := have != nil && now.Before(have.expires.Add(-spare))
	if usable && now.Before(have.renew) {
		return have.cert, nil
	}
	key := fmt.Sprintf("%t\x00%s\x00%s", r.admin, r.database, r.dbUser)
	flight := s.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signTimeout)
		defer cancel()
		c, err := s.fetch(ctx, r, userCert)
		if err != nil && usable {
			s.log.WarnContext(ctx, "the certificate for a database could not be renewed, the old one is used on", "db", r.database, "db_user", r.dbUser, "expires", have.expires, "error", err)
		}
		return c, err
	})
	if usable {
		return have.cert, nil
	}
	select {
	case res := <-flight:
		if res.Err != nil {
			return nil, res.Err
		}
		if c, ok := res.Val.(*signed); ok {
			return c.cert, nil
		}
		return nil, fault.Unreachable("there is no certificate for the database")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *signer) fetch(ctx context.Context, r signRequest, userCert []byte) (*signed, error) {
	key, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return nil, err
	}
	public, err := keys.PublicDER(key.Public())
	if err != nil {
		return nil, err
	}
	resp, err := s.auth().SignClient(ctx, &databasev1.SignClientRequest{
		Database: r.database, UserCertificate: userCert, DbUser: r.dbUser, Admin: r.admin, TlsKey: public,
	})
	if err != nil {
		return nil, fmt.Errorf("get a certificate for database user %q from the Auth Service: %w", r.dbUser, err)
	}
	if len(resp.GetCertificates()) == 0 {
		return nil, fault.Invalid("the Auth Service sent no certificate for database user %q", r.dbUser)
	}
	leaf, err := x509.ParseCertificate(resp.GetCertificates()[0])
	if err != nil {
		return nil, fault.Invalid("the certificate for database user %q cannot be read: %w", r.dbUser, err)
	}
	now := s.now()
	c := &signed{
		cert:    &tls.Certificate{Certificate: resp.GetCertificates(), PrivateKey: key, Leaf: leaf},
		expires: leaf.NotAfter, renew: now.Add(leaf.NotAfter.Sub(now) / 2),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.certs) >= maxCertificates {
		maps.DeleteFunc(s.certs, func(_ signRequest, c *signed) bool { return now.After(c.expires) })
	}
	if len(s.certs) < maxCertificates {
		s.certs[r] = c
	}
	return c, nil
}

// databaseAuthority is the type of the authority that signs database servers.
const databaseAuthority = "db"

// clientTLS is how the server of the database is verified.
func (sv *served) clientTLS() (*tls.Config, error) {
	spec := sv.db.GetSpec()
	addr, err := types.DatabaseAddr(spec.GetUri(), "1")
	if err != nil {
		return nil, err
	}
	host := hostOf(addr)
	if name := spec.GetTls().GetServerName(); name != "" {
		host = name
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if spec.GetTls().GetMode() == types.TLSInsecure {
		cfg.InsecureSkipVerify = true
		return cfg, nil
	}
	if cfg.RootCAs, err = sv.roots(); err != nil {
		return nil, err
	}
	if spec.GetTls().GetMode() != types.TLSVerifyCA {
		return cfg, nil
	}
	roots := cfg.RootCAs
	cfg.InsecureSkipVerify = true
	now := sv.s.cfg.Now
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return fault.Unauthenticated("the database showed no certificate")
		}
		between := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			between.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now()})
		return err
	}
	return cfg, nil
}

// roots are the authorities that may have signed the server: those of the resource, or
// else those of the cluster; and the system's if the resource says so.
func (sv *served) roots() (*x509.CertPool, error) {
	spec := sv.db.GetSpec().GetTls()
	pool := x509.NewCertPool()
	if spec.GetTrustSystemCertPool() {
		system, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("read the system's certificate authorities: %w", err)
		}
		pool = system
	}
	if text := spec.GetCaCert(); text != "" {
		if !pool.AppendCertsFromPEM([]byte(text)) {
			return nil, fault.Invalid("tls.ca_cert of database %q has no certificate", sv.name())
		}
		return pool, nil
	}
	for _, c := range sv.s.authorities() {
		if c.GetSpec().GetType() != databaseAuthority {
			continue
		}
		for _, k := range []*typesv1.CertAuthorityKeys{c.GetSpec().GetActiveKeys(), c.GetSpec().GetAdditionalTrustedKeys()} {
			for _, pair := range k.GetTls() {
				if block, _ := pem.Decode([]byte(pair.GetCert())); block != nil {
					if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
						pool.AddCert(cert)
					}
				}
			}
		}
	}
	return pool, nil
}

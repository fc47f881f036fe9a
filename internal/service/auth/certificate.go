package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/retry"
	"teleport/internal/types"
)

// certificateTTL is the life of the server certificate; it is renewed at a third.
const certificateTTL = 24 * time.Hour

// renewCertificate makes a new certificate that the Auth Service shows. Its key is
// made anew each time and never stored.
func (s *Service) renewCertificate() error {
	key, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return err
	}
	public, err := keys.PublicDER(key.Public())
	if err != nil {
		return err
	}
	state := s.authorities.Load()
	der, _, err := state.signer.Host(ca.HostRequest{
		Identity: identity.Identity{Cluster: s.ClusterName(), Host: &identity.Host{
			ID: s.cfg.HostID, Name: s.cfg.Hostname, Roles: []types.SystemRole{types.RoleAuth}, Service: types.RoleAuth,
		}},
		TLSKey: public, Principals: s.principals(), TTL: certificateTTL,
	})
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	chain := [][]byte{der}
	// Clients that know only a pin find the authority in the chain.
	for _, authority := range state.trust.HostCertificates() {
		if leaf.CheckSignatureFrom(authority) == nil {
			chain = append(chain, authority.Raw)
			break
		}
	}
	s.certificate.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	return nil
}

// principals are the names that clients may reach this Auth Service under.
func (s *Service) principals() []string {
	var out []string
	for _, addr := range append(slices.Clone(s.cfg.PublicAddrs), s.cfg.Listener.Addr().String()) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

// keepCertificate renews the server certificate until ctx ends.
func (s *Service) keepCertificate(ctx context.Context) error {
	for retry.Sleep(ctx, certificateTTL/3+retry.Jitter(certificateTTL/12)) == nil {
		if err := s.renewCertificate(); err != nil {
			s.cfg.Log.ErrorContext(ctx, "cannot renew the certificate of the auth service", "error", err)
		}
	}
	return nil
}

func (s *Service) serverTLS() *tls.Config {
	return ca.ServerTLS(s.certificate.Load, s.Trust, tls.VerifyClientCertIfGiven, "h2")
}

func (s *Service) identify(cs tls.ConnectionState) (*identity.Identity, error) {
	return s.Trust().Identify(cs)
}

// verifyProxy accepts the certificates of Proxies of this cluster.
func (s *Service) verifyProxy(cert *x509.Certificate) error {
	id, err := s.Trust().VerifyTLS([]*x509.Certificate{cert}, s.cfg.Now())
	if err != nil {
		return err
	}
	if !id.Host.Serves(types.RoleProxy) {
		return fault.Denied("the certificate of %s is not that of a Proxy", id.Name())
	}
	return nil
}

// followAuthorities takes over changes of the authorities, which another Auth
// Service of the cluster may make, until ctx ends.
func (s *Service) followAuthorities(ctx context.Context) error {
	backoff := retry.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}
	for {
		err := s.watchAuthorities(ctx, backoff.Reset)
		if ctx.Err() != nil {
			break
		}
		s.cfg.Log.WarnContext(ctx, "lost track of the certificate authorities, reading them anew", "error", err)
		if backoff.Wait(ctx) != nil {
			break
		}
	}
	return nil
}

func (s *Service) watchAuthorities(ctx context.Context, following func()) error {
	revision, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	w, err := s.store.Watch(ctx, []string{types.KindCertAuthority}, revision)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := s.adoptAuthorities(ctx); err != nil {
		return err
	}
	for range w.Changes() {
		following()
		if err := s.adoptAuthorities(ctx); err != nil {
			return err
		}
	}
	return errors.Join(errors.New("watch ended"), w.Err())
}

// adoptAuthorities reads the authorities and shows a certificate of the new ones.
func (s *Service) adoptAuthorities(ctx context.Context) error {
	before := s.Trust().Pins()
	if err := s.loadAuthorities(ctx); err != nil {
		return err
	}
	if slices.Equal(before, s.Trust().Pins()) {
		return nil
	}
	return s.renewCertificate()
}

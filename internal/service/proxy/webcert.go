package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// webCertificate is what browsers and strangers are shown.
type webCertificate struct {
	pairs []Keypair
	// own is the Proxy's host certificate, shown when there are no pairs.
	own    func() *tls.Certificate
	loaded atomic.Pointer[[]tls.Certificate]
}

func newWebCertificate(pairs []Keypair, own func() *tls.Certificate) (*webCertificate, error) {
	w := &webCertificate{pairs: pairs, own: own}
	return w, w.load()
}

// load reads all pairs, or changes nothing and returns all problems.
func (w *webCertificate) load() error {
	certs := make([]tls.Certificate, 0, len(w.pairs))
	var problems []error
	for _, p := range w.pairs {
		cert, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
		switch {
		case err != nil:
			problems = append(problems, fault.Invalid("proxy_service.https_keypairs: certificate %q with key %q: %w", p.CertFile, p.KeyFile, err))
		case time.Now().After(cert.Leaf.NotAfter):
			problems = append(problems, fault.Invalid("proxy_service.https_keypairs: certificate %q expired at %s",
				p.CertFile, cert.Leaf.NotAfter.UTC().Format(time.RFC3339)))
		default:
			certs = append(certs, cert)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	w.loaded.Store(&certs)
	return nil
}

// reload reads the pairs again at each interval until ctx ends. What cannot be read
// leaves the certificates of before in use.
func (w *webCertificate) reload(ctx context.Context, interval time.Duration, log *slog.Logger) error {
	if interval <= 0 || len(w.pairs) == 0 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := w.load(); err != nil {
				log.ErrorContext(ctx, "web certificates were not reloaded, the ones of before stay in use", "error", err)
			}
		}
	}
}

// get chooses the certificate for a visitor. Who asks for the Proxy by its name
// inside the cluster (agents and clients that know its pin) is shown its own.
func (w *webCertificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	certs := *w.loaded.Load()
	if hello.ServerName == identity.ServerName(types.RoleProxy) {
		certs = nil
	}
	for i := range certs {
		if hello.SupportsCertificate(&certs[i]) == nil {
			return &certs[i], nil
		}
	}
	if len(certs) > 0 {
		return &certs[0], nil
	}
	if own := w.own(); own != nil {
		return own, nil
	}
	return nil, fault.Unsupported("this Proxy has no certificate")
}

// config returns a configuration for servers that anybody may talk to. Browsers and
// balancers may be of TLS 1.2, our own clients are not.
func (w *webCertificate) config(oldest uint16, protos ...string) *tls.Config {
	return &tls.Config{MinVersion: oldest, GetCertificate: w.get, NextProtos: protos, SessionTicketsDisabled: true}
}

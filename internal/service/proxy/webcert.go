package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"teleport/internal/fault"
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

// load reads all pairs, or changes nothing.
func (w *webCertificate) load() error {
	certs := make([]tls.Certificate, 0, len(w.pairs))
	for _, p := range w.pairs {
		cert, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
		if err != nil {
			return fault.Invalid("proxy_service.https_keypairs: certificate %q with key %q: %w", p.CertFile, p.KeyFile, err)
		}
		if now := time.Now(); now.After(cert.Leaf.NotAfter) {
			return fault.Invalid("proxy_service.https_keypairs: certificate %q expired at %s", p.CertFile, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		certs = append(certs, cert)
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

// get chooses the certificate for a visitor.
func (w *webCertificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	certs := *w.loaded.Load()
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
	return nil, fmt.Errorf("this Proxy has no certificate")
}

// config returns a configuration for servers that anybody may talk to.
func (w *webCertificate) config(protos ...string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: w.get, NextProtos: protos}
}

// Package webapp serves applications to browsers and to programs that speak HTTPS, at
// the Proxy: it signs people in, gives each application a cookie of its own, and passes
// requests on to the agent of the application as they are. It decides nothing about
// access: Auth says whether a session may be, and the agent whether a request may pass.
//
// How a browser gets in. Host names are those of the application (A) and the Proxy (P).
//
//	A /anything           no session: cookie with a random state, redirect to
//	P /web/launch/A       no session at the Proxy: redirect to
//	P /web/login          name, password, one-time code; cookie; redirect back to
//	P /web/launch/A       a new session at A; a form that sends its secret, with the state, to
//	A /x-teleport-auth    the state fits the cookie: cookie of the session, redirect to
//	A /anything           passed on to the agent
//
// Programs show a certificate for the application in place of a cookie.
package webapp

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	appv1 "teleport/api/app/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/budget"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/cors"
	"teleport/internal/fault"
	"teleport/internal/identity"
)

// Config is what New needs; all but Now is required.
type Config struct {
	// PublicAddr is the host:port that browsers know the Proxy by.
	PublicAddr string
	Cache      *cache.Cache
	Trust      func() *ca.Trust
	Login      loginv1.LoginServiceClient
	Apps       appv1.AppServiceClient
	// Dial connects to an agent that serves the application to the caller, and returns
	// the id of its host.
	Dial func(ctx context.Context, caller *identity.Identity, app, clientAddr string) (net.Conn, string, error)
	// Enter notes a connection of the caller to a host, so that a lock can end it, and
	// returns what takes it off again. It fails if a lock is in the way.
	Enter func(caller *identity.Identity, hostID string, conn net.Conn) (leave func(), err error)
	// AllowLogin reports whether the address may try to log in once more.
	AllowLogin func(addr string) bool
	Log        *slog.Logger
	Now        func() time.Time
}

const (
	// signRate and signBurst bound how often one source makes this Proxy ask Auth who a
	// cookie or a certificate belongs to.
	signRate, signBurst = 20, 200
	maxSources          = 10_000
	// callTimeout bounds one call to Auth. Calls on behalf of browsers are the Proxy's own,
	// and say in a field where the browser is: a relayed one would be that of nobody.
	callTimeout = 10 * time.Second
)

// Handler serves applications. It is safe for concurrent use.
type Handler struct {
	cfg      Config
	host     string // of the Proxy, in lower case
	port     string
	hosts    *hosts
	sessions *sessions
	signs    *budget.Sources
	origin   *http.CrossOriginProtection
}

// New returns a Handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Cache == nil || cfg.Trust == nil || cfg.Login == nil || cfg.Apps == nil || cfg.Dial == nil || cfg.Enter == nil || cfg.AllowLogin == nil || cfg.Log == nil {
		return nil, errors.New("webapp: all fields of Config but Now are required")
	}
	host, port, err := net.SplitHostPort(cfg.PublicAddr)
	if err != nil {
		return nil, fault.Invalid("public address %q of the Proxy: expected host:port", cfg.PublicAddr)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	h := &Handler{
		cfg: cfg, host: host, port: port, hosts: &hosts{cache: cfg.Cache, proxy: host},
		signs: budget.NewSources(signRate, signBurst, maxSources), origin: http.NewCrossOriginProtection(),
	}
	h.sessions = newSessions(h)
	return h, nil
}

// Serves reports whether a request or a TLS handshake for the host, with or without a
// port, is for an application.
func (h *Handler) Serves(host string) bool {
	_, ok := h.hosts.find(bareHost(host))
	return ok
}

// Close ends the connections to agents that are idle.
func (h *Handler) Close() { h.sessions.close() }

// bareHost returns a Host header without its port, in lower case.
func bareHost(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// authority is host:port as a URL has it: without the port of HTTPS.
func (h *Handler) authority(host string) string {
	if h.port == "443" {
		if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
			return "[" + host + "]"
		}
		return host
	}
	return net.JoinHostPort(host, h.port)
}

// ServeHTTP serves a request whose Host is that of an application.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	app, ok := h.hosts.find(bareHost(r.Host))
	if !ok {
		h.fail(w, r, fault.NotFound("there is no application at %q", bareHost(r.Host)))
		return
	}
	switch r.URL.Path {
	case authPath:
		h.finish(w, r, app)
		return
	case startPath:
		h.start(w, r)
		return
	case logoutPath:
		h.leave(w, r)
		return
	}
	if app.cors != nil && cors.Preflight(r) {
		cors.Answer(w, r, app.cors)
		return
	}
	one, err := h.authenticate(r, app)
	if err != nil {
		h.challenge(w, r, app, err)
		return
	}
	// Uploads, downloads and streams of who is logged in take as long as they take.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	h.forward(w, r, app, one)
}

// authenticate finds out whose request it is.
func (h *Handler) authenticate(r *http.Request, app target) (*session, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return h.sessions.byCertificate(r, app, r.TLS.PeerCertificates)
	}
	if c, err := r.Cookie(sessionCookie); err == nil && c.Value != "" && len(c.Value) <= maxSecret {
		return h.sessions.byCookie(r, app, c.Value)
	}
	return nil, errNoSession
}

// errNoSession is why a request is challenged that shows nothing.
var errNoSession = fault.Unauthenticated("no session: log in")

// RequestCertificates is for the GetConfigForClient of the port: whoever asks for an
// application may show a certificate. The certificate is verified with the request.
func (h *Handler) RequestCertificates(base *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	withCertificates := base.Clone()
	withCertificates.ClientAuth = tls.RequestClientCert
	withCertificates.GetConfigForClient = nil
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if h.Serves(hello.ServerName) {
			return withCertificates, nil
		}
		return nil, nil
	}
}

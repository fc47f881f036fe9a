package client

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"teleport/internal/fault"
)

const (
	// ALPNHTTP is what a local proxy asks the agent of an HTTP application for.
	ALPNHTTP = "http/1.1"
	// ALPNHTTP2 is the same for programs that speak HTTP/2.
	ALPNHTTP2 = "h2"

	headTime   = 30 * time.Second
	idleTime   = 2 * time.Minute
	maxHead    = 1 << 20
	idleToApp  = 64
	maxStreams = 250
)

// LocalApp lets programs on this machine reach one HTTP application. Whatever can
// connect is served in the user's name, and so can a page of any web site in the user's
// browser: requests for another host than this one, and those that pages of other sites
// have the browser make, are refused.
type LocalApp struct {
	// Dial connects to the agent, asking for an ALPN protocol: ALPNHTTP or ALPNHTTP2.
	Dial func(ctx context.Context, alpn string) (net.Conn, error)
	// Note tells the user something in one line.
	Note func(string)

	notes notes
}

// Serve answers requests until ctx ends or the listener fails; then it closes what is
// open. That ctx ends is no error.
func (a *LocalApp) Serve(ctx context.Context, ln net.Listener) error {
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	one, two := a.transport(ALPNHTTP), a.transport(ALPNHTTP2)
	defer one.CloseIdleConnections()
	defer two.CloseIdleConnections()
	server := &http.Server{
		Handler:           a.handler(one, two),
		Protocols:         &both,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: headTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          log.New(io.Discard, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(&limitedListener{Listener: ln, slots: make(chan struct{}, maxLocal)}); ctx.Err() == nil {
		return fault.Unreachable("listen on %s: %w", ln.Addr(), err)
	}
	return nil
}

// transport speaks one version of HTTP with the agent: the one that the program speaks,
// since only the first has upgrades and only the second has trailers at any point.
func (a *LocalApp) transport(alpn string) *http.Transport {
	t := &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return a.Dial(ctx, alpn) },
		Protocols:           new(http.Protocols),
		MaxIdleConns:        idleToApp,
		MaxIdleConnsPerHost: idleToApp,
		IdleConnTimeout:     idleTime,
		DisableCompression:  true,
		ForceAttemptHTTP2:   alpn == ALPNHTTP2,
	}
	t.Protocols.SetHTTP1(alpn == ALPNHTTP)
	t.Protocols.SetHTTP2(alpn == ALPNHTTP2)
	return t
}

func (a *LocalApp) handler(one, two http.RoundTripper) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", "app"
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.Host = r.In.Host
		},
		Transport:     byVersion{one, two},
		FlushInterval: -1,
		BufferPool:    &buffers{},
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler:  a.failed,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if problem := foreign(r); problem != "" {
			a.notes.tell(a.Note, problem)
			writeProblem(w, http.StatusForbidden, problem)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

// failed answers a request that did not reach the application.
func (a *LocalApp) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
		return // the program is gone, or all of tsh is going
	}
	a.notes.tell(a.Note, err.Error())
	status := http.StatusBadGateway
	switch {
	case errors.Is(err, fault.ErrUnauthenticated):
		status = http.StatusUnauthorized
	case errors.Is(err, fault.ErrDenied):
		status = http.StatusForbidden
	}
	writeProblem(w, status, firstLine(err.Error()))
}

// writeProblem answers a request in the place of the application.
func writeProblem(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "Teleport: "+text, status)
}

// byVersion sends a request on in the version of HTTP that it came in.
type byVersion struct{ one, two http.RoundTripper }

// RoundTrip sends one request.
func (b byVersion) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 {
		return b.two.RoundTrip(r)
	}
	return b.one.RoundTrip(r)
}

// foreign says why a request is refused that a page of another web site may be behind,
// or "". Such a page can have a browser send requests here, and it can give itself a
// name that leads here (DNS rebinding); then the Host header has that name.
func foreign(r *http.Request) string {
	if !isLocal(r.Host) {
		return "requests for the host " + quoted(r.Host) + " are not served here: use localhost or 127.0.0.1"
	}
	if origins := r.Header["Origin"]; len(origins) > 0 {
		if len(origins) == 1 && localOrigin(origins[0]) {
			return ""
		}
		return "requests of pages from " + quoted(strings.Join(origins, ", ")) + " are not served: only those of pages from localhost are"
	}
	// Without an Origin it is a program, or a request for which browsers send none:
	// what they do on behalf of another site is in Sec-Fetch-Site. Following a link to
	// here is no harm.
	sites := r.Header["Sec-Fetch-Site"]
	link := r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document" &&
		(r.Method == http.MethodGet || r.Method == http.MethodHead)
	if slices.Contains(sites, "cross-site") && !link {
		return "requests that pages of other web sites make are not served: only those of pages from localhost are"
	}
	return ""
}

// localOrigin reports whether a page comes from this machine.
func localOrigin(origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && isLocal(u.Host)
}

// isLocal reports whether host or host:port names this machine in a way that nobody
// else can.
func isLocal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// quoted makes a name from outside fit for a message.
func quoted(s string) string { return `"` + firstLine(s) + `"` }

// limitedListener refuses connections beyond the number of slots.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

// Accept returns a connection that has a slot.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: conn, give: func() { <-l.slots }}, nil
		default:
			_ = conn.Close()
		}
	}
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	once sync.Once
	give func()
}

// Close closes the connection.
func (c *slotConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.give)
	return err
}

// buffers are for copying.
type buffers struct{ pool sync.Pool }

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, relayBuffer)
}

// Put takes it back.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

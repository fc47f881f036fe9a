// Package clickhouse is the engine for ClickHouse's HTTP interface
// (https://clickhouse.com/docs/interfaces/http).
//
// Each request names its user by itself, in a header, in a parameter or by basic
// authentication. The engine takes all of that away, holds it against the user that the
// session was allowed to be, and writes the user anew together with
// X-ClickHouse-SSL-Certificate-Auth, so that the server takes the client certificate and
// nothing else for a proof. Queries are recorded as they pass, from the parameter and from
// the body, and so are the errors that are answered.
//
// The native protocol is another one, and is not spoken here: where a block of its data
// ends can only be told by who knows how each type of a column is written.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

const (
	defaultPort = "8443"
	// defaultUser is who a request is that names nobody.
	defaultUser  = "default"
	loginTimeout = 30 * time.Second
	// headerTimeout bounds the time that the head of a request takes.
	headerTimeout = time.Minute
	// maxHead is what the server itself takes at most of an address, and headers.
	maxHead = 1<<20 + 64<<10
	// maxAtOnce bounds the requests of one connection, which are several with HTTP/2.
	maxAtOnce = 16
	// farewell is how long a client is told why the session ended.
	farewell = 800 * time.Millisecond
)

// Engine speaks HTTP as ClickHouse does.
type Engine struct{}

// New returns the engine.
func New() *Engine { return &Engine{} }

// Protocols returns the name by which databases ask for the engine.
func (*Engine) Protocols() []string { return []string{types.ProtocolClickHouseHTTP} }

// StartTLS returns at once: clients begin with TLS.
func (*Engine) StartTLS(context.Context, *typesv1.Database, net.Conn) (any, error) { return nil, nil }

// Serve carries one connection, with all its requests.
func (*Engine) Serve(ctx context.Context, s *engine.Session) error {
	c := &session{s: s, ended: func() error { return context.Cause(ctx) }}
	transport := &http.Transport{
		DialTLSContext: c.dial, DisableCompression: true,
		MaxConnsPerHost: maxAtOnce, MaxIdleConnsPerHost: 2, MaxResponseHeaderBytes: maxHead,
	}
	defer transport.CloseIdleConnections()
	c.proxy = &httputil.ReverseProxy{
		Rewrite: c.rewrite, Transport: transport, FlushInterval: -1, ModifyResponse: c.answered, ErrorHandler: c.failed,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	over := make(chan struct{})
	closed := sync.OnceFunc(func() { close(over) })
	server := &http.Server{
		Handler: c, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHead,
		// What net/http would log is told to the client, or is of no interest.
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxAtOnce},
		Protocols:   new(http.Protocols),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				closed()
			}
		},
	}
	// A native client may have chosen HTTP/2 in its TLS; inside, its preface tells.
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	_ = server.Serve(&single{conn: s.Client})
	select {
	case <-over:
	case <-ctx.Done():
		// Requests that are being answered are told why; who asks nothing finds the end.
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		_ = server.Shutdown(bye)
		cancel()
	}
	_ = server.Close()
	<-over
	err := c.leave()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// single is a listener to which one client comes, and nobody else.
type single struct{ conn net.Conn }

// Accept returns the connection, once.
func (l *single) Accept() (net.Conn, error) {
	conn := l.conn
	if conn == nil {
		return nil, net.ErrClosed
	}
	l.conn = nil
	return conn, nil
}

// Close has nothing to do: the connection is the server's.
func (*single) Close() error { return nil }

// Addr is nobody's.
func (*single) Addr() net.Addr { return &net.TCPAddr{} }

// session is one connection.
type session struct {
	s        *engine.Session
	proxy    *httputil.ReverseProxy
	requests sync.WaitGroup
	// ended says why the session ended.
	ended func() error

	mu sync.Mutex
	// allowed says that the session is user's, who was in database first.
	allowed        bool
	user, database string
	// refused is why the session did not begin, or what went wrong as it never should.
	refused error
	// busy counts the requests that are being answered; closed says that no more come.
	busy   int
	closed bool
}

type requestKey struct{}

// ServeHTTP serves one request.
func (c *session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.enter() {
		return
	}
	defer c.exit()
	defer func() {
		switch p := recover(); p {
		case nil:
			return
		case http.ErrAbortHandler:
		default:
			c.mu.Lock()
			c.refused = fmt.Errorf("a request failed in a way that it never should: %v\n%s", p, debug.Stack())
			c.mu.Unlock()
		}
		panic(http.ErrAbortHandler) //nolint:forbidigo // this is how a handler of net/http breaks an answer off
	}()
	if err := c.serve(w, r); err != nil {
		w.Header().Set("Connection", "close")
		tell(w, err)
	}
}

// enter counts a request in.
func (c *session) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.requests.Add(1)
	c.busy++
	c.s.Host.Idle(false)
	return true
}

func (c *session) exit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	c.s.Host.Idle(c.busy == 0)
	c.requests.Done()
}

// leave waits for the last request, and returns what kept the session from its work.
func (c *session) leave() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.requests.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused
}

func (c *session) serve(w http.ResponseWriter, r *http.Request) error {
	a, err := read(r)
	if err != nil {
		return err
	}
	if a.user == "" {
		a.user = defaultUser
		if route := c.s.User.Database; route != nil && route.User != "" {
			a.user = route.User
		}
	}
	if err := c.allow(r.Context(), a); err != nil {
		return err
	}
	limits := c.s.Host.Limits()
	if a.opaque != "" && limits.RefuseUnknown {
		return fault.Unsupported("the body is compressed by %s, and this database refuses what cannot be read: send it as it is, or with gzip", a.opaque)
	}
	rec := c.record(a, r, limits.Query)
	// An answer may begin while the body still comes, such as an error of an insert.
	_ = http.NewResponseController(w).EnableFullDuplex()
	c.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, rec)))
	return nil
}

// allow decides who the session is at its first request, and holds later ones against
// that. A database is none of the walls of the server, so that another one than the first
// is recorded and not refused.
func (c *session) allow(ctx context.Context, a *asked) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.refused != nil:
		return c.refused
	case !c.allowed:
		if err := c.s.Host.Authorize(ctx, a.user, a.database); err != nil {
			c.refused = err
			return err
		}
		c.allowed, c.user, c.database = true, a.user, a.database
	case a.user != c.user:
		return fault.Denied("access denied: this connection is that of database user %q, and a request on it wants to be %q: open another connection", c.user, a.user)
	}
	return nil
}

// dial connects to the server as the user of the session.
func (c *session) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	// The methods of the host are for one goroutine at a time.
	c.mu.Lock()
	defer c.mu.Unlock()
	var conn *tls.Conn
	err := engine.Connect(ctx, c.s.Host, engine.Login{
		User: c.user, Port: defaultPort, Within: loginTimeout, Late: fault.Unreachable("the ClickHouse server did not answer within %s", loginTimeout),
	}, func(ctx context.Context, raw net.Conn, config *tls.Config) error {
		conn = tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			return fault.Unreachable("TLS with the ClickHouse server: %v: does https_port listen there, with the files of tctl auth sign --format=db?", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// rewrite makes the request that the server gets.
func (c *session) rewrite(p *httputil.ProxyRequest) {
	rec, _ := p.In.Context().Value(requestKey{}).(*record)
	out := p.Out
	out.URL.Scheme, out.URL.Host = "https", upstreamHost(c.s.Database)
	out.URL.RawQuery, out.URL.ForceQuery = rec.asked.rest, false
	out.Host = ""
	rec.asked.login(out.Header, c.user)
}

// upstreamHost is what the server is called in requests.
func upstreamHost(db *typesv1.Database) string {
	addr, err := types.DatabaseAddr(db.GetSpec().GetUri(), defaultPort)
	if err != nil {
		return "clickhouse"
	}
	return addr
}

// failed tells the client what keeps the server from answering.
func (c *session) failed(w http.ResponseWriter, r *http.Request, err error) {
	rec, _ := r.Context().Value(requestKey{}).(*record)
	if ended := c.ended(); ended != nil {
		err = ended
	} else if kind := fault.Kind(err); kind == nil && !errors.Is(err, context.Canceled) {
		err = fault.Unreachable("the ClickHouse server broke the connection off: %v", err)
	}
	rec.failed(err)
	w.Header().Set("Connection", "close")
	tell(w, err)
}

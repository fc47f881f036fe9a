package app

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// What a client says by ALPN that it speaks inside.
const (
	protoH2   = "h2"
	protoHTTP = "http/1.1"
	protoOld  = "http/1.0"
	protoTCP  = "teleport-tcp"
)

const (
	// handshakeTimeout bounds the time until it is known who connects.
	handshakeTimeout = 30 * time.Second
	// stallTimeout ends a connection whose other side takes nothing.
	stallTimeout = 10 * time.Minute
	// refusedLife is how long a connection lives that only gets to hear why it is
	// refused.
	refusedLife = 30 * time.Second
	// never is a deadline that no connection lives to see.
	never = 100 * 365 * 24 * time.Hour
)

// connection is a connection of a user. It is the net.Conn of what is inside of TLS.
//
// It does not show that it is TLS: the HTTP server takes HTTP/2 from others only if it is
// in the clear.
type connection struct {
	net.Conn
	tls   *tls.Conn
	s     *Service
	raw   net.Conn
	about Connection
	// addr is the client's.
	addr net.Addr
	id   *identity.Identity
	// cert is the user's certificate and print its SHA-256.
	cert  []byte
	print [sha256.Size]byte
	// sv and session are nil if the user is refused.
	sv      *served
	session *session
	// refused is why the user may not use the application, or nil.
	refused error

	// reason is why the service ended the connection.
	reason atomic.Pointer[string]
	closed chan struct{}
	once   sync.Once
	// active is when something came or went last, and stall until when a write may take,
	// both in nanoseconds since 1970.
	active, stall atomic.Int64
	// strict watches over the framing of HTTP/1.
	strict *framing
}

// HandleConn serves one connection that came through a tunnel and returns when it is over.
func (s *Service) HandleConn(ctx context.Context, conn net.Conn, about Connection) {
	defer func() { _ = conn.Close() }()
	c := &connection{s: s, raw: conn, about: about, addr: parseAddr(about.ClientAddr), closed: make(chan struct{})}
	gone, ok := s.enter(c)
	if !ok {
		return
	}
	defer gone()
	log := s.cfg.Log.With("app", about.Resource, "addr", about.ClientAddr)
	// Nothing that comes from the network ends the process.
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(ctx, "a connection to an application failed in a way that it never should", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	if err := c.greet(ctx); err != nil {
		log.InfoContext(ctx, "a connection to an application was not authenticated", "error", err)
		return
	}
	c.touch()
	leave, err := c.admit(ctx)
	if err != nil {
		c.refused = err
	}
	defer leave()
	stop := context.AfterFunc(ctx, func() { c.end("the tunnel has ended") })
	defer stop()
	c.serve(ctx)
}

// greet ends TLS and learns who the user is.
func (c *connection) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c.tls = tls.Server(c.raw, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoH2, protoHTTP, protoOld, protoTCP},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert := c.s.cfg.Holder.Certificate(types.RoleApp); cert != nil {
				return cert, nil
			}
			return nil, fault.Unsupported("this host has no certificate for the Application Service")
		},
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			c.id, err = c.s.verify(cs.PeerCertificates)
			return err
		},
	})
	c.Conn = c.tls
	stop := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	err := c.tls.HandshakeContext(ctx)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	c.cert = c.tls.ConnectionState().PeerCertificates[0].Raw
	c.print = sha256.Sum256(c.cert)
	return nil
}

// verify returns whose certificate it is. It must be for an application.
func (s *Service) verify(chain []*x509.Certificate) (*identity.Identity, error) {
	id, err := s.cfg.Holder.Trust().VerifyTLS(chain, s.cfg.Now())
	switch {
	case err != nil:
		return nil, err
	case id.User == nil:
		return nil, fault.Unauthenticated("a host certificate was shown, that of a user for an application is needed")
	case id.User.App == nil:
		return nil, fault.Unauthenticated("the certificate of %q is not for an application: get one with tsh apps login", id.User.Name)
	}
	return id, nil
}

// serve speaks what the client wants to.
func (c *connection) serve(ctx context.Context) {
	proto := c.tls.ConnectionState().NegotiatedProtocol
	tcp := proto == protoTCP || proto == "" && c.sv != nil && c.sv.target.tcp()
	if c.refused != nil {
		timer := time.AfterFunc(refusedLife, func() { _ = c.raw.Close() })
		defer timer.Stop()
	}
	switch {
	case tcp:
		c.serveTCP(ctx)
	case proto == protoH2:
		c.s.h2.serve(c)
	default:
		c.strict = newFraming()
		c.s.h1.serve(c)
	}
}

// RemoteAddr is the client's address.
func (c *connection) RemoteAddr() net.Addr {
	if c.addr != nil {
		return c.addr
	}
	return c.Conn.RemoteAddr()
}

// Read reads what the user sends. What is not clearly one request after the other comes
// out as something that no server takes for a request.
func (c *connection) Read(p []byte) (int, error) {
	if c.strict != nil {
		if n, spoilt := c.strict.leftover(p); spoilt {
			return n, nil
		}
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
		if c.session != nil {
			c.session.received.Add(int64(n))
		}
		if c.strict != nil {
			n = c.strict.check(p[:n])
			if n == 0 {
				n, _ = c.strict.leftover(p)
			}
		}
	}
	return n, err
}

// Write sends to the user.
func (c *connection) Write(p []byte) (int, error) {
	now := time.Now()
	if until := now.Add(stallTimeout).UnixNano(); until-c.stall.Load() > int64(stallTimeout/4) {
		c.stall.Store(until)
		if err := c.Conn.SetWriteDeadline(time.Unix(0, until)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.touch()
		if c.session != nil {
			c.session.sent.Add(int64(n))
		}
	}
	return n, err
}

// SetWriteDeadline is the library's way to forget a deadline; ours stays.
func (c *connection) SetWriteDeadline(t time.Time) error {
	c.stall.Store(0)
	return c.Conn.SetWriteDeadline(t)
}

// SetReadDeadline sets when a Read gives up. The HTTP/1 server takes Reads back that are
// under way, after each request and before a web socket, and a tunnel gives back only those
// that began with a deadline: so there always is one.
func (c *connection) SetReadDeadline(t time.Time) error {
	if t.IsZero() && c.strict != nil {
		t = time.Now().Add(never)
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *connection) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite tells the user that nothing more comes.
func (c *connection) CloseWrite() error { return c.tls.CloseWrite() }

func (c *connection) touch() { c.active.Store(time.Now().UnixNano()) }

// Close closes the connection.
func (c *connection) Close() error {
	var err error
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// end ends the connection at once; the first reason counts.
func (c *connection) end(reason string) {
	if c.reason.CompareAndSwap(nil, &reason) {
		// Without a farewell, which a peer could hold up.
		_ = c.raw.Close()
		c.once.Do(func() { close(c.closed) })
	}
}

// registry knows the connections that are open now.
type registry struct {
	mu    sync.Mutex
	conns map[*connection]bool
	// perUser counts them by user and application.
	perUser map[string]int
	// again has a value when all are to be looked at.
	again chan struct{}
}

func newRegistry() *registry {
	return &registry{conns: map[*connection]bool{}, perUser: map[string]int{}, again: make(chan struct{}, 1)}
}

// maxPerUser bounds the connections of one user to one application.
const maxPerUser = 512

// take counts a connection, unless the user has too many.
func (r *registry) take(c *connection) error {
	key := c.id.User.Name + "\x00" + c.id.User.App.Name
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perUser[key] >= maxPerUser {
		return fault.Limit("you have %d connections to application %q already: close some", maxPerUser, c.id.User.App.Name)
	}
	r.perUser[key]++
	return nil
}

// add adds a connection that was counted, and has all that it needs.
func (r *registry) add(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
}

// remove takes off a connection that was counted.
func (r *registry) remove(c *connection) {
	key := c.id.User.Name + "\x00" + c.id.User.App.Name
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	if r.perUser[key]--; r.perUser[key] <= 0 {
		delete(r.perUser, key)
	}
}

func (r *registry) list() []*connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*connection, 0, len(r.conns))
	for c := range r.conns {
		out = append(out, c)
	}
	return out
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// endApp ends the connections to an application that is not served as it was.
func (r *registry) endApp(name string) {
	for _, c := range r.list() {
		if c.sv.name == name && c.s.find(name) != c.sv {
			c.end("the application was changed or is not served here any more: connect again")
		}
	}
}

// recheck has all connections decided about again.
func (r *registry) recheck() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

package db

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// session is one connection of a user to a database; it is what the engine has as its
// Host.
type session struct {
	s      *Service
	sv     *served
	id     string
	user   *identity.Identity
	cert   []byte
	conn   Connection
	client *clientConn
	began  time.Time
	audit  *record
	events prometheus.Counter
	// precheck is why the connection gets nothing, whatever the engine asks for.
	precheck error
	// served is closed when the engine is done.
	served chan struct{}

	cancel context.CancelCauseFunc
	// reason is why the service ended the session, for the audit log.
	reason atomic.Pointer[string]
	// state is what the engine said by Idle.
	state atomic.Int32

	mu sync.Mutex
	// dbUser and dbName are what was authorized, once authorized is true.
	authorized     bool
	dbUser, dbName string
	// provisioning is set while the admin user may be used.
	provisioning bool
	// undo gives up the user that the session made.
	undo func(context.Context)
	// upstream are the connections to the database; closed says that there are no more.
	upstream map[net.Conn]struct{}
	closed   bool
}

const (
	stateUnknown = iota
	stateIdle
	stateBusy
)

func newSession(s *Service, sv *served, id *identity.Identity, cert []byte, client *clientConn, c Connection, cancel context.CancelCauseFunc) *session {
	h := &session{
		s: s, sv: sv, id: uuid.NewString(), user: id, cert: cert, client: client, conn: c, began: s.cfg.Now(), cancel: cancel,
		upstream: map[net.Conn]struct{}{}, served: make(chan struct{}),
	}
	h.events = s.metrics.events.WithLabelValues(h.protocol())
	h.audit = newRecord(h)
	return h
}

// protocol is that of the database.
func (h *session) protocol() string { return h.sv.db.GetSpec().GetProtocol() }

// end ends the session; the first reason counts. It does not wait.
func (h *session) end(reason error) {
	text := reason.Error()
	if h.reason.CompareAndSwap(nil, &text) {
		h.cancel(reason)
	}
}

// Idle notes whether the session could end now.
func (h *session) Idle(idle bool) {
	if idle {
		h.state.Store(stateIdle)
		return
	}
	h.state.Store(stateBusy)
}

// quiet is the silence that stands for idleness where the engine does not know.
const quiet = time.Second

func (h *session) idle() bool {
	switch h.state.Load() {
	case stateIdle:
		return true
	case stateBusy:
		return false
	}
	return h.client.silence() > quiet
}

// Audit returns where the engine says what happens.
func (h *session) Audit() engine.Audit { return h.audit }

const (
	// maxMessage is what an engine keeps of a message to look into it.
	maxMessage = 128 << 10
	// maxQuery is how much of a query is recorded, as for every text of an event.
	maxQuery = 16 << 10
)

// Limits returns the bounds of what is kept.
func (h *session) Limits() engine.Limits {
	return engine.Limits{Message: maxMessage, Query: maxQuery, RefuseUnknown: h.sv.db.GetSpec().GetRefuseUnknownMessages()}
}

const (
	dialTimeout = 15 * time.Second
	keepAlive   = 30 * time.Second
)

// Dial connects to the database. The names are looked up each time.
func (h *session) Dial(ctx context.Context, port string) (net.Conn, error) {
	addr, err := types.DatabaseAddr(h.sv.db.GetSpec().GetUri(), port)
	if err != nil {
		return nil, err
	}
	return h.dial(ctx, addr)
}

// Redial connects to an address of the database that a session is connected to.
func (h *session) Redial(ctx context.Context, addr net.Addr) (net.Conn, error) {
	if !h.sv.connected(addr.String()) {
		return nil, fault.Unreachable("no session is connected to %s any more", addr)
	}
	return h.dial(ctx, addr.String())
}

func (h *session) dial(ctx context.Context, addr string) (net.Conn, error) {
	if err := h.mayDial(); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}).DialContext(ctx, "tcp", addr)
	h.sv.tried(ctx, err)
	if err != nil {
		return nil, fault.Unreachable("the database %q cannot be reached from %s: %v", h.sv.name(), h.s.cfg.Hostname, err)
	}
	c := &upstreamConn{Conn: conn, h: h, left: h.sv.reached(conn.RemoteAddr().String())}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		c.left()
		_ = conn.Close()
		return nil, context.Canceled
	}
	h.upstream[c] = struct{}{}
	return c, nil
}

// mayDial refuses who has no business with the database at all. An engine asks to dial
// without Authorize only to pass a request to cancel on.
func (h *session) mayDial() error {
	h.mu.Lock()
	authorized := h.authorized
	h.mu.Unlock()
	if authorized || h.precheck != nil {
		return h.precheck
	}
	if d, refused := h.s.lockRefuses(h.user, ""); refused {
		return fault.Denied("%s", d.Reason)
	}
	if d := access.NewChecker(h.s.subject(h.user)).SeesDatabase(h.sv.Labels()); !d.Allowed {
		return fault.Denied("access to database %q denied", h.sv.name())
	}
	return nil
}

// closeUpstream closes the connections to the database, for good.
func (h *session) closeUpstream() {
	h.mu.Lock()
	h.closed = true
	conns := h.upstream
	h.upstream = map[net.Conn]struct{}{}
	h.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
}

// upstreamConn is a connection to the database.
type upstreamConn struct {
	net.Conn
	h    *session
	left func()
}

// Close closes the connection.
func (c *upstreamConn) Close() error {
	c.left()
	c.h.mu.Lock()
	delete(c.h.upstream, c)
	c.h.mu.Unlock()
	return c.Conn.Close()
}

// TLS returns how the agent speaks with the database as dbUser.
func (h *session) TLS(ctx context.Context, dbUser string) (*tls.Config, error) {
	cfg, err := h.sv.clientTLS()
	if err != nil || dbUser == "" {
		return cfg, err
	}
	h.mu.Lock()
	admin := h.provisioning && dbUser == h.sv.db.GetSpec().GetAdminUser().GetName()
	granted := admin || h.authorized && dbUser == h.dbUser
	h.mu.Unlock()
	if !granted {
		return nil, fault.Denied("database user %q was not authorized", dbUser)
	}
	cert, err := h.s.signer.certificate(ctx, signRequest{database: h.sv.name(), dbUser: dbUser, admin: admin}, h.cert)
	if err != nil {
		return nil, err
	}
	cfg.Certificates = []tls.Certificate{*cert}
	return cfg, nil
}

// finish ends what the session began and records its end.
func (h *session) finish(ctx context.Context, err error) {
	h.closeUpstream()
	ctx = context.WithoutCancel(ctx)
	h.mu.Lock()
	undo, authorized := h.undo, h.authorized
	h.mu.Unlock()
	if undo != nil {
		undo(ctx)
	}
	if authorized {
		h.s.metrics.active.WithLabelValues(h.protocol()).Dec()
		h.audit.end()
	}
	log := h.s.cfg.Log.With("db", h.sv.name(), "user", h.user.User.Name, "sid", h.id)
	switch reason := h.reason.Load(); {
	case reason != nil:
		log.InfoContext(ctx, "database session ended", "reason", *reason)
	case err != nil:
		log.InfoContext(ctx, "database session ended", "error", err)
	default:
		log.DebugContext(ctx, "database session ended")
	}
}

// clientConn is the user's side. It notes when something was last done, and holds the
// first answer back until the start of the session is in the audit log.
type clientConn struct {
	raw net.Conn
	tls *tls.Conn

	last atomic.Int64
	// hold is taken by the first Write after the session was authorized.
	hold atomic.Pointer[func() error]
}

func (c *clientConn) touch() { c.last.Store(time.Now().UnixNano()) }

// silence is how long nothing was read or written.
func (c *clientConn) silence() time.Duration {
	return time.Duration(time.Now().UnixNano() - c.last.Load())
}

// Read reads what the client sends.
func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	c.touch()
	return n, err
}

// Write sends to the client.
func (c *clientConn) Write(p []byte) (int, error) {
	if c.hold.Load() != nil {
		if wait := c.hold.Swap(nil); wait != nil {
			if err := (*wait)(); err != nil {
				return 0, fmt.Errorf("the session cannot be recorded: %w", err)
			}
		}
	}
	c.touch()
	return c.tls.Write(p)
}

// Close closes the connection.
func (c *clientConn) Close() error { return c.tls.Close() }

// LocalAddr is this end's.
func (c *clientConn) LocalAddr() net.Addr { return c.tls.LocalAddr() }

// RemoteAddr is the other end's.
func (c *clientConn) RemoteAddr() net.Addr { return c.tls.RemoteAddr() }

// SetDeadline sets both deadlines.
func (c *clientConn) SetDeadline(t time.Time) error { return c.tls.SetDeadline(t) }

// never is a deadline that no connection lives to see.
const never = 100 * 365 * 24 * time.Hour

// SetReadDeadline sets when a Read fails. A tunnel gives back a Read that is under way only
// if it began with a deadline, and is broken otherwise: so there always is one, and a session
// that is ended can still say why.
func (c *clientConn) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		t = time.Now().Add(never)
	}
	return c.tls.SetReadDeadline(t)
}

// SetWriteDeadline sets when a Write fails; after that nothing can be written any more.
func (c *clientConn) SetWriteDeadline(t time.Time) error { return c.tls.SetWriteDeadline(t) }

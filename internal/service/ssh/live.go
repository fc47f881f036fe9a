package ssh

import (
	"context"
	"sync"
	"sync/atomic"

	"teleport/internal/audit"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// connection is a connection of a user that is open now, with all that runs on it:
// sessions, forwarded ports, agents and displays.
type connection struct {
	s    *Service
	ssh  *sshd.Conn
	id   *identity.Identity
	once sync.Once
	// reason is why Close ended the connection.
	reason atomic.Pointer[string]
	// limited is set when a limit of time closes the connection.
	limited atomic.Bool

	mu sync.Mutex
	// uses are the ways in which the connection forwarded.
	uses map[use]*traffic

	userMu sync.Mutex
	// giveUp gives the local user up, if it was made for the connection.
	giveUp func(context.Context)
}

// login is the operating-system user.
func (c *connection) login() string { return c.ssh.User() }

// Close tells the user the reason, records it and ends the connection; the first
// reason counts. It returns when the connection is closed, after a second at most,
// but for the time that the event takes.
func (c *connection) Close(ctx context.Context, reason string) {
	c.once.Do(func() {
		c.reason.Store(&reason)
		c.ssh.Disconnect(reason)
		e := audit.New(audit.ClientDisconnect, c.s.fields(c.ssh, c.id, map[string]any{"reason": reason}))
		c.s.emitLate(ctx, e)
		c.s.cfg.Log.InfoContext(ctx, "connection closed", "user", c.id.User.Name, "login", c.login(), "reason", reason)
	})
}

// registry knows the connections that are open now.
type registry struct {
	mu    sync.Mutex
	conns map[*sshd.Conn]*connection
	// more has a value when a connection was added.
	more chan struct{}
}

func newRegistry() *registry {
	return &registry{conns: map[*sshd.Conn]*connection{}, more: make(chan struct{}, 1)}
}

func (r *registry) add(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c.ssh] = c
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *registry) remove(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c.ssh)
}

// find returns the connection, or nil if it has ended.
func (r *registry) find(c *sshd.Conn) *connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns[c]
}

// list returns the connections that are open now.
func (r *registry) list() []*connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*connection, 0, len(r.conns))
	for _, c := range r.conns {
		out = append(out, c)
	}
	return out
}

// closeMatching closes every connection that reason gives a text for, all at the
// same time, and returns how many there were, once they are closed. A connection
// that logs in meanwhile is for connected to decide: whoever calls this has made
// decide refuse it before.
func (r *registry) closeMatching(ctx context.Context, reason func(*connection) string) int {
	var closing sync.WaitGroup
	n := 0
	for _, c := range r.list() {
		if text := reason(c); text != "" {
			n++
			closing.Go(func() { c.Close(ctx, text) })
		}
	}
	closing.Wait()
	return n
}

// connected adds a connection that has logged in to the registry. It decides again
// first: what was changed between the login and now closed what is in the registry,
// and this connection was not.
func (s *Service) connected(ctx context.Context, sc *sshd.Conn) func() {
	id, err := userOf(sc.Login())
	if err != nil {
		sc.Disconnect(err.Error())
		return func() {}
	}
	c := &connection{s: s, ssh: sc, id: id}
	s.live.add(c)
	if d := s.decideConn(id, sc.User()); !d.Allowed {
		c.Close(ctx, s.told(sc.User(), d))
	}
	s.keep(ctx, c)
	return func() {
		s.live.remove(c)
		c.leaveUser(ctx)
		if events := c.stops(); len(events) > 0 {
			s.emitLate(ctx, events...)
		}
	}
}

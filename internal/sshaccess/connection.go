package sshaccess

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// maxTargets bounds the different ends that one connection forwards to.
const maxTargets = 10_000

// Connection is a connection of a user that is open now, with all that runs on it:
// sessions, forwarded ports, agents and displays.
type Connection struct {
	SSH   *sshd.Conn
	ID    *identity.Identity
	Place Place

	g    *Guard
	once sync.Once
	// reason is why Close ended the connection.
	reason atomic.Pointer[string]
	// limited is set when a limit of time closes the connection.
	limited atomic.Bool

	mu sync.Mutex
	// uses are the ways in which the connection forwarded.
	uses map[use]*traffic
}

// Connected notes, and records, that somebody has logged in.
func (g *Guard) Connected(ctx context.Context, p Place, sc *sshd.Conn, id *identity.Identity) *Connection {
	c := &Connection{g: g, SSH: sc, ID: id, Place: p}
	g.EmitLate(ctx, audit.New(audit.SessionConnect, c.Fields(map[string]any{"success": true})))
	return c
}

// Login is the operating-system user.
func (c *Connection) Login() string { return c.SSH.User() }

// Fields returns those that every event of the connection has, and more.
func (c *Connection) Fields(more map[string]any) map[string]any {
	return c.Place.Fields(c.SSH, c.ID, more)
}

// Locked returns the text of the lock that forbids the connection, or "".
func (c *Connection) Locked() string { return c.g.Locked(c.Place, c.ID, c.Login()) }

// Close tells the user the reason, records it and ends the connection; the first
// reason counts. It returns when the connection is closed, after a second at most,
// but for the time that the event takes.
func (c *Connection) Close(ctx context.Context, reason string) {
	c.once.Do(func() {
		c.reason.Store(&reason)
		c.SSH.Disconnect(reason)
		c.g.EmitLate(ctx, audit.New(audit.ClientDisconnect, c.Fields(map[string]any{"reason": reason})))
		c.g.cfg.Log.InfoContext(ctx, "connection closed", "user", c.ID.User.Name, "login", c.Login(), "server_id", c.Place.ID, "reason", reason)
	})
}

// Closed returns why Close ended the connection, or "" if it did not.
func (c *Connection) Closed() string {
	if reason := c.reason.Load(); reason != nil {
		return *reason
	}
	return ""
}

// Ended records what the connection forwarded.
func (c *Connection) Ended(ctx context.Context) {
	if events := c.stops(); len(events) > 0 {
		c.g.EmitLate(ctx, events...)
	}
}

// Due returns why limits of time close the connection now, or when to look again.
func (c *Connection) Due() (reason string, wait time.Duration) {
	o := c.g.Options(c.ID)
	wait = longestLook
	if o.DisconnectExpired {
		left := c.ID.Expires.Sub(c.g.cfg.Now())
		if left <= 0 {
			return "connection closed: your certificate has expired, log in again", 0
		}
		wait = min(wait, left)
	}
	if o.IdleTimeout > 0 {
		left := o.IdleTimeout - time.Since(c.SSH.LastActive())
		if left <= 0 {
			return fmt.Sprintf("connection closed: nothing was done on it for %s", o.IdleTimeout), 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

// use is one way in which a connection forwards.
type use struct{ direction, addr string }

// traffic is what went that way.
type traffic struct{ connections, received, sent int64 }

// Directions of forwarding: who waits for connections.
const (
	DirectionLocal  = "local"
	DirectionRemote = "remote"
)

// NoteUse records the first use of a way. Further ones are counted, and the count is
// recorded when the connection ends: a browser behind ssh -D must not fill the log.
func (c *Connection) NoteUse(ctx context.Context, direction, addr string, about map[string]any) error {
	u := use{direction, addr}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.uses[u] != nil {
		return nil
	}
	if len(c.uses) >= maxTargets {
		return fault.Limit("this connection has forwarded to %d different places: connect again", maxTargets)
	}
	about["success"] = true
	if err := c.g.cfg.Emit(ctx, audit.New(audit.PortForward, c.Fields(about))); err != nil {
		c.g.cfg.Log.ErrorContext(ctx, "forward refused: it cannot be recorded", "error", err, "user", c.ID.User.Name)
		return ErrUnrecorded()
	}
	if c.uses == nil {
		c.uses = map[use]*traffic{}
	}
	c.uses[u] = &traffic{}
	return nil
}

// Forwarded counts a forwarded connection that is over.
func (c *Connection) Forwarded(f sshd.Forwarded) {
	direction := DirectionRemote
	if f.Channel == "direct-tcpip" || f.Channel == "direct-streamlocal@openssh.com" {
		direction = DirectionLocal
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.uses[use{direction, f.To.String()}]; t != nil {
		t.connections++
		t.received += f.Received
		t.sent += f.Sent
	}
}

// stops returns an event for each way, with what went there.
func (c *Connection) stops() []*auditv1.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*auditv1.Event, 0, len(c.uses))
	for u, t := range c.uses {
		out = append(out, audit.New(audit.PortForwardStop, c.Fields(map[string]any{
			"addr": u.addr, "direction": u.direction, "connections": t.connections, "rx": t.received, "tx": t.sent,
		})))
	}
	return out
}

// Package sshaccess is what surrounds the SSH connection of a user wherever the cluster
// answers it: at the SSH Service of a host, and at a Proxy in the place of a server that
// runs only OpenSSH. It says whose certificate was shown, decides by locks, by the
// certificate and by the options of roles, ends connections when something changes, and
// writes the audit events. What is different at the two, like what the roles are asked
// about and what a session does, is theirs.
package sshaccess

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/refusal"
)

// endTimeout bounds the wait for events that are written when something has ended.
const endTimeout = 10 * time.Second

// Config says who asks. All fields are required.
type Config struct {
	// Trust is in users' certificates.
	Trust func() *ca.Trust
	// Cache has roles and locks.
	Cache *cache.Cache
	// Emit stores audit events or keeps them for later; an error means that they are
	// lost, and what they are about must not happen.
	Emit func(ctx context.Context, events ...*auditv1.Event) error
	Log  *slog.Logger
	Now  func() time.Time
	// Here is what users are told that the process is, as in "this host".
	Here string
	// LockedOut returns why nobody may be here because the process itself is locked, or "".
	LockedOut func() string
	// Refused counts a refusal.
	Refused func()
}

// Guard decides about the connections of users, and records. It is safe for concurrent
// use.
type Guard struct {
	cfg      Config
	refusals *refusal.Book
	counts   counts
}

// New returns a Guard.
func New(cfg Config) *Guard {
	return &Guard{cfg: cfg, refusals: refusal.NewBook(cfg.Now)}
}

// Place is the server that a user connects to.
type Place struct {
	ID, Hostname string
	// Own are fields that every event about the place has beside the usual ones.
	Own map[string]any
}

// Peer is what connections, on their way in or open, tell about themselves.
type Peer interface {
	User() string
	RemoteAddr() net.Addr
	LocalAddr() net.Addr
}

// Fields returns those that every event of a connection has, and more.
func (p Place) Fields(c Peer, id *identity.Identity, more map[string]any) map[string]any {
	f := map[string]any{
		"user": id.User.Name, "login": c.User(), "namespace": "default", "proto": "ssh", "server_id": p.ID, "server_hostname": p.Hostname,
	}
	for name, addr := range map[string]net.Addr{"addr.remote": c.RemoteAddr(), "addr.local": c.LocalAddr()} {
		if addr != nil {
			f[name] = addr.String()
		}
	}
	maps.Copy(f, p.Own)
	maps.Copy(f, more)
	return f
}

// Subject is the user as roles are asked about them.
func (g *Guard) Subject(id *identity.Identity) access.Subject {
	return access.Subject{User: id.User.Name, Roles: g.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits}
}

// Options are what the user's roles say now.
func (g *Guard) Options(id *identity.Identity) access.Options {
	return access.OptionsOf(g.Subject(id))
}

// EmitLate stores events even if ctx has ended: that is what the end of a connection
// looks like.
func (g *Guard) EmitLate(ctx context.Context, events ...*auditv1.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := g.cfg.Emit(ctx, events...); err != nil {
		g.cfg.Log.ErrorContext(ctx, "events are not in the audit log", "error", err, "count", len(events), "first", events[0].GetEvent())
	}
}

// ErrUnrecorded is why nothing is done that the audit log cannot take.
func ErrUnrecorded() error {
	return fault.Unreachable("refused: the audit log cannot take it, tell an administrator")
}

// ReasonOf is what the audit log knows of a refusal.
func ReasonOf(d access.Decision) string {
	return fmt.Sprintf("%s (role %q, rule %q)", d.Reason, d.Role, d.Rule)
}

package db

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// provisionTimeout bounds the making, and the taking away, of a user.
const provisionTimeout = 30 * time.Second

// users knows the sessions of each user that was made, so that it goes with the last.
type users struct {
	mu    sync.Mutex
	users map[madeKey]*made
}

type madeKey struct{ database, user string }

// made is a user that sessions use.
type made struct {
	// turn is taken by who makes or takes away the user.
	turn chan struct{}
	// holders are who use or want it; the entry goes with the last.
	holders int
	// sessions are those that it was made for, roles what it has for them.
	sessions int
	roles    []string
}

func newUsers() *users { return &users{users: map[madeKey]*made{}} }

// hold returns the entry of a user.
func (u *users) hold(k madeKey) *made {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := u.users[k]
	if m == nil {
		m = &made{turn: make(chan struct{}, 1)}
		u.users[k] = m
	}
	m.holders++
	return m
}

func (u *users) drop(k madeKey, m *made) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if m.holders--; m.holders == 0 {
		delete(u.users, k)
	}
}

// do calls f as the only one who changes the user.
func (m *made) do(ctx context.Context, f func() error) error {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-m.turn }()
	return f()
}

// automatic returns what the roles say about the making of the user, and whether the
// session is one of a user that is made: one as whom the user has their own name.
func (h *session) automatic(dbUser string) (access.DatabaseUser, bool) {
	if h.sv.db.GetSpec().GetAdminUser().GetName() == "" || dbUser != h.user.User.Name {
		return access.DatabaseUser{}, false
	}
	u := access.DatabaseUserOf(h.s.subject(h.user), h.sv.Labels())
	return u, u.Mode == types.DatabaseUserKeep || u.Mode == types.DatabaseUserBestEffortDrop
}

// Provision makes the user, and has it taken away at the end of the session.
func (h *session) Provision(ctx context.Context, make, remove func(ctx context.Context, p engine.Provision) error) error {
	h.mu.Lock()
	dbUser, dbName, authorized := h.dbUser, h.dbName, h.authorized
	h.mu.Unlock()
	if !authorized {
		return fault.Denied("nobody was authorized")
	}
	auto, ok := h.automatic(dbUser)
	if !ok {
		return nil
	}
	admin := h.sv.db.GetSpec().GetAdminUser()
	p := engine.Provision{
		Admin: admin.GetName(), AdminDatabase: admin.GetDefaultDatabase(), User: dbUser,
		Roles: auto.Roles, Drop: auto.Mode == types.DatabaseUserBestEffortDrop,
	}
	if p.AdminDatabase == "" {
		p.AdminDatabase = dbName
	}
	if asked := h.user.User.Database.Roles; len(asked) > 0 {
		p.Roles = slices.Sorted(slices.Values(asked))
	}
	k := madeKey{h.sv.name(), dbUser}
	m := h.s.users.hold(k)
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	err := m.do(ctx, func() error {
		if m.sessions > 0 && !slices.Equal(m.roles, p.Roles) {
			return fault.Denied("you have a session with the database %q that has other database roles: end it first", h.sv.name())
		}
		if err := h.asAdmin(ctx, p, make); err != nil {
			return err
		}
		m.sessions++
		m.roles = p.Roles
		return nil
	})
	fields := map[string]any{"username": p.User, "roles": p.Roles}
	if err != nil {
		h.s.users.drop(k, m)
		h.provisioned(ctx, audit.DatabaseUserCreateFailure, fields, err)
		return fmt.Errorf("make the database user %q: %w", p.User, err)
	}
	h.provisioned(ctx, audit.DatabaseUserCreate, fields, nil)
	h.mu.Lock()
	h.undo = func(ctx context.Context) {
		defer h.s.users.drop(k, m)
		h.unprovision(ctx, m, p, remove)
	}
	h.mu.Unlock()
	return nil
}

// asAdmin calls f while the admin user may be used.
func (h *session) asAdmin(ctx context.Context, p engine.Provision, f func(ctx context.Context, p engine.Provision) error) error {
	set := func(on bool) {
		h.mu.Lock()
		h.provisioning = on
		// The end of the session closed what there was; this comes after it.
		h.closed = h.closed && !on
		h.mu.Unlock()
	}
	set(true)
	defer set(false)
	return f(ctx, p)
}

// unprovision takes the user away after its last session.
func (h *session) unprovision(ctx context.Context, m *made, p engine.Provision, remove func(ctx context.Context, p engine.Provision) error) {
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	fields := map[string]any{"username": p.User, "delete": p.Drop}
	err := m.do(ctx, func() error {
		if m.sessions--; m.sessions > 0 {
			return nil
		}
		m.roles = nil
		if err := h.asAdmin(ctx, p, remove); err != nil {
			return err
		}
		h.provisioned(ctx, audit.DatabaseUserDeactivate, fields, nil)
		return nil
	})
	if err != nil {
		h.provisioned(ctx, audit.DatabaseUserDeactivateFailure, fields, err)
	}
}

// provisioned records what became of the user.
func (h *session) provisioned(ctx context.Context, kind audit.Kind, fields map[string]any, err error) {
	fields["success"] = err == nil
	if err != nil {
		fields["error"] = err.Error()
		h.s.cfg.Log.WarnContext(ctx, "the user of a database session was not made or taken away as it should be", "db", h.sv.name(), "db_user", fields["username"], "event", kind.Code, "error", err)
	}
	h.audit.Event(kind, fields)
}

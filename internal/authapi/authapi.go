// Package authapi has the gRPC handlers of the Auth Service: resources, join
// tokens, status, audit events, certificates for applications, databases and OpenSSH
// servers, and Auth's end of the control stream. They turn
// calls into transactions of the store, each with its audit event. Who may call is
// decided by package authz, joining is package join, logging in is package login,
// and the authorities are signed with elsewhere.
package authapi

import (
	"context"
	"errors"
	"log/slog"
	"time"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/authz"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// Config is what the handlers need; every field but LockStatus, Now and Log is required.
type Config struct {
	Store      *store.Store
	Authorizer *authz.Authorizer
	// Trust returns the present authorities and Cluster the cluster's name.
	Trust   func() *ca.Trust
	Cluster func() string
	// LockStatus returns who enforces a lock; nil knows nobody.
	LockStatus func(l *typesv1.Lock) *typesv1.LockStatus
	Now        func() time.Time
	Log        *slog.Logger
}

func (c Config) checked() (Config, error) {
	if c.Store == nil || c.Authorizer == nil || c.Trust == nil || c.Cluster == nil {
		return c, errors.New("authapi: Store, Authorizer, Trust and Cluster are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// verb asks whether the caller of ctx may do the verb to the resource, in the place
// of one of the kind.
func (c Config) verb(ctx context.Context, kind, verb string, r types.Resource) error {
	return c.Authorizer.Verb(ctx, rpc.CallerFrom(ctx), kind, verb, r)
}

// some asks whether the caller of ctx may do the verb to any of the kind, and returns
// to which.
func (c Config) some(ctx context.Context, kind, verb string) (func(types.Resource) bool, error) {
	may, err := c.Authorizer.Some(ctx, rpc.CallerFrom(ctx), kind, verb)
	if may == nil {
		may = func(types.Resource) bool { return true }
	}
	return may, err
}

// event makes an audit event of something that the caller of ctx did.
func event(ctx context.Context, kind audit.Kind, fields map[string]any) *auditv1.Event {
	caller := rpc.CallerFrom(ctx)
	fields["user"] = caller.Name()
	if caller.Addr != "" && !caller.Local {
		fields["addr.remote"] = caller.Addr
	}
	fields["success"] = true
	return audit.New(kind, fields)
}

// served returns the row of a kind that the generic API serves.
func served(kind string) (types.KindInfo, error) {
	info, ok := types.Kind(kind)
	if !ok || !info.Served {
		return info, fault.Invalid("unknown kind of resource %q", clip(kind))
	}
	return info, nil
}

// public returns r without what must not leave Auth.
func public(r types.Resource) types.Resource {
	if info, ok := types.Kind(r.GetKind()); ok && info.Secret != nil {
		return info.Secret(r)
	}
	return r
}

// clip shortens a text of the caller's for a message.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

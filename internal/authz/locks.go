package authz

import (
	"context"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/rpc"
)

// Locks says what is locked, as it is now.
type Locks interface {
	// Locks returns the locks; some may have expired.
	Locks() []*typesv1.Lock
	// JoinToken returns the id of the token that the host joined with, or "".
	JoinToken(hostID string) string
}

// WithLocks returns an Authorizer that refuses who is locked: users, the hosts
// themselves and what they say for others. The local administrator never is.
func (a *Authorizer) WithLocks(locks Locks) *Authorizer {
	return &Authorizer{roles: a.roles, user: a.user, locks: locks, log: a.log}
}

// locked refuses a caller that a lock is about. Calls that carry their own proof are
// open to everybody, with whatever certificate; those look at the locks themselves.
func (a *Authorizer) locked(ctx context.Context, r row, caller rpc.Caller, method string) error {
	if a.locks == nil || caller.Local {
		return nil
	}
	host := caller.Via // a Proxy that relays the call of somebody else
	if h := caller.Host(); h != nil {
		host = h.ID
	}
	f := access.Facts{ServerID: host}
	if host != "" {
		f.JoinToken = a.locks.JoinToken(host)
	}
	if user := caller.User(); user != nil && r.who&anybody == 0 {
		f.User, f.Roles, f.MFADevice = user.Name, user.Roles, user.MFADevice
	}
	if err := access.CheckLocks(a.locks.Locks(), f, time.Now()); err != nil {
		return a.refuse(ctx, caller, err, "method", method)
	}
	return nil
}

// inForce returns the locks that have not expired.
func (a *Authorizer) inForce() []*typesv1.Lock {
	if a.locks == nil {
		return nil
	}
	now := time.Now()
	var out []*typesv1.Lock
	for _, l := range a.locks.Locks() {
		if access.LockInForce(l, now) {
			out = append(out, l)
		}
	}
	return out
}

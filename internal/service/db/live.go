package db

import (
	"context"
	"fmt"
	"sync"
	"time"

	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

const (
	// longestLook is the pause between two looks at the sessions when none of them is due
	// earlier and no role changes, shortestLook the least one.
	longestLook  = 30 * time.Second
	shortestLook = 250 * time.Millisecond
	// lookAgain is the pause between two looks at sessions that are to end.
	lookAgain = 20 * time.Millisecond
)

// registry knows the sessions that are open now.
type registry struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	// more has a value when a session was added or has learnt whom it is as.
	more chan struct{}
}

func newRegistry() *registry {
	return &registry{sessions: map[*session]struct{}{}, more: make(chan struct{}, 1)}
}

func (r *registry) add(h *session) {
	r.mu.Lock()
	r.sessions[h] = struct{}{}
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *registry) remove(h *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, h)
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

func (r *registry) list() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*session, 0, len(r.sessions))
	for h := range r.sessions {
		out = append(out, h)
	}
	return out
}

// endDatabase ends the sessions with a database that is not served any more.
func (r *registry) endDatabase(name string) {
	for _, h := range r.list() {
		if h.sv.name() == name {
			h.end(fault.NotFound("the database %q is not served by this host any more", name))
		}
	}
}

// EnforceLocks ends the sessions that a lock forbids, and returns when they have ended.
func (s *Service) EnforceLocks(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for s.endLocked() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// endLocked ends what locks forbid and returns how many sessions that are.
func (s *Service) endLocked() int {
	n := 0
	for _, h := range s.live.list() {
		if text := s.locked(h.user, h.login()); text != "" {
			n++
			h.end(fault.New(fault.ErrDenied, "%s", text).WithCode(access.CodeLocked))
		}
	}
	return n
}

// followLocks ends what new locks forbid, whoever else asks for it, until ctx ends.
func (s *Service) followLocks(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.cfg.Cache.Changed(types.KindLock)
		s.endLocked()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// login is the database user, once it is known.
func (h *session) login() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dbUser
}

// locked returns the text of the lock that forbids the user to be here as dbUser, or "".
func (s *Service) locked(id *identity.Identity, dbUser string) string {
	if reason := s.cfg.Cache.LockedOut(); reason != "" {
		return reason
	}
	l := access.FindLock(s.cfg.Cache.Locks(), access.Facts{
		User: id.User.Name, Roles: id.User.Roles, Login: dbUser, ServerID: s.cfg.Holder.HostID(), MFADevice: id.User.MFADevice,
	}, s.cfg.Now())
	if l == nil {
		return ""
	}
	return access.LockText(l)
}

// lockRefuses decides by the locks, before any role is asked. Where a role is strict
// about them, somebody new is refused while this host may have missed some.
func (s *Service) lockRefuses(id *identity.Identity, dbUser string) (access.Decision, bool) {
	if text := s.locked(id, dbUser); text != "" {
		return access.Decision{Rule: access.RuleLock, Reason: text}, true
	}
	if s.cfg.Cache.Stale(s.cfg.Now()) && access.StrictLocks(s.cfg.Cache.Roles(id.User.Roles)) {
		return access.Decision{Rule: access.RuleLock, Reason: fmt.Sprintf(
			"this host has not heard from the Auth Service for more than %s and may have missed locks: your roles do not let you in until it has (options.lock is %s)",
			cache.MaxSilence, types.LockStrict)}, true
	}
	return access.Decision{}, false
}

func (s *Service) subject(id *identity.Identity) access.Subject {
	return access.Subject{User: id.User.Name, Roles: s.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits}
}

func (s *Service) optionsOf(id *identity.Identity) access.Options {
	return access.OptionsOf(s.subject(id))
}

// enforceLimits ends sessions whose user was idle for too long, or whose certificate has
// expired where a role asks for that, until ctx ends.
func (s *Service) enforceLimits(ctx context.Context) {
	timer := time.NewTimer(longestLook)
	defer timer.Stop()
	for {
		changed := s.cfg.Cache.Changed(types.KindRole)
		timer.Reset(s.look())
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-s.live.more:
		case <-timer.C:
		}
	}
}

// look ends what is due and returns how long it is until the next is.
func (s *Service) look() time.Duration {
	next := longestLook
	for _, h := range s.live.list() {
		wait, reason := s.due(h)
		if reason != nil {
			h.end(reason)
			continue
		}
		next = min(next, wait)
	}
	return max(next, shortestLook)
}

// due returns why the session is to end now, or when to look again.
func (s *Service) due(h *session) (wait time.Duration, reason error) {
	o := s.optionsOf(h.user)
	wait = longestLook
	if o.DisconnectExpired {
		left := h.user.Expires.Sub(s.cfg.Now())
		if left <= 0 {
			return 0, fault.Denied("the session is over: your certificate has expired, log in again")
		}
		wait = min(wait, left)
	}
	if o.IdleTimeout > 0 {
		left := o.IdleTimeout - h.client.silence()
		if left <= 0 {
			return 0, fault.Denied("the session is over: nothing was done in it for %s", o.IdleTimeout)
		}
		wait = min(wait, left)
	}
	return wait, nil
}

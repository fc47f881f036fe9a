package ssh

import (
	"context"
	"fmt"
	"sync"
	"time"

	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/cache"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// killAfter is how long a process may live on after the hang-up signal: what a
	// lock ends is over within five seconds, notice and all.
	killAfter = 3 * time.Second
	// lookAgain is the pause between two looks at connections that are to end.
	lookAgain = 50 * time.Millisecond
)

// locked returns the text of the lock that forbids the user to be here as the login,
// or "".
func (s *Service) locked(id *identity.Identity, login string) string {
	if reason := s.cfg.Cache.LockedOut(); reason != "" {
		return reason
	}
	l := access.FindLock(s.cfg.Cache.Locks(), access.Facts{
		User: id.User.Name, Roles: id.User.Roles, Login: login, ServerID: s.cfg.Holder.HostID(), MFADevice: id.User.MFADevice,
	}, s.cfg.Now())
	if l == nil {
		return ""
	}
	return access.LockText(l)
}

// lockRefuses decides by the locks, before any role is asked. Where a role is strict
// about them, somebody new is refused while this host may have missed some.
func (s *Service) lockRefuses(id *identity.Identity, login string) (access.Decision, bool) {
	if text := s.locked(id, login); text != "" {
		return access.Decision{Rule: access.RuleLock, Reason: text}, true
	}
	if s.cfg.Cache.Stale(s.cfg.Now()) && access.StrictLocks(s.cfg.Cache.Roles(id.User.Roles)) {
		return access.Decision{Rule: access.RuleLock, Reason: fmt.Sprintf(
			"this host has not heard from the Auth Service for more than %s and may have missed locks: your roles do not let you in until it has (options.lock is %s)",
			cache.MaxSilence, types.LockStrict)}, true
	}
	return access.Decision{}, false
}

// told returns what the user is told about a refusal: the rule of a role is for the
// audit log, the message of a lock is meant for them.
func (s *Service) told(login string, d access.Decision) string {
	if d.Rule == access.RuleLock {
		return d.Reason
	}
	return s.denied(login)
}

// refusalKind is the kind of event that records who was refused at login.
func refusalKind(d access.Decision) audit.Kind {
	if d.Rule == access.RuleLock {
		return audit.SessionRejected
	}
	return audit.AuthAttemptFailure
}

// EnforceLocks ends the connections that a lock forbids, and returns when everything
// that ran on them has ended.
func (s *Service) EnforceLocks(ctx context.Context) error {
	for {
		if s.live.closeMatching(ctx, s.forbidden) == 0 {
			return nil
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// followLocks ends what new locks forbid, whoever else asks for it, until ctx ends.
func (s *Service) followLocks(ctx context.Context) {
	var closing sync.WaitGroup
	defer closing.Wait()
	for {
		changed := s.cfg.Cache.Changed(types.KindLock)
		// On its own: a connection that takes its time does not delay the next lock.
		closing.Go(func() { s.live.closeMatching(ctx, s.forbidden) })
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// forbidden returns why a lock ends the connection, or "".
func (s *Service) forbidden(c *connection) string { return s.locked(c.id, c.login()) }

// endedBy returns why the host ended the connection, or "" if it did not.
func (s *Service) endedBy(c *sshd.Conn) string {
	if own := s.live.find(c); own != nil {
		if reason := own.reason.Load(); reason != nil {
			return *reason
		}
	}
	return ""
}

package ssh

import (
	"context"
	"time"

	"teleport/internal/access"
	"teleport/internal/sshd"
)

const (
	// killAfter is how long a process may live on after the hang-up signal: what a
	// lock ends is over within five seconds, notice and all.
	killAfter = 3 * time.Second
	// lookAgain is the pause between two looks at connections that are to end.
	lookAgain = 50 * time.Millisecond
)

// told returns what the user is told about a refusal: the rule of a role is for the
// audit log, the message of a lock is meant for them.
func (s *Service) told(login string, d access.Decision) string {
	if d.Rule == access.RuleLock {
		return d.Reason
	}
	return s.denied(login)
}

// EnforceLocks ends the connections that a lock forbids, and returns when everything
// that ran on them has ended.
func (s *Service) EnforceLocks(ctx context.Context) error {
	for {
		if s.live.CloseLocked(ctx) == 0 {
			return nil
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// endedBy returns why the host ended the connection, or "" if it did not.
func (s *Service) endedBy(c *sshd.Conn) string {
	if own, ok := s.live.Find(c); ok {
		return own.Closed()
	}
	return ""
}

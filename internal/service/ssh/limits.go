package ssh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"teleport/internal/audit"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// longestLook is the pause between two looks at the connections when none of them is
	// due earlier and no role changes.
	longestLook = 30 * time.Second
	// shortestLook keeps connections that are due now, but do not go, from being looked
	// at all the time.
	shortestLook  = 250 * time.Millisecond
	sourceAddress = "source-address"
)

// counts are the connections of each user that are open or logging in.
type counts struct {
	mu   sync.Mutex
	user map[string]int64
}

// take counts one more, unless there are limit of them; 0 is no limit.
func (c *counts) take(user string, limit int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit > 0 && c.user[user] >= limit {
		return false
	}
	if c.user == nil {
		c.user = map[string]int64{}
	}
	c.user[user]++
	return true
}

func (c *counts) give(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.user[user]--; c.user[user] <= 0 {
		delete(c.user, user)
	}
}

// grant applies the options of the user's roles to a login that is allowed: whether the
// certificate must name an address, and how many connections and sessions there may be.
func (s *Service) grant(ctx context.Context, meta gossh.ConnMetadata, login *sshd.Login, id *identity.Identity) error {
	o := s.options(id)
	name := id.User.Name
	refuse := func(ctx context.Context, text, reason string) error {
		s.metrics.rejected.Inc()
		e := audit.New(audit.SessionRejected, s.fields(meta, id, map[string]any{"success": false, "error": text, "reason": reason}))
		return s.refuse(ctx, e, id, text, reason)
	}
	if o.Broken != nil {
		return refuse(ctx, s.denied(meta.User()), o.Broken.Error())
	}
	if _, pinned := login.CriticalOptions[sourceAddress]; o.PinSource && !pinned {
		return refuse(ctx, "access denied: your roles bind certificates to the address of the login, and yours names none: log in again",
			"options.pin_source_ip: the certificate has no critical option "+sourceAddress)
	}
	if !s.counts.take(name, o.MaxConnections) {
		return refuse(ctx, fmt.Sprintf("access denied: you have %d connections to %s already, and your roles allow no more: close one", o.MaxConnections, s.cfg.Hostname),
			fmt.Sprintf("options.max_connections is %d", o.MaxConnections))
	}
	login.Ended = func() { s.counts.give(name) }
	if o.MaxSessions > 0 {
		login.MaxSessions = int(min(o.MaxSessions, sshd.DefaultMaxSessions))
		login.TooMany = func(ctx context.Context) string {
			err := refuse(ctx, fmt.Sprintf("your roles allow %d sessions on one connection: close one or connect again", o.MaxSessions),
				fmt.Sprintf("options.max_sessions is %d", o.MaxSessions))
			var r *sshd.Refusal
			if errors.As(err, &r) {
				return r.Text
			}
			return ""
		}
	}
	return nil
}

// enforceLimits closes connections whose user was idle for too long, or whose
// certificate has expired where a role asks for that, until ctx ends.
func (s *Service) enforceLimits(ctx context.Context) {
	var closing sync.WaitGroup
	defer closing.Wait()
	timer := time.NewTimer(longestLook)
	defer timer.Stop()
	for {
		changed := s.cfg.Cache.Changed(types.KindRole)
		timer.Reset(s.look(ctx, &closing))
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-s.live.more:
		case <-timer.C:
		}
	}
}

// look closes what is due and returns how long it is until the next is.
func (s *Service) look(ctx context.Context, closing *sync.WaitGroup) time.Duration {
	next := longestLook
	for _, c := range s.live.list() {
		reason, wait := s.due(c)
		if reason == "" {
			next = min(next, wait)
			continue
		}
		// Once closed it goes from the list; it is not waited for here.
		if !c.limited.Swap(true) {
			closing.Go(func() { c.Close(ctx, reason) })
		}
	}
	return max(next, shortestLook)
}

// due returns why the connection is to be closed now, or when to look again.
func (s *Service) due(c *connection) (reason string, wait time.Duration) {
	o := s.options(c.id)
	wait = longestLook
	if o.DisconnectExpired {
		left := c.id.Expires.Sub(s.cfg.Now())
		if left <= 0 {
			return "connection closed: your certificate has expired, log in again", 0
		}
		wait = min(wait, left)
	}
	if o.IdleTimeout > 0 {
		left := o.IdleTimeout - time.Since(c.ssh.LastActive())
		if left <= 0 {
			return fmt.Sprintf("connection closed: nothing was done on it for %s", o.IdleTimeout), 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

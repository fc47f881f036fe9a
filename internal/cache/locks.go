package cache

import (
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// MaxSilence is how long a decider that is to be strict about locks goes by what it
// knows without a word from Auth.
const MaxSilence = 5 * time.Minute

// Locks returns the locks by name; some may have expired (see access.FindLock).
func (c *Cache) Locks() []*typesv1.Lock { return list[*typesv1.Lock](c, types.KindLock) }

// JoinToken returns the id of the token that the host joined with, or "". Only the
// cache of a Proxy knows.
func (c *Cache) JoinToken(hostID string) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	i, _ := getLocked[*typesv1.Instance](c, types.KindInstance, hostID)
	return i.GetSpec().GetToken()
}

// Lockout notes why Auth refuses this whole process, or that it does not ("").
func (c *Cache) Lockout(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lockout != reason {
		c.lockout = reason
		c.notifyLocked(types.KindLock)
	}
}

// LockedOut returns why Auth refuses this whole process, or "". Nobody is served then.
func (c *Cache) LockedOut() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.lockout
}

// Heard notes that at the time Auth had nothing newer than what was applied.
func (c *Cache) Heard(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = at
}

// Stale reports whether the cache may have missed changes, since Auth was not heard
// from for MaxSilence. A clock that was set back by a minute or more counts too.
func (c *Cache) Stale(now time.Time) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	// Without the monotonic clock, which stands still while a machine sleeps.
	silence := now.Round(0).Sub(c.heard.Round(0))
	return c.heard.IsZero() || silence > MaxSilence || silence < -time.Minute
}

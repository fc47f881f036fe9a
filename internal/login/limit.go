package login

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"teleport/internal/budget"
	"teleport/internal/rpc"
)

// sourceOf returns what stands for the caller in the limits.
func sourceOf(c rpc.Caller) string {
	if c.Local {
		return "local"
	}
	return budget.Source(c.Addr)
}

// noise bounds how many events are written about attempts that cost their maker
// nothing, and counts those left out.
type noise struct {
	mu      sync.Mutex
	limit   *rate.Limiter
	skipped int
}

// admit reports whether an event may be written, and how many were left out
// before it.
func (n *noise) admit(now time.Time) (skipped int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.limit.AllowN(now, 1) {
		n.skipped++
		return 0, false
	}
	skipped, n.skipped = n.skipped, 0
	return skipped, true
}

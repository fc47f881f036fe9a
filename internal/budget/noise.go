package budget

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Noise bounds how many records are written about attempts that cost their maker
// nothing, and counts those left out. It is safe for concurrent use.
type Noise struct {
	mu      sync.Mutex
	limit   *rate.Limiter
	skipped int
}

// NewNoise returns a budget of so many records a second, with a burst.
func NewNoise(perSecond float64, burst int) *Noise {
	return &Noise{limit: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

// Admit reports whether a record may be written, and how many were left out since
// the last one that was.
func (n *Noise) Admit(now time.Time) (skipped int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.limit.AllowN(now, 1) {
		n.skipped++
		return 0, false
	}
	skipped, n.skipped = n.skipped, 0
	return skipped, true
}

// Package retry paces what is tried again: how long to wait before the next
// attempt, spread out so that many peers that lost the same server do not come
// back at the same instant. It does not decide what is worth retrying.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Defaults of a Backoff whose fields are zero.
const (
	DefaultShortest = 200 * time.Millisecond
	DefaultLongest  = time.Minute
)

// Backoff is a sequence of waits with decorrelated jitter: each is drawn between
// Min and three times the one before, and never exceeds Max. The first is drawn
// below Min, so that a short interruption is over quickly. The zero value uses
// the defaults. It must not be used by two goroutines at once.
type Backoff struct {
	Min, Max time.Duration

	prev time.Duration
}

// Next returns the wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	low, high := b.Min, b.Max
	if low <= 0 {
		low = DefaultShortest
	}
	if high <= 0 {
		high = DefaultLongest
	}
	high = max(high, low)
	if b.prev == 0 {
		b.prev = low
		return low/2 + Jitter(low/2)
	}
	top := high
	if b.prev <= high/3 {
		top = b.prev * 3
	}
	b.prev = low + Jitter(top-low)
	return b.prev
}

// Reset starts the sequence afresh, after an attempt that succeeded.
func (b *Backoff) Reset() { b.prev = 0 }

// Wait waits for Next, or until ctx ends and then returns its cause.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Jitter returns a random duration in [0, d]; 0 when d is not positive.
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d + 1) //nolint:gosec // spreads load, guards nothing
}

// Sleep waits for d, or until ctx ends and then returns its cause.
func Sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"teleport/internal/retry"
)

func TestBackoffStaysInBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "min"))
		high := time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "max"))
		b := retry.Backoff{Min: low, Max: high}
		if got := b.Next(); got > low || got < low/2 {
			t.Fatalf("first Next() = %v, want within [%v, %v]", got, low/2, low)
		}
		prev := low
		for range 20 {
			got := b.Next()
			top := min(max(high, low), prev*3)
			if got < low || got > top {
				t.Fatalf("Next() = %v after %v, want within [%v, %v]", got, prev, low, top)
			}
			prev = got
		}
	})
}

func TestBackoffGrowsAndResets(t *testing.T) {
	b := retry.Backoff{Min: time.Millisecond, Max: time.Hour}
	var longest time.Duration
	for range 200 {
		longest = max(longest, b.Next())
	}
	if longest < time.Second {
		t.Errorf("longest of 200 waits = %v, want the sequence to grow", longest)
	}
	b.Reset()
	if got := b.Next(); got > time.Millisecond {
		t.Errorf("Next() after Reset = %v, want at most Min", got)
	}
}

func TestBackoffZeroValue(t *testing.T) {
	var b retry.Backoff
	for range 1000 {
		if got := b.Next(); got <= 0 || got > retry.DefaultLongest {
			t.Fatalf("Next() = %v, want within (0, %v]", got, retry.DefaultLongest)
		}
	}
}

func TestBackoffMinAboveMax(t *testing.T) {
	b := retry.Backoff{Min: time.Hour, Max: time.Second}
	b.Next()
	if got := b.Next(); got != time.Hour {
		t.Errorf("Next() = %v, want Min when Max is smaller", got)
	}
}

func TestWait(t *testing.T) {
	t.Run("waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := retry.Backoff{Min: time.Second, Max: time.Second}
			start := time.Now()
			if err := b.Wait(t.Context()); err != nil {
				t.Fatalf("Wait() = %v", err)
			}
			if got := time.Since(start); got < time.Second/2 || got > time.Second {
				t.Errorf("waited %v, want between half and one second", got)
			}
		})
	})
	t.Run("ends_with_ctx", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cause := errors.New("stopped")
			ctx, cancel := context.WithCancelCause(t.Context())
			b := retry.Backoff{Min: time.Hour, Max: time.Hour}
			done := make(chan error, 1)
			go func() { done <- b.Wait(ctx) }()
			synctest.Wait()
			cancel(cause)
			if err := <-done; !errors.Is(err, cause) {
				t.Errorf("Wait() = %v, want the cause", err)
			}
			if err := b.Wait(ctx); !errors.Is(err, cause) {
				t.Errorf("Wait() on an ended ctx = %v, want the cause", err)
			}
		})
	})
}

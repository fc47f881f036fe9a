package budget_test

import (
	"fmt"
	"testing"
	"time"

	"teleport/internal/budget"
)

func TestSources(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := budget.NewSources(1, 6, 10)
	for i := range 6 {
		if !s.Allow("a", now) {
			t.Errorf("attempt %d was refused", i+1)
		}
	}
	if s.Allow("a", now) {
		t.Error("attempt 7 at once was allowed")
	}
	if !s.Allow("b", now) {
		t.Error("another source was refused")
	}
	if !s.Allow("a", now.Add(time.Second)) || s.Allow("a", now.Add(time.Second)) {
		t.Error("a second later there is not one more attempt")
	}
	for i := range 1000 {
		s.Allow(fmt.Sprint(i), now)
	}
	if s.Len() != 10 {
		t.Errorf("remembers %d sources, want 10", s.Len())
	}
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:7": "192.0.2.1", "[::ffff:192.0.2.1]:7": "192.0.2.1", "[2001:db8:0:1:2::3]:7": "2001:db8:0:1::/64",
		"[fe80::1%eth0]:7": "fe80::/64", "": "unknown", "host:1": "unknown",
	} {
		if got := budget.Source(addr); got != want {
			t.Errorf("Source(%q) = %q, want %q", addr, got, want)
		}
	}
}

func TestSpent(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := budget.NewSources(1, 2, 10)
	if s.Spent("a", now) {
		t.Error("a source that was never seen has nothing left")
	}
	s.Allow("a", now)
	s.Allow("a", now)
	if !s.Spent("a", now) || s.Spent("b", now) {
		t.Error("Spent does not tell the sources apart")
	}
	if s.Spent("a", now.Add(time.Second)) {
		t.Error("a second later there is nothing left")
	}
}

func TestNoise(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	n := budget.NewNoise(1, 2)
	for range 2 {
		if skipped, ok := n.Admit(now); !ok || skipped != 0 {
			t.Errorf("Admit = %d, %v within the burst", skipped, ok)
		}
	}
	for range 3 {
		if _, ok := n.Admit(now); ok {
			t.Error("more than the burst was admitted")
		}
	}
	if skipped, ok := n.Admit(now.Add(time.Second)); !ok || skipped != 3 {
		t.Errorf("Admit = %d, %v, want the 3 that were left out", skipped, ok)
	}
}

package cache_test

import (
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/types"
)

func TestLocks(t *testing.T) {
	c := cache.New()
	if got := c.Locks(); len(got) != 0 {
		t.Errorf("locks of an empty cache = %v", got)
	}
	l := types.NewLock(&typesv1.LockTarget{User: "alice"}, "", "", time.Now(), time.Time{})
	name := l.GetMetadata().GetName()
	c.Reset()
	c.Apply(types.Change{Revision: 1, Kind: types.KindLock, Name: name, Resource: l})
	c.Synced(1)
	if got := c.Locks(); len(got) != 1 || got[0] != l {
		t.Errorf("locks = %v, want the one", got)
	}
	changed := c.Changed(types.KindLock)
	c.Apply(types.Change{Revision: 2, Kind: types.KindLock, Name: name})
	select {
	case <-changed:
	default:
		t.Error("nobody was told that a lock is gone")
	}
	if got := c.Locks(); len(got) != 0 {
		t.Errorf("locks = %v, want none", got)
	}
}

func TestStale(t *testing.T) {
	c := cache.New()
	now := time.Now()
	if !c.Stale(now) {
		t.Error("a cache that never heard from Auth is not stale")
	}
	c.Heard(now)
	for _, tt := range []struct {
		after time.Duration
		want  bool
	}{
		{0, false},
		{cache.MaxSilence, false},
		{cache.MaxSilence + time.Second, true},
		{-time.Second, false},
		{-2 * time.Minute, true},
	} {
		if got := c.Stale(now.Add(tt.after)); got != tt.want {
			t.Errorf("stale %s after a word from Auth = %v, want %v", tt.after, got, tt.want)
		}
	}
}

func TestLockout(t *testing.T) {
	c := cache.New()
	for _, reason := range []string{"locked", ""} {
		changed := c.Changed(types.KindLock)
		c.Lockout(reason)
		select {
		case <-changed:
		default:
			t.Errorf("nobody was told of the lockout %q", reason)
		}
		if got := c.LockedOut(); got != reason {
			t.Errorf("locked out = %q, want %q", got, reason)
		}
	}
	again := c.Changed(types.KindLock)
	c.Lockout("")
	select {
	case <-again:
		t.Error("what did not change was reported")
	default:
	}
}

func TestJoinToken(t *testing.T) {
	c := cache.New()
	c.Apply(types.Change{Kind: types.KindInstance, Name: "h-1", Resource: &typesv1.Instance{Spec: &typesv1.InstanceSpec{Token: "tok"}}})
	if a, b := c.JoinToken("h-1"), c.JoinToken("h-2"); a != "tok" || b != "" {
		t.Errorf("tokens = %q and %q, want tok and none", a, b)
	}
}

package store_test

import (
	"errors"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/backend/memory"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

func TestCheckLocks(t *testing.T) {
	b := memory.New()
	t.Cleanup(func() { _ = b.Close() })
	now := time.Now()
	s := store.New(store.Config{Backend: b, Now: func() time.Time { return now }})
	f := access.Facts{ServerID: "h-1", JoinToken: "tok"}
	if err := s.CheckLocks(t.Context(), f); err != nil {
		t.Fatalf("without locks = %v", err)
	}
	l := types.NewLock(&typesv1.LockTarget{JoinToken: "tok"}, "leaked", "admin", now, now.Add(time.Hour))
	if err := s.Tx().Create(l).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := s.CheckLocks(t.Context(), f)
	if !errors.Is(err, fault.ErrDenied) || fault.Code(err) != access.CodeLocked || err.Error() != access.LockText(l) {
		t.Errorf("locked token = %v, want the lock", err)
	}
	if err := s.CheckLocks(t.Context(), access.Facts{JoinToken: "other"}); err != nil {
		t.Errorf("another token = %v, want not locked", err)
	}
	now = now.Add(2 * time.Hour)
	if err := s.CheckLocks(t.Context(), f); err != nil {
		t.Errorf("after the end of the lock = %v, want not locked", err)
	}
}

package store_test

import (
	"errors"
	"fmt"
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

// However locks are kept, each kind of target is found among many others, as soon as
// the lock is made and until it is gone.
func TestCheckLocksAmongMany(t *testing.T) {
	s, _ := newStore(t)
	now := time.Now()
	var tx *store.Tx
	for i := range 1000 {
		if i%500 == 0 {
			if tx != nil {
				commit(t, tx)
			}
			tx = s.Tx()
		}
		target := &typesv1.LockTarget{ServerId: fmt.Sprint("other-", i)}
		if i%2 == 0 {
			target = &typesv1.LockTarget{User: fmt.Sprint("other-", i)}
		}
		tx.Create(types.NewLock(target, "", "admin", now, time.Time{}))
	}
	commit(t, tx)
	f := access.Facts{User: "u", Roles: []string{"r"}, Login: "l", ServerID: "h", JoinToken: "t", MFADevice: "d"}
	for name, target := range map[string]*typesv1.LockTarget{
		"user": {User: "u"}, "role": {Role: "r"}, "login": {Login: "l"}, "host": {ServerId: "h"}, "token": {JoinToken: "t"}, "device": {MfaDevice: "d"},
		"all": {User: "u", Role: "r", Login: "l", ServerId: "h", JoinToken: "t", MfaDevice: "d"},
	} {
		if err := s.CheckLocks(t.Context(), f); err != nil {
			t.Fatalf("%s: before the lock = %v", name, err)
		}
		l := types.NewLock(target, name, "admin", now, time.Time{})
		commit(t, s.Tx().Create(l))
		if err := s.CheckLocks(t.Context(), f); err == nil || err.Error() != access.LockText(l) {
			t.Errorf("%s: with the lock = %v", name, err)
		}
		if err := s.CheckLocks(t.Context(), access.Facts{User: "v", Roles: []string{"s"}, Login: "m", ServerID: "i", JoinToken: "o", MFADevice: "e"}); err != nil {
			t.Errorf("%s: of somebody else = %v", name, err)
		}
		if err := s.CheckLocks(t.Context(), access.Facts{}); err != nil {
			t.Errorf("%s: of nobody = %v", name, err)
		}
		commit(t, s.Tx().Delete(types.KindLock, l.GetMetadata().GetName(), ""))
		if err := s.CheckLocks(t.Context(), f); err != nil {
			t.Errorf("%s: without the lock = %v", name, err)
		}
	}
}

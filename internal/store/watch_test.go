package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"teleport/internal/backend"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func TestSnapshotAndWatch(t *testing.T) {
	s, b := newStore(t)
	ctx := t.Context()
	commit(t, s.Tx().Create(user("u1")).Create(role("r1")).Create(types.New(types.KindToken, "t1")))
	commit(t, s.Tx().Create(user("u2")).Emit(event("x")))
	if _, err := b.Batch(ctx, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "res/user/bad", Value: []byte("\xff")}}); err != nil {
		t.Fatal(err)
	}
	kinds := []string{types.KindUser, types.KindRole}
	snapshot, rev, err := s.Snapshot(ctx, kinds)
	if err != nil {
		t.Fatal(err)
	}
	text := func(c types.Change) string {
		return fmt.Sprintf("%d %s/%s %v", c.Revision, c.Kind, c.Name, c.Resource != nil)
	}
	var got []string
	for _, c := range snapshot {
		got = append(got, text(c))
	}
	if d := cmp.Diff([]string{"1 user/u1 true", "2 user/u2 true", "1 role/r1 true"}, got); d != "" || rev != 3 {
		t.Errorf("Snapshot at %d (-want +got):\n%s", rev, d)
	}
	if now, err := s.Revision(ctx); err != nil || now != rev {
		t.Errorf("Revision = %d, %v, want %d", now, err, rev)
	}
	w, err := s.Watch(ctx, kinds, rev)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s.Tx().Delete(types.KindToken, "t1", "").Emit(event("y")))
	commit(t, s.Tx().Delete(types.KindUser, "u1", "").Upsert(role("r1")).Upsert(role("r2")))
	if _, err := b.Batch(ctx, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "res/role/bad", Value: []byte("\xff")}}); err != nil {
		t.Fatal(err)
	}
	r3 := role("r3")
	commit(t, s.Tx().Upsert(r3))
	got = nil
	for range 4 {
		c := <-w.Changes()
		got = append(got, text(c))
		if c.Name == "r3" && !cmp.Equal(c.Resource, types.Resource(r3), protocmp.Transform()) {
			t.Errorf("change has %v, want %v", c.Resource, r3)
		}
	}
	if d := cmp.Diff([]string{"5 user/u1 false", "5 role/r1 true", "5 role/r2 true", "7 role/r3 true"}, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	if w.Err() != nil {
		t.Errorf("Err of a live watcher = %v", w.Err())
	}
	w.Close()
	w.Close()
	if _, ok := <-w.Changes(); ok || w.Err() == nil {
		t.Errorf("after Close: open %v, Err %v", ok, w.Err())
	}
	for name, bad := range map[string][]string{"none": nil, "plural": {"users"}, "event": {types.KindEvent}} {
		if _, err := s.Watch(ctx, bad, 0); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Watch %s: got error %v, want ErrInvalid", name, err)
		}
		if _, _, err := s.Snapshot(ctx, bad); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Snapshot %s: got error %v, want ErrInvalid", name, err)
		}
	}
	if _, err := s.Watch(ctx, kinds, 1000); !errors.Is(err, fault.ErrStale) {
		t.Errorf("Watch after a revision to come: got error %v, want ErrStale", err)
	}
}

func TestWatchEnds(t *testing.T) {
	s, b := newStore(t)
	cause := errors.New("because of the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	w, err := s.Watch(ctx, []string{types.KindUser}, 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	for range w.Changes() {
		continue
	}
	if !errors.Is(w.Err(), cause) {
		t.Errorf("Err = %v, want the cause of the context", w.Err())
	}
	w, err = s.Watch(t.Context(), []string{types.KindUser}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ew, err := s.WatchEvents(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	// The other end closes while nobody receives.
	commit(t, s.Tx().Create(user("u")).Emit(event("x")))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range w.Changes() {
		continue
	}
	for range ew.Events() {
		continue
	}
	wants(t, w.Err(), fault.ErrUnreachable, "closed")
	wants(t, ew.Err(), fault.ErrUnreachable, "closed")
	w.Close()
	ew.Close()
}

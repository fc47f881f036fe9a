package store_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/store"
	"teleport/internal/types"
)

// reads counts the ranges that are read of a backend.
type reads struct {
	*memory.Backend
	mu sync.Mutex
	n  int
}

func (r *reads) Range(ctx context.Context, start, end string, limit int) ([]backend.Item, uint64, error) {
	r.mu.Lock()
	r.n++
	r.mu.Unlock()
	return r.Backend.Range(ctx, start, end, limit)
}

// undated is a backend that does not know when something changed.
type undated struct{ backend.Backend }

func names(users []*typesv1.User) string {
	var out []string
	for _, u := range users {
		out = append(out, u.GetMetadata().GetName())
	}
	return fmt.Sprint(out)
}

// What is kept is read once, and never older than a write that has returned.
func TestKept(t *testing.T) {
	b := &reads{Backend: memory.New()}
	t.Cleanup(func() { _ = b.Close() })
	s, other := store.New(store.Config{Backend: b}), store.New(store.Config{Backend: b})
	want := func(want string, reads int) {
		t.Helper()
		before := b.n
		for range 3 {
			got, err := store.Kept(t.Context(), s, types.KindUser, names)
			if err != nil || got != want {
				t.Fatalf("Kept = %s, %v, want %s", got, err, want)
			}
		}
		if got := b.n - before; got != reads {
			t.Errorf("read %d times for %s, want %d", got, want, reads)
		}
	}
	want("[]", 1)
	commit(t, s.Tx().Create(user("a")))
	want("[a]", 1)
	commit(t, s.Tx().Create(role("a")))
	want("[a]", 0)
	commit(t, other.Tx().Create(user("b")))
	want("[a b]", 1)
	commit(t, s.Tx().Delete(types.KindUser, "a", ""))
	want("[b]", 1)
	if _, err := store.Kept(t.Context(), s, types.KindUser, func(u []*typesv1.User) int { return len(u) }); err == nil {
		t.Error("one kind was kept as two things")
	}
}

func TestKeptUndated(t *testing.T) {
	_, b := newStore(t)
	s := store.New(store.Config{Backend: undated{b}})
	for _, want := range []string{"[]", "[a]"} {
		if got, err := store.Kept(t.Context(), s, types.KindUser, names); err != nil || got != want {
			t.Errorf("Kept = %s, %v, want %s", got, err, want)
		}
		commit(t, store.New(store.Config{Backend: b}).Tx().Upsert(user("a")))
	}
}

// What has expired is gone at that moment, not when it is removed.
func TestKeptExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newStore(t)
		soon := user("soon")
		soon.Metadata.Expires = timestamppb.New(time.Now().Add(10 * time.Millisecond))
		commit(t, s.Tx().Create(soon).Create(user("a")))
		for _, want := range []string{"[a soon]", "[a]", "[a]"} {
			if got, err := store.Kept(t.Context(), s, types.KindUser, names); err != nil || got != want {
				t.Errorf("Kept = %s, %v, want %s", got, err, want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// Whoever reads after a write has it, while others read and write.
func TestKeptTogether(t *testing.T) {
	s, _ := newStore(t)
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			for i := range 50 {
				name := fmt.Sprintf("u-%d-%d", w, i)
				if err := s.Tx().Create(user(name)).Commit(t.Context()); err != nil {
					t.Error(err)
				}
				got, err := store.Kept(t.Context(), s, types.KindUser, func(users []*typesv1.User) map[string]bool {
					out := map[string]bool{}
					for _, u := range users {
						out[u.GetMetadata().GetName()] = true
					}
					return out
				})
				if err != nil || !got[name] {
					t.Errorf("%s was made and is not there: %v", name, err)
				}
			}
		})
	}
	work.Wait()
}

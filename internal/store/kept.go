package store

import (
	"context"
	"sync"
	"time"

	"teleport/internal/backend"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// kept is what was last read of a kind, and what was made of it. It is good until the
// backend says that the kind changed.
type kept struct {
	mu    sync.Mutex
	valid bool
	at    uint64
	value any
	// ends is when the first of the resources expires; zero is never.
	ends time.Time
}

// Kept returns what make makes of all resources of a kind, as they are at this moment:
// a write that has returned is in it. The result is kept and shared until a resource of
// the kind changes or expires, so that asking again costs next to nothing: callers must
// not change it. It is for kinds that are read with every request and written rarely,
// and there is one make for a kind.
func Kept[T types.Resource, V any](ctx context.Context, s *Store, kind string, make func([]T) V) (V, error) {
	var none V
	dated, ok := s.backend.(backend.Dated)
	if !ok {
		all, err := All[T](ctx, s, kind)
		if err != nil {
			return none, err
		}
		return make(all), nil
	}
	k := s.keep(kind)
	k.mu.Lock()
	defer k.mu.Unlock()
	start, _ := backend.Prefix(resources, kind)
	// Before reading: what changes meanwhile makes the next caller read again.
	at := dated.Latest(start)
	if !k.valid || k.at != at || backend.Expired(k.ends, time.Now()) {
		all, err := All[T](ctx, s, kind)
		if err != nil {
			return none, err
		}
		k.valid, k.at, k.value, k.ends = true, at, make(all), time.Time{}
		for _, r := range all {
			if e := r.GetMetadata().GetExpires(); e != nil && (k.ends.IsZero() || e.AsTime().Before(k.ends)) {
				k.ends = e.AsTime()
			}
		}
	}
	v, ok := k.value.(V)
	if !ok {
		return none, fault.Invalid("kind %s is kept as something else", kind)
	}
	return v, nil
}

func (s *Store) keep(kind string) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[kind]
	if k == nil {
		k = &kept{}
		s.kept[kind] = k
	}
	return k
}

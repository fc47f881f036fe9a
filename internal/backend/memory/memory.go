// Package memory is the backend that keeps everything in the process: for tests
// and for clusters that may be forgotten. It is not durable.
package memory

import (
	"bytes"
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"teleport/internal/backend"
)

// sweepEvery is how often expired items are removed.
const sweepEvery = time.Second

// Backend is a store in memory.
type Backend struct {
	feed *backend.Feed
	stop chan struct{}
	done chan struct{}

	mu       sync.RWMutex
	items    map[string]backend.Item
	keys     []string // sorted
	expiring expiries
	revision uint64
	closed   bool
}

// New returns an empty store. Close it to end its goroutines.
func New() *Backend {
	b := &Backend{
		feed:  backend.NewFeed(backend.FeedConfig{}),
		items: make(map[string]backend.Item),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	go b.sweepLoop()
	return b
}

// Get implements backend.Backend.
func (b *Backend) Get(ctx context.Context, key string) (backend.Item, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return backend.Item{}, err
	}
	it, ok := b.liveLocked(key, time.Now())
	if !ok {
		return backend.Item{}, backend.NotFound(key)
	}
	it.Value = bytes.Clone(it.Value)
	return it, nil
}

// Range implements backend.Backend.
func (b *Backend) Range(ctx context.Context, start, end string, limit int) ([]backend.Item, uint64, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return nil, 0, err
	}
	from, _ := slices.BinarySearch(b.keys, start)
	to := len(b.keys)
	if end != "" {
		to, _ = slices.BinarySearch(b.keys, end)
	}
	var out []backend.Item
	now := time.Now()
	take := func(i int) bool {
		if it, ok := b.liveLocked(b.keys[i], now); ok {
			it.Value = bytes.Clone(it.Value)
			out = append(out, it)
		}
		return limit == 0 || len(out) < max(limit, -limit)
	}
	if limit < 0 {
		for i := to - 1; i >= from && take(i); i-- {
			continue
		}
	} else {
		for i := from; i < to && take(i); i++ {
			continue
		}
	}
	return out, b.revision, nil
}

// Batch implements backend.Backend.
func (b *Backend) Batch(ctx context.Context, ops ...backend.Op) (uint64, error) {
	if err := backend.CheckBatch(ops); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usableLocked(ctx); err != nil {
		return 0, err
	}
	now := time.Now()
	for _, op := range ops {
		it, ok := b.liveLocked(op.Item.Key, now)
		if err := backend.Admit(op, ok, it.Revision); err != nil {
			return 0, err
		}
	}
	revision := b.revision + 1
	events := make([]backend.Event, 0, len(ops))
	for _, op := range ops {
		switch op.Type {
		case backend.OpCheck:
		case backend.OpDelete:
			b.removeLocked(op.Item.Key)
			events = append(events, backend.Event{Revision: revision, Deleted: true, Item: backend.Item{Key: op.Item.Key}})
		default:
			it := op.Item
			it.Revision = revision
			it.Value = bytes.Clone(it.Value)
			it.Expires = backend.Precise(it.Expires)
			b.setLocked(it)
			events = append(events, backend.Event{Revision: revision, Item: it})
		}
	}
	if len(events) == 0 {
		return b.revision, nil
	}
	b.revision = revision
	b.feed.Publish(revision, events)
	return revision, nil
}

// Watch implements backend.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, after uint64) (backend.Watcher, error) {
	return b.feed.Watch(ctx, prefix, after)
}

// Latest implements backend.Dated.
func (b *Backend) Latest(prefix string) uint64 { return b.feed.Latest(prefix) }

// Close implements backend.Backend.
func (b *Backend) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.stop)
	}
	b.mu.Unlock()
	<-b.done
	b.feed.Close()
	return nil
}

func (b *Backend) usableLocked(ctx context.Context) error {
	if b.closed {
		return backend.Closed()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (b *Backend) liveLocked(key string, now time.Time) (backend.Item, bool) {
	it, ok := b.items[key]
	if !ok || backend.Expired(it.Expires, now) {
		return backend.Item{}, false
	}
	return it, true
}

func (b *Backend) setLocked(it backend.Item) {
	if _, ok := b.items[it.Key]; !ok {
		at, _ := slices.BinarySearch(b.keys, it.Key)
		b.keys = slices.Insert(b.keys, at, it.Key)
	}
	b.items[it.Key] = it
	if !it.Expires.IsZero() {
		heap.Push(&b.expiring, expiry{at: it.Expires, key: it.Key})
	}
}

func (b *Backend) removeLocked(key string) {
	delete(b.items, key)
	if at, ok := slices.BinarySearch(b.keys, key); ok {
		b.keys = slices.Delete(b.keys, at, at+1)
	}
}

func (b *Backend) sweepLoop() {
	defer close(b.done)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case now := <-tick.C:
			b.sweep(now)
		}
	}
}

// sweep removes what has expired, as one change.
func (b *Backend) sweep(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var events []backend.Event
	for len(b.expiring) > 0 && !b.expiring[0].at.After(now) {
		e, ok := heap.Pop(&b.expiring).(expiry)
		// The item may have been deleted or written again since.
		if it, there := b.items[e.key]; !ok || !there || !it.Expires.Equal(e.at) {
			continue
		}
		b.removeLocked(e.key)
		events = append(events, backend.Event{Revision: b.revision + 1, Deleted: true, Item: backend.Item{Key: e.key}})
	}
	if len(events) > 0 {
		b.revision++
		b.feed.Publish(b.revision, events)
	}
}

type expiry struct {
	at  time.Time
	key string
}

// expiries is a heap, the soonest first.
type expiries []expiry

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e expiries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }

// Push implements heap.Interface.
func (e *expiries) Push(x any) {
	if v, ok := x.(expiry); ok {
		*e = append(*e, v)
	}
}

// Pop implements heap.Interface.
func (e *expiries) Pop() any {
	last := len(*e) - 1
	v := (*e)[last]
	*e = (*e)[:last]
	return v
}

var _ backend.Backend = (*Backend)(nil)

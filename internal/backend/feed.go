package backend

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"teleport/internal/fault"
)

// Feed is the watch half of a plug: the recent changes in memory, and the
// watchers that read them. A watcher holds a place in the shared history and no
// buffer of its own, so that a slow one costs nothing and is dropped with
// fault.ErrStale when history leaves it behind.
type Feed struct {
	maxEvents int
	maxBytes  int
	watchers  sync.WaitGroup
	done      chan struct{}

	mu      sync.Mutex
	log     []Event
	first   uint64 // place of log[0]; places count up for ever
	bytes   int
	floor   uint64 // the log has every change of a revision greater than this
	current uint64
	latest  map[string]uint64 // by prefix, of those that were asked for
	closed  bool
	wake    chan struct{} // closed and replaced at each change
}

// FeedConfig bounds a Feed. Zero values mean the defaults.
type FeedConfig struct {
	// Events and Bytes bound the history that is kept.
	Events int
	Bytes  int
	// Floor is the revision that the history starts after.
	Floor uint64
}

// NewFeed returns a feed without history.
func NewFeed(cfg FeedConfig) *Feed {
	if cfg.Events <= 0 {
		cfg.Events = 16384
	}
	if cfg.Bytes <= 0 {
		cfg.Bytes = 8 << 20
	}
	return &Feed{
		maxEvents: cfg.Events, maxBytes: cfg.Bytes, floor: cfg.Floor, current: cfg.Floor,
		done: make(chan struct{}), wake: make(chan struct{}), latest: make(map[string]uint64),
	}
}

// Publish adds the changes of one or more revisions, in order. The feed keeps
// the values: the caller must not change them afterwards.
func (f *Feed) Publish(revision uint64, events []Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = max(f.current, revision)
	for _, e := range events {
		f.log = append(f.log, e)
		f.bytes += eventSize(e)
		for prefix := range f.latest {
			if strings.HasPrefix(e.Item.Key, prefix) {
				f.latest[prefix] = max(f.latest[prefix], e.Revision)
			}
		}
	}
	drop := 0
	for drop < len(f.log) && (len(f.log)-drop > f.maxEvents || f.bytes > f.maxBytes) {
		f.bytes -= eventSize(f.log[drop])
		f.floor = f.log[drop].Revision
		drop++
	}
	clear(f.log[:drop])
	f.log = f.log[drop:]
	f.first += uint64(drop)
	close(f.wake)
	f.wake = make(chan struct{})
}

func eventSize(e Event) int { return len(e.Item.Key) + len(e.Item.Value) + 96 }

// Latest implements Dated.
func (f *Feed) Latest(prefix string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.latest[prefix]
	if !ok {
		at = f.current
		f.latest[prefix] = at
	}
	return at
}

// Watch implements Backend.Watch.
func (f *Feed) Watch(ctx context.Context, prefix string, after uint64) (Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, Closed()
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case after < f.floor:
		return nil, fault.Stale("the changes after revision %d are no longer kept: read again and watch anew", after)
	case after > f.current:
		return nil, fault.Stale("revision %d is not of this store, which is at %d: read again and watch anew", after, f.current)
	}
	at, _ := slices.BinarySearchFunc(f.log, after, func(e Event, after uint64) int {
		if e.Revision > after {
			return 1
		}
		return -1
	})
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{feed: f, prefix: prefix, place: f.first + uint64(at), events: make(chan Event), cancel: cancel, ended: make(chan struct{})}
	f.watchers.Add(1)
	go w.run(ctx)
	return w, nil
}

// Close ends every watcher and waits for them.
func (f *Feed) Close() {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		close(f.done)
	}
	f.mu.Unlock()
	f.watchers.Wait()
}

// next returns changes with the prefix from the place on, the place after them,
// and what to wait for when there are none.
func (f *Feed) next(prefix string, place uint64) ([]Event, uint64, <-chan struct{}, error) {
	const most, scan = 64, 2048
	f.mu.Lock()
	defer f.mu.Unlock()
	if place < f.first {
		return nil, 0, nil, fault.Stale("the watcher fell behind the changes that are kept: read again and watch anew")
	}
	rest := f.log[place-f.first:]
	var out []Event
	n := 0
	for n < len(rest) && n < scan && len(out) < most {
		if strings.HasPrefix(rest[n].Item.Key, prefix) {
			out = append(out, rest[n])
		}
		n++
	}
	if n < len(rest) {
		return out, place + uint64(n), nil, nil
	}
	return out, place + uint64(n), f.wake, nil
}

type watcher struct {
	feed   *Feed
	prefix string
	place  uint64
	events chan Event
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // set before ended is closed
}

func (w *watcher) run(ctx context.Context) {
	defer w.feed.watchers.Done()
	defer close(w.events)
	defer close(w.ended)
	defer w.cancel()
	for {
		events, place, wake, err := w.feed.next(w.prefix, w.place)
		if err != nil {
			w.err = err
			return
		}
		w.place = place
		for _, e := range events {
			// Values in the history are shared; what is handed out is the receiver's.
			e.Item.Value = slices.Clone(e.Item.Value)
			select {
			case w.events <- e:
			case <-ctx.Done():
				w.err = context.Cause(ctx)
				return
			case <-w.feed.done:
				w.err = Closed()
				return
			}
		}
		if wake == nil {
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
			w.err = context.Cause(ctx)
			return
		case <-w.feed.done:
			w.err = Closed()
			return
		}
	}
}

// Events implements Watcher.
func (w *watcher) Events() <-chan Event { return w.events }

// Err implements Watcher.
func (w *watcher) Err() error {
	select {
	case <-w.ended:
		return w.err
	default:
		return nil
	}
}

// Close implements Watcher: it ends the watcher and waits for it.
func (w *watcher) Close() {
	w.cancel()
	<-w.ended
}

func quote(key string) string { return strconv.Quote(key) }

package store

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/backend"
	"teleport/internal/fault"
)

// Bounds of SearchEvents.
const (
	DefaultEvents = 100
	MaxEvents     = 1000

	scanPage = 500
	maxScan  = 20000
)

// EventQuery selects audit events.
type EventQuery struct {
	// From and To bound the time, From included and To not; a zero time is no bound.
	From time.Time
	To   time.Time
	// Types are event types; none means all.
	Types []string
	// Limit is at most MaxEvents; 0 means DefaultEvents.
	Limit int
	// PageToken continues a search with the same other fields.
	PageToken string
	// Ascending is oldest first; otherwise newest first.
	Ascending bool
}

// sortable writes a time so that the texts sort as the times do.
func sortable(t time.Time) string { return t.UTC().Format("20060102T150405.000000000Z") }

// SearchEvents returns events by time and the token of the next page, or "" at
// the end. A page may have fewer events than the limit, even none, when they are
// large or much had to be read to find them; the token then continues.
func (s *Store) SearchEvents(ctx context.Context, q EventQuery) ([]*auditv1.Event, string, error) {
	if q.Limit <= 0 {
		q.Limit = DefaultEvents
	}
	q.Limit = min(q.Limit, MaxEvents)
	start, end := backend.Prefix(audits)
	prefix := start
	if !q.From.IsZero() {
		start = backend.Key(audits, sortable(q.From))
	}
	if !q.To.IsZero() {
		end = backend.Key(audits, sortable(q.To))
	}
	if q.PageToken != "" {
		last, err := parsePageToken(q.PageToken, prefix)
		if err != nil {
			return nil, "", err
		}
		if q.Ascending {
			start = max(start, last+"\x00")
		} else {
			end = min(end, last)
		}
	}
	var out []*auditv1.Event
	bytes := 0
	for scanned := 0; ; {
		if start >= end {
			return out, "", nil
		}
		size := scanPage
		if len(q.Types) == 0 {
			size = q.Limit - len(out)
		}
		items, err := s.eventPage(ctx, start, end, size, q.Ascending)
		if err != nil {
			return nil, "", err
		}
		for i, it := range items {
			if e, ok := s.event(ctx, it); ok && (len(q.Types) == 0 || slices.Contains(q.Types, e.GetEvent())) {
				out = append(out, e)
				bytes += len(it.Value)
			}
			full := len(out) == q.Limit || bytes > pageBytes
			if last := i == len(items)-1; full && (!last || len(items) == size) {
				return out, newPageToken(it.Key), nil
			}
		}
		if len(items) < size {
			return out, "", nil
		}
		last := items[len(items)-1].Key
		if scanned += len(items); scanned >= maxScan {
			return out, newPageToken(last), nil
		}
		if q.Ascending {
			start = last + "\x00"
		} else {
			end = last
		}
	}
}

func (s *Store) eventPage(ctx context.Context, start, end string, size int, ascending bool) ([]backend.Item, error) {
	if !ascending {
		size = -size
	}
	items, _, err := s.backend.Range(ctx, start, end, size)
	return items, err
}

func (s *Store) event(ctx context.Context, it backend.Item) (*auditv1.Event, bool) {
	e := &auditv1.Event{}
	if err := proto.Unmarshal(it.Value, e); err != nil {
		s.log.WarnContext(ctx, "a stored event cannot be read and is left out", "key", it.Key, "error", err)
		return nil, false
	}
	return e, true
}

// StoredEvent is an encoded event and the revision that it was stored at.
type StoredEvent struct {
	Revision uint64
	Value    []byte
}

// watchRoom is how many events a watcher has ready for who reads it: handing over each
// alone would be a change of goroutines for each.
const watchRoom = 128

// EventWatcher delivers events in the order in which they were stored.
type EventWatcher struct {
	events chan StoredEvent
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// WatchEvents delivers the events stored after the revision. fault.ErrStale when
// that history is gone, at once or later: search instead, then watch anew.
func (s *Store) WatchEvents(ctx context.Context, after uint64) (*EventWatcher, error) {
	ctx, cancel := context.WithCancel(ctx)
	in, err := s.backend.Watch(ctx, audits+backend.Separator, after)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &EventWatcher{events: make(chan StoredEvent, watchRoom), cancel: cancel, done: make(chan struct{})}
	go s.pumpEvents(ctx, in, w)
	return w, nil
}

func (s *Store) pumpEvents(ctx context.Context, in backend.Watcher, w *EventWatcher) {
	defer close(w.events)
	defer close(w.done)
	defer in.Close()
	defer w.cancel()
	for change := range in.Events() {
		if change.Deleted {
			continue
		}
		select {
		case w.events <- StoredEvent{Revision: change.Revision, Value: change.Item.Value}:
		case <-ctx.Done():
			w.err = context.Cause(ctx)
			return
		}
	}
	w.err = in.Err()
}

// Events is closed when the watcher ends; Err says why.
func (w *EventWatcher) Events() <-chan StoredEvent { return w.events }

// Err is nil until Events is closed.
func (w *EventWatcher) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// Close ends the watcher and waits for it.
func (w *EventWatcher) Close() {
	w.cancel()
	<-w.done
}

// Emit stores events on their own, without a change of resources.
func (s *Store) Emit(ctx context.Context, events ...*auditv1.Event) error {
	if len(events) == 0 {
		return fault.Invalid("no events were given")
	}
	return s.Tx().Emit(events...).Commit(ctx)
}

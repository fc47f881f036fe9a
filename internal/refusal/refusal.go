// Package refusal keeps a program that is refused again and again from flooding the
// audit log: the first refusal is an event, the same one within a minute only counts,
// and the count becomes an event of its own. It decides nothing.
package refusal

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
)

const (
	// window is how long the same refusal is only counted.
	window = time.Minute
	// most bounds the refusals that are remembered.
	most = 1000
)

// Book remembers the refusals of the last minute. It is safe for concurrent use.
type Book struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[string]*entry
}

type entry struct {
	event *auditv1.Event
	at    time.Time
	// more counts those after the event.
	more int
}

// NewBook returns an empty book.
func NewBook(now func() time.Time) *Book { return &Book{now: now, seen: map[string]*entry{}} }

// Note gives e its uid and returns true, unless the same was refused within the window:
// then it counts, gives e the uid of the first, and returns false. What key and the code
// of the event agree in is the same.
func (b *Book) Note(e *auditv1.Event, key ...string) bool {
	k := e.GetCode() + "\x00" + strings.Join(key, "\x00")
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.seen[k]; old != nil && b.now().Sub(old.at) < window {
		old.more++
		e.Uid = old.event.GetUid()
		return false
	}
	e.Uid = uuid.NewString()
	if len(b.seen) < most {
		b.seen[k] = &entry{event: proto.CloneOf(e), at: b.now()}
	}
	return true
}

// Run hands the counts to emit now and then, and when ctx ends.
func (b *Book) Run(ctx context.Context, emit func(ctx context.Context, events ...*auditv1.Event)) {
	tick := time.NewTicker(window)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		if events := b.expired(ended); len(events) > 0 {
			emit(context.WithoutCancel(ctx), events...)
		}
	}
}

// expired forgets what is older than the window, or everything, and returns an event
// with the count for each that was repeated.
func (b *Book) expired(all bool) []*auditv1.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*auditv1.Event
	for key, old := range b.seen {
		if !all && b.now().Sub(old.at) < window {
			continue
		}
		delete(b.seen, key)
		if old.more == 0 {
			continue
		}
		e := proto.CloneOf(old.event)
		first := e.GetUid()
		e.Uid, e.Time = "", nil
		if e.GetFields() == nil {
			e.Fields = &structpb.Struct{}
		}
		if e.Fields.Fields == nil {
			e.Fields.Fields = map[string]*structpb.Value{}
		}
		e.Fields.Fields["repeated"] = structpb.NewNumberValue(float64(old.more))
		e.Fields.Fields["first_event"] = structpb.NewStringValue(first)
		out = append(out, e)
	}
	return out
}

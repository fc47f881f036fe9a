package ssh

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
)

const (
	// refusalWindow is how long the same refusal is only counted: a program that
	// tries again and again must not flood the audit log.
	refusalWindow = time.Minute
	maxRefusals   = 1000
)

// refusals remembers those of the last minute.
type refusals struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[string]*refusal
}

type refusal struct {
	event *auditv1.Event
	at    time.Time
	// more counts those after the event.
	more int
}

func newRefusals(now func() time.Time) *refusals {
	return &refusals{now: now, seen: map[string]*refusal{}}
}

// note gives e its uid and returns true, unless the same was refused within the
// window: then it counts, gives e the uid of the first, and returns false.
func (r *refusals) note(key string, e *auditv1.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.seen[key]; old != nil && r.now().Sub(old.at) < refusalWindow {
		old.more++
		e.Uid = old.event.GetUid()
		return false
	}
	e.Uid = uuid.NewString()
	if len(r.seen) < maxRefusals {
		r.seen[key] = &refusal{event: proto.CloneOf(e), at: r.now()}
	}
	return true
}

// expired forgets what is older than the window, or everything, and returns an
// event with the count for each that was repeated.
func (r *refusals) expired(all bool) []*auditv1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*auditv1.Event
	for key, old := range r.seen {
		if !all && r.now().Sub(old.at) < refusalWindow {
			continue
		}
		delete(r.seen, key)
		if old.more == 0 {
			continue
		}
		e := proto.CloneOf(old.event)
		first := e.GetUid()
		e.Uid, e.Time = "", nil
		e.Fields.Fields["repeated"] = structpb.NewNumberValue(float64(old.more))
		e.Fields.Fields["first_event"] = structpb.NewStringValue(first)
		out = append(out, e)
	}
	return out
}

// reportRefusals writes the counts to the audit log now and then, and at the end.
func (s *Service) reportRefusals(ctx context.Context) {
	tick := time.NewTicker(refusalWindow)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		events := s.refusals.expired(ended)
		if len(events) == 0 {
			continue
		}
		s.emitLate(ctx, events...)
	}
}

// emitLate stores events even if ctx has ended.
func (s *Service) emitLate(ctx context.Context, events ...*auditv1.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := s.cfg.Emit(ctx, events...); err != nil {
		s.cfg.Log.ErrorContext(ctx, "events are not in the audit log", "error", err, "count", len(events), "first", events[0].GetEvent())
	}
}

package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/control"
	"teleport/internal/fault"
)

// log is an audit service in memory.
type log struct {
	mu     sync.Mutex
	away   bool
	events []string
	uids   map[string]bool
}

func (l *log) conn() *fakeAuth {
	l.uids = map[string]bool{}
	return &fakeAuth{invoke: func(ctx context.Context, req any) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, ok := ctx.Deadline(); !ok {
			return fault.Invalid("no deadline")
		}
		if l.away {
			return fault.Unreachable("away")
		}
		events := req.(*auditv1.EmitEventsRequest).GetEvents()
		if len(events) > 1000 {
			return fault.Invalid("too many")
		}
		for _, e := range events {
			if e.GetEvent() == "poison" {
				return fault.Invalid("poison")
			}
			if e.GetUid() == "" || e.GetTime() == nil {
				return fault.Invalid("unstamped")
			}
		}
		for _, e := range events {
			l.events = append(l.events, e.GetEvent())
			l.uids[e.GetUid()] = true
		}
		return nil
	}}
}

func (l *log) set(away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = away
}

func (l *log) stored() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func event(name string) *auditv1.Event { return &auditv1.Event{Event: name} }

func TestEmit(t *testing.T) {
	l := &log{}
	e := control.NewEmitter(l.conn(), nil)
	if err := e.Emit(t.Context(), event("a"), event("b")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, l.events); diff != "" {
		t.Error(diff)
	}
	if len(l.uids) != 2 {
		t.Errorf("%d different uids, want 2", len(l.uids))
	}
	if err := e.Emit(t.Context(), event("poison")); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Emit of a refused event = %v, want ErrInvalid", err)
	}
	var many []*auditv1.Event
	for i := range 2500 {
		many = append(many, event(fmt.Sprint(i)))
	}
	if err := e.Emit(t.Context(), many...); err != nil || len(l.events) != 2502 {
		t.Errorf("Emit of 2500 = %v with %d stored, want 2502", err, len(l.events))
	}
}

func TestEmitWhileAuthIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{away: true}
		e := control.NewEmitter(l.conn(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		var want []string
		for i := range 250 {
			name := fmt.Sprint(i)
			if err := e.Emit(t.Context(), event(name)); err != nil {
				t.Fatal(err)
			}
			if i == 120 {
				if err := e.Emit(t.Context(), event("poison")); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, name)
		}
		l.set(false)
		// Newer events queue behind older ones.
		if err := e.Emit(t.Context(), event("last")); err != nil {
			t.Fatal(err)
		}
		want = append(want, "last")
		for len(l.stored()) < len(want) {
			synctest.Wait()
			sleep(t)
		}
		if diff := cmp.Diff(want, l.stored()); diff != "" {
			t.Error(diff)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestEmitterFlushesAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{away: true}
		e := control.NewEmitter(l.conn(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		if err := e.Emit(t.Context(), event("a")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // Run waits for its next attempt
		l.set(false)
		cancel()
		<-done
		if diff := cmp.Diff([]string{"a"}, l.events); diff != "" {
			t.Error(diff)
		}
	})
}

func TestEmitOverflow(t *testing.T) {
	l := &log{away: true}
	e := control.NewEmitter(l.conn(), nil)
	big := make([]*auditv1.Event, 10_000)
	for i := range big {
		big[i] = event("x")
	}
	if err := e.Emit(t.Context(), big...); err != nil {
		t.Fatal(err)
	}
	if err := e.Emit(t.Context(), event("one too many")); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("Emit = %v, want ErrLimit", err)
	}
}

// sleep lets the fake clock go on.
func sleep(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 1e9)
	defer cancel()
	<-ctx.Done()
}

func TestEmitLargeEvents(t *testing.T) {
	most := 0
	e := control.NewEmitter(&fakeAuth{invoke: func(_ context.Context, req any) error {
		most = max(most, proto.Size(req.(proto.Message)))
		return nil
	}}, nil)
	events := make([]*auditv1.Event, 300)
	for i := range events {
		events[i] = audit.New(audit.DatabaseQuery, map[string]any{"db_query": strings.Repeat("x", 16<<10), "db_query_parameters": []string{strings.Repeat("y", 16<<10)}})
	}
	if err := e.Emit(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	// Auth refuses what is longer than 4 MiB.
	if most > 3<<20 {
		t.Errorf("a call of %d bytes", most)
	}
}

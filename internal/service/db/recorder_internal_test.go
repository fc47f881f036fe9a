package db

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
)

func TestRecorderKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		calls := 0
		r := newRecorder(func(_ context.Context, events ...*auditv1.Event) error {
			calls++
			for _, e := range events {
				got = append(got, e.GetUid())
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx)
		}()
		r.add(queued{event: &auditv1.Event{Uid: "first"}}, false)
		synctest.Wait()
		if calls != 1 {
			t.Error("a single event does not go at once")
		}
		for n := range 100 {
			r.add(queued{event: &auditv1.Event{Uid: fmt.Sprint(n)}}, false)
		}
		time.Sleep(linger)
		synctest.Wait()
		if calls != 2 || len(got) != 101 || got[1] != "0" || got[100] != "99" {
			t.Errorf("%d events in %d calls, want 100 in order in one more", len(got), calls)
		}
		// Somebody who waits does not wait for company.
		began := time.Now()
		waits := make(chan error, 1)
		r.add(queued{event: &auditv1.Event{}, done: waits}, true)
		if err := <-waits; err != nil || time.Since(began) != 0 {
			t.Errorf("an urgent event: %v after %s", err, time.Since(began))
		}
		// What is queued when the service stops is sent as well.
		r.add(queued{event: &auditv1.Event{Uid: "last"}}, false)
		cancel()
		<-done
		if got[len(got)-1] != "last" {
			t.Errorf("the last event is %q", got[len(got)-1])
		}
		var late error
		r.add(queued{event: &auditv1.Event{}, lost: func(err error) { late = err }}, false)
		if late == nil {
			t.Error("an event after the end is lost, and nobody hears of it")
		}
	})
}

func TestRecorderIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		r := newRecorder(func(context.Context, ...*auditv1.Event) error {
			<-free
			return errors.New("the log is full")
		})
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { r.run(ctx) })
		var mu sync.Mutex
		added, lost := 0, 0
		work.Go(func() {
			for range 3 * maxQueued {
				r.add(queued{event: &auditv1.Event{}, lost: func(error) {
					mu.Lock()
					defer mu.Unlock()
					lost++
				}}, false)
				mu.Lock()
				added++
				mu.Unlock()
			}
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		if added > 2*maxQueued {
			t.Errorf("%d events were taken while none could be stored, the bound is %d", added, maxQueued)
		}
		mu.Unlock()
		close(free)
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		work.Wait()
		if added != 3*maxQueued || lost != added {
			t.Errorf("%d of %d events are lost, and told, want all", lost, added)
		}
		// By size, too.
		r = newRecorder(func(context.Context, ...*auditv1.Event) error { return nil })
		blocked := make(chan struct{})
		go func() {
			defer close(blocked)
			for range 3 {
				r.add(queued{event: &auditv1.Event{}, size: maxQueuedBytes / 2}, false)
			}
		}()
		synctest.Wait()
		select {
		case <-blocked:
			t.Error("more bytes than the bound were taken")
		default:
		}
		r.flush(t.Context())
		<-blocked
	})
}

func TestUIDs(t *testing.T) {
	r := &record{h: &session{s: &Service{cfg: Config{Now: time.Now}}}, uid: uuid.New()}
	seen := map[string]bool{}
	for n := range int64(1000) {
		r.next = n << 20
		e := r.stamp(audit.DatabaseQuery)
		if id, err := uuid.Parse(e.GetUid()); err != nil || id.Version() != 4 || seen[e.GetUid()] {
			t.Fatalf("uid %d = %q, %v", n, e.GetUid(), err)
		}
		seen[e.GetUid()] = true
	}
}

// An event that Auth refuses is lost alone.
func TestRecorderFindsWhatIsRefused(t *testing.T) {
	stored := map[string]bool{}
	r := newRecorder(func(_ context.Context, events ...*auditv1.Event) error {
		for _, e := range events {
			if e.GetUid() == "33" {
				return fault.Invalid("no")
			}
		}
		for _, e := range events {
			stored[e.GetUid()] = true
		}
		return nil
	})
	var lost []string
	for n := range 100 {
		uid := fmt.Sprint(n)
		r.add(queued{event: &auditv1.Event{Uid: uid}, lost: func(error) { lost = append(lost, uid) }}, false)
	}
	r.flush(t.Context())
	if len(lost) != 1 || lost[0] != "33" || len(stored) != 99 {
		t.Errorf("%d events are stored and %q lost, want all but one", len(stored), lost)
	}
}

package join

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/fault"
)

// fill takes every place, for a source of its own.
func fill(t *testing.T, q *queue) {
	t.Helper()
	for range maxWorking {
		if err := q.enter(t.Context(), "busy"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueueTakesSourcesInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		fill(t, q)
		order := make(chan string, 64)
		wait := func(source string) {
			go func() {
				if err := q.enter(t.Context(), source); err != nil {
					t.Error(err)
				}
				order <- source
			}()
			synctest.Wait()
		}
		for range 20 {
			wait("crowd")
		}
		wait("alone")
		var got []string
		for range 3 {
			q.leave()
			got = append(got, <-order)
		}
		if fmt.Sprint(got) != "[crowd alone crowd]" {
			t.Errorf("order %v: one machine waited behind a crowd of another address", got)
		}
		for range 18 {
			q.leave()
			<-order
		}
		for range maxWorking {
			q.leave()
		}
		if q.working != 0 || q.waiting != 0 || len(q.lanes) != 0 || len(q.turns) != 0 {
			t.Errorf("left behind: %d working, %d waiting, lanes %v, turns %v", q.working, q.waiting, q.lanes, q.turns)
		}
	})
}

func TestQueueSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		fill(t, q)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		gone := make(chan error, 2*maxQueued)
		for range maxQueued {
			go func() { gone <- q.enter(ctx, "crowd") }()
		}
		synctest.Wait()
		err := q.enter(t.Context(), "crowd")
		if fault.Code(err) != CodeBusy || !errors.Is(err, fault.ErrLimit) || fault.RetryAfter(err) < time.Second {
			t.Fatalf("enter a full queue = %v, retry after %s", err, fault.RetryAfter(err))
		}
		// The crowd does not keep out another address.
		go func() { gone <- q.enter(ctx, "alone") }()
		synctest.Wait()
		if q.waiting != maxQueued+1 {
			t.Errorf("%d wait, want the one of the other address as well", q.waiting)
		}
		cancel()
		for range maxQueued + 1 {
			if err := <-gone; !errors.Is(err, errGone) {
				t.Fatalf("enter = %v, want %v", err, errGone)
			}
		}
		if q.waiting != 0 {
			t.Errorf("%d still wait after they left", q.waiting)
		}
		// The places are all there for those who come later.
		for range maxWorking {
			q.leave()
		}
		fill(t, q)
	})
}

func TestQueueGivesPlacesOfThoseWhoLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		fill(t, q)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- q.enter(ctx, "a") }()
		synctest.Wait()
		go func() { second <- q.enter(t.Context(), "b") }()
		synctest.Wait()
		cancel()
		<-first
		q.leave()
		if err := <-second; err != nil {
			t.Fatal(err)
		}
	})
}

func TestOneTokenDoesNotTakeEveryPlace(t *testing.T) {
	q := newQueue()
	places := make([]place, 0, maxAsking)
	for range maxAsking {
		p := place{queue: q, source: "a", token: "aws"}
		if err := p.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		places = append(places, p)
	}
	more := place{queue: q, source: "b", token: "aws"}
	if err := more.take(t.Context()); fault.Code(err) != CodeBusy || fault.RetryAfter(err) == 0 {
		t.Fatalf("one more join by the token = %v, want %s", err, CodeBusy)
	}
	if q.working != maxAsking {
		t.Errorf("%d places are taken, want %d: the refused join kept one", q.working, maxAsking)
	}
	for _, p := range []place{{queue: q, source: "b", token: "gcp"}, {queue: q, source: "b"}} {
		if err := p.take(t.Context()); err != nil {
			t.Errorf("a join by another token = %v", err)
		}
		p.release()
	}
	for i := range places {
		places[i].release()
	}
	if len(q.asking) != 0 || q.working != 0 {
		t.Errorf("left behind: %v, %d working", q.asking, q.working)
	}
}

// Who comes and goes again does not get more turns by it.
func TestQueueGivesOneTurnToASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		fill(t, q)
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _ = q.enter(ctx, "restless") }()
			synctest.Wait()
			cancel()
			synctest.Wait()
		}
		order := make(chan string, 8)
		for _, source := range []string{"restless", "restless", "restless", "alone"} {
			go func() {
				if err := q.enter(t.Context(), source); err != nil {
					t.Error(err)
				}
				order <- source
			}()
			synctest.Wait()
		}
		var got []string
		for range 4 {
			q.leave()
			got = append(got, <-order)
		}
		if fmt.Sprint(got) != "[restless alone restless restless]" || len(q.turns) != 0 {
			t.Errorf("order %v, turns left %v", got, q.turns)
		}
	})
}

package join

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/fault"
)

// fill takes every place, for a source of its own.
func fill(t *testing.T, q *gate) {
	t.Helper()
	for range maxWorking {
		if err := q.enter(t.Context(), "busy", false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueueTakesSourcesInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Now).work
		fill(t, q)
		order := make(chan string, 64)
		wait := func(source string) {
			go func() {
				if err := q.enter(t.Context(), source, false); err != nil {
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
			q.Leave()
			got = append(got, <-order)
		}
		if fmt.Sprint(got) != "[crowd alone crowd]" {
			t.Errorf("order %v: one machine waited behind a crowd of another address", got)
		}
		for range 18 {
			q.Leave()
			<-order
		}
		for range maxWorking {
			q.Leave()
		}
		if inside, waiting := q.Count(); inside != 0 || waiting != 0 {
			t.Errorf("left behind: %d working, %d waiting", inside, waiting)
		}
	})
}

func TestQueueSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Now).work
		fill(t, q)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		gone := make(chan error, 2*maxQueued)
		for range maxQueued {
			go func() { gone <- q.enter(ctx, "crowd", false) }()
		}
		synctest.Wait()
		err := q.enter(t.Context(), "crowd", false)
		if fault.Code(err) != CodeBusy || !errors.Is(err, fault.ErrLimit) || fault.RetryAfter(err) < time.Second {
			t.Fatalf("enter a full queue = %v, retry after %s", err, fault.RetryAfter(err))
		}
		// The crowd does not keep out another address.
		go func() { gone <- q.enter(ctx, "alone", false) }()
		synctest.Wait()
		if _, waiting := q.Count(); waiting != maxQueued+1 {
			t.Errorf("%d wait, want the one of the other address as well", waiting)
		}
		cancel()
		for range maxQueued + 1 {
			if err := <-gone; !errors.Is(err, errGone) {
				t.Fatalf("enter = %v, want %v", err, errGone)
			}
		}
		if _, waiting := q.Count(); waiting != 0 {
			t.Errorf("%d still wait after they left", waiting)
		}
		// The places are all there for those who come later.
		for range maxWorking {
			q.Leave()
		}
		fill(t, q)
	})
}

func TestQueueGivesPlacesOfThoseWhoLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Now).work
		fill(t, q)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- q.enter(ctx, "a", false) }()
		synctest.Wait()
		go func() { second <- q.enter(t.Context(), "b", false) }()
		synctest.Wait()
		cancel()
		<-first
		q.Leave()
		if err := <-second; err != nil {
			t.Fatal(err)
		}
	})
}

// Proofs that a cloud has to vouch for wait for their turn by token, and in the way of
// nobody else.
func TestOneTokenDoesNotTakeEveryPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Now)
		in := make(chan *place, 4*maxAskingToken)
		take := func(source, token string) {
			go func() {
				p := &place{queue: q, source: source, token: token, again: true}
				if err := p.take(t.Context()); err != nil {
					t.Errorf("take by %q: %v", token, err)
				}
				in <- p
			}()
			synctest.Wait()
		}
		for range maxAskingToken + 5 {
			take("a", "aws")
		}
		take("b", "aws")
		if len(in) != maxAskingToken {
			t.Fatalf("%d joins by one token are inside, want %d", len(in), maxAskingToken)
		}
		for _, token := range []string{"gcp", ""} {
			before := len(in)
			take("c", token)
			if len(in) != before+1 {
				t.Errorf("a join by token %q waits for those of another", token)
			}
		}
		first, second := <-in, <-in
		first.release()
		second.release()
		synctest.Wait()
		sources := map[string]bool{}
		for n := len(in); n > 0; n-- {
			p := <-in
			sources[p.source] = true
			in <- p
		}
		if !sources["b"] {
			t.Error("a machine of another address waits for all of the crowd that came before it")
		}
		for range maxAskingToken + 5 + 1 {
			synctest.Wait()
			(<-in).release()
		}
		asking, _ := q.asks.Count()
		working, _ := q.work.Count()
		if len(q.byToken) != 0 || asking != 0 || working != 0 {
			t.Errorf("left behind: %v, %d asking, %d working", q.byToken, asking, working)
		}
	})
}

// Who was let in before is not turned away, and does not wait for those who come later.
func TestQueueLetsThoseBackIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newQueue(time.Now).work
		fill(t, g)
		order := make(chan string, 2*maxQueued)
		enter := func(ctx context.Context, name string, back bool) {
			go func() {
				if err := g.enter(ctx, "a", back); err == nil {
					order <- name
				}
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range maxQueued {
			enter(ctx, "new", false)
		}
		enter(ctx, "back", true)
		g.Leave()
		if got := <-order; got != "back" {
			t.Errorf("the %s one went in first", got)
		}
		cancel()
		synctest.Wait()
		// One whose time is over learns when to come back.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx, "b", true); fault.Code(err) != CodeBusy || fault.RetryAfter(err) == 0 {
			t.Errorf("enter until the time was over = %v", err)
		}
	})
}

// Those who are told to come back are told different times, at the pace of the joins.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(time.Now)
		seconds := func(source string) float64 { return p.comeBack(source, 100).Seconds() }
		last := 0.0
		for i := range 200 {
			if got, want := seconds("crowd"), 1+100/firstPace+float64(i)/firstPace; math.Abs(got-want) > 0.001 || got <= last {
				t.Fatalf("number %d is to come back in %v s, after the one in %v s, want %v", i, got, last, want)
			} else {
				last = got
			}
		}
		if got := seconds("alone"); math.Abs(got-2) > 0.001 {
			t.Errorf("another address is to come back in %v s, want 2", got)
		}
		for range 20_000 {
			if got := p.comeBack("crowd", 100); got > maxComeBack {
				t.Fatalf("told to wait %s", got)
			}
		}
		time.Sleep(2 * maxComeBack)
		// Joins that nobody waited for say nothing about the pace, the others do.
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			p.note(false)
		}
		if p.perSecond != firstPace {
			t.Errorf("pace %v, of joins that were all there was", p.perSecond)
		}
		for range 20 * 500 {
			time.Sleep(2 * time.Millisecond)
			p.note(true)
		}
		if math.Abs(p.perSecond-500) > 5 {
			t.Errorf("pace %v of 500 joins a second", p.perSecond)
		}
		if got := seconds("crowd"); math.Abs(got-1.2) > 0.01 {
			t.Errorf("behind 100 at 500 a second: come back in %v s, want 1.2", got)
		}
	})
}

// Who comes and goes again does not get more turns by it.
func TestQueueGivesOneTurnToASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Now).work
		fill(t, q)
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _ = q.enter(ctx, "restless", false) }()
			synctest.Wait()
			cancel()
			synctest.Wait()
		}
		order := make(chan string, 8)
		for _, source := range []string{"restless", "restless", "restless", "alone"} {
			go func() {
				if err := q.enter(t.Context(), source, false); err != nil {
					t.Error(err)
				}
				order <- source
			}()
			synctest.Wait()
		}
		var got []string
		for range 4 {
			q.Leave()
			got = append(got, <-order)
		}
		if _, waiting := q.Count(); fmt.Sprint(got) != "[restless alone restless restless]" || waiting != 0 {
			t.Errorf("order %v, %d left", got, waiting)
		}
	})
}

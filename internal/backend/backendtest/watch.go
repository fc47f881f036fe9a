package backendtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

func watch(t *testing.T, b backend.Backend, prefix string, after uint64) backend.Watcher {
	t.Helper()
	w, err := b.Watch(t.Context(), prefix, after)
	if err != nil {
		t.Fatalf("Watch(%q, %d): %v", prefix, after, err)
	}
	t.Cleanup(w.Close)
	return w
}

// next returns the next n events as "revision key=value" or "revision -key".
func next(t *testing.T, w backend.Watcher, n int) []string {
	t.Helper()
	var out []string
	for range n {
		select {
		case e, ok := <-w.Events():
			if !ok {
				t.Fatalf("watch ended after %d of %d events: %v", len(out), n, w.Err())
			}
			out = append(out, eventText(e))
		case <-time.After(30 * time.Second):
			t.Fatalf("no event after %d of %d: %v", len(out), n, out)
		}
	}
	return out
}

func eventText(e backend.Event) string {
	if e.Deleted {
		return fmt.Sprintf("%d -%s", e.Revision, e.Item.Key)
	}
	return fmt.Sprintf("%d %s=%s", e.Revision, e.Item.Key, e.Item.Value)
}

func testWatchOrder(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	w := watch(t, b, "", 0)
	r1 := must(t, b, create("b", "1"), create("a", "1"), check("z", 0))
	r2 := must(t, b, put("a", "2"))
	r3 := must(t, b, remove("b", 0), create("c", "1"))
	same(t, "events", next(t, w, 5), []string{
		fmt.Sprintf("%d b=1", r1), fmt.Sprintf("%d a=1", r1),
		fmt.Sprintf("%d a=2", r2),
		fmt.Sprintf("%d -b", r3), fmt.Sprintf("%d c=1", r3),
	})
	at := time.Now().Add(time.Hour)
	must(t, b, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "x", Value: []byte("v"), Expires: at}})
	e := <-w.Events()
	same(t, "item of an event", e.Item, get(t, b, "x"))
	if err := w.Err(); err != nil {
		t.Fatalf("Err of a live watcher = %v", err)
	}
}

func testWatchPrefix(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	w := watch(t, b, "a/b/", 0)
	must(t, b, put("a/b", "no"), put("a/bc", "no"), put("a/bc/1", "no"), put("a", "no"), put("b/a/b/1", "no"))
	r := must(t, b, put("a/b/1", "yes"), put("a/c", "no"))
	r2 := must(t, b, remove("a/bc", 0), remove("a/b/1", 0))
	same(t, "events", next(t, w, 2), []string{fmt.Sprintf("%d a/b/1=yes", r), fmt.Sprintf("%d -a/b/1", r2)})
}

// testLatest is for those that are backend.Dated: the date of a prefix has moved when a
// write under it returns, and only then.
func testLatest(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	d, ok := b.(backend.Dated)
	if !ok {
		return
	}
	must(t, b, put("a/b/0", "before"))
	was := d.Latest("a/b/")
	moved := func(what string, want bool) {
		t.Helper()
		now := d.Latest("a/b/")
		if now < was || (now > was) != want {
			t.Errorf("%s: the date of the prefix went from %d to %d, want a later one: %v", what, was, now, want)
		}
		was = now
	}
	moved("nothing", false)
	must(t, b, put("a/b", "no"), put("a/bc/1", "no"), put("b/a/b/1", "no"))
	moved("writes beside it", false)
	must(t, b, check("a/b/0", 1), check("a/b/1", 0))
	moved("checks", false)
	if _, err := b.Batch(t.Context(), create("a/b/0", "again")); !errors.Is(err, fault.ErrExists) {
		t.Fatalf("Create of a key that exists = %v", err)
	}
	moved("a write that failed", false)
	must(t, b, put("a/b/1", "yes"))
	moved("put", true)
	must(t, b, remove("a/b/1", 0))
	moved("delete", true)
	at := time.Now().Add(50 * time.Millisecond)
	must(t, b, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "a/b/2", Value: []byte("v"), Expires: at}})
	moved("put with an end", true)
	w := watch(t, b, "a/b/2", was)
	next(t, w, 1)
	moved("the end", true)
}

func testWatchResume(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	var revs []uint64
	for i := range 100 {
		revs = append(revs, must(t, b, put(fmt.Sprintf("k%d", i%7), fmt.Sprint(i)), put("other", fmt.Sprint(i))))
	}
	for _, from := range []int{0, 1, 50, 98, 99} {
		w := watch(t, b, "k", revs[from])
		for i := from + 1; i < 100; i++ {
			same(t, "event", next(t, w, 1), []string{fmt.Sprintf("%d k%d=%d", revs[i], i%7, i)})
		}
		w.Close()
	}
}

func testWatchNotOurs(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	r := must(t, b, put("k", "v"))
	if _, err := b.Watch(t.Context(), "", r+1); !errors.Is(err, fault.ErrStale) {
		t.Fatalf("Watch after a revision to come: got error %v, want ErrStale", err)
	}
}

// outrun writes more than any history keeps.
func outrun(t *testing.T, b backend.Backend) {
	t.Helper()
	value := strings.Repeat("v", 64<<10)
	for round := range 16 {
		ops := make([]backend.Op, 64)
		for i := range ops {
			ops[i] = put(fmt.Sprintf("bulk/%d", i), value+fmt.Sprint(round))
		}
		must(t, b, ops...)
	}
}

func testWatchSlow(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	r := must(t, b, put("k", "v"))
	slow := watch(t, b, "", 0)
	same(t, "first event", next(t, slow, 1), []string{fmt.Sprintf("%d k=v", r)})
	outrun(t, b)
	// It may still have some changes in hand, but must then end and say why.
	for range slow.Events() {
		continue
	}
	if err := slow.Err(); !errors.Is(err, fault.ErrStale) {
		t.Fatalf("Err of a slow watcher = %v, want ErrStale", err)
	}
	if _, err := b.Watch(t.Context(), "", r); !errors.Is(err, fault.ErrStale) {
		t.Fatalf("Watch after a revision that is no longer kept: got error %v, want ErrStale", err)
	}
	_, now, err := b.Range(t.Context(), "k", "l", 0)
	if err != nil {
		t.Fatal(err)
	}
	again := watch(t, b, "", now)
	r = must(t, b, put("k", "w"))
	same(t, "event", next(t, again, 1), []string{fmt.Sprintf("%d k=w", r)})
}

func testWatchEnds(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	cause := errors.New("because of the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	w, err := b.Watch(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if e, ok := <-w.Events(); ok {
		t.Fatalf("event %v after the context ended", e)
	}
	if err := w.Err(); !errors.Is(err, cause) {
		t.Fatalf("Err = %v, want the cause of the context", err)
	}
	w.Close()

	w, err = b.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	must(t, b, put("k", "v")) // not received
	w.Close()
	w.Close()
	for range w.Events() {
		continue
	}
	if w.Err() == nil {
		t.Fatal("Err is nil after Close")
	}
}

func testSnapshotAndWatch(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	const writes = 300
	go func() {
		for i := range writes {
			if _, err := b.Batch(context.WithoutCancel(t.Context()), put(fmt.Sprintf("k/%d", i%10), fmt.Sprint(i))); err != nil {
				t.Errorf("Batch: %v", err)
			}
		}
		if _, err := b.Batch(context.WithoutCancel(t.Context()), put("k/end", "")); err != nil {
			t.Errorf("Batch: %v", err)
		}
	}()
	// However the read falls among the writes, it and the watch make up the end state.
	start, end := backend.Prefix("k")
	items, rev, err := b.Range(t.Context(), start, end, 0)
	if err != nil {
		t.Fatal(err)
	}
	state := make(map[string]string)
	for _, it := range items {
		if it.Revision > rev {
			t.Fatalf("item of revision %d in an answer of revision %d", it.Revision, rev)
		}
		state[it.Key] = string(it.Value)
	}
	w := watch(t, b, start, rev)
	for last := rev; ; {
		if _, done := state["k/end"]; done {
			break
		}
		e := <-w.Events()
		if e.Revision <= last {
			t.Fatalf("event of revision %d after %d", e.Revision, last)
		}
		last = e.Revision
		state[e.Item.Key] = string(e.Item.Value)
	}
	items, _, err = b.Range(t.Context(), start, end, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for _, it := range items {
		want[it.Key] = string(it.Value)
	}
	same(t, "state", state, want)
}

func expiring(key, value string, in time.Duration) backend.Op {
	return backend.Op{Type: backend.OpPut, Item: backend.Item{Key: key, Value: []byte(value), Expires: time.Now().Add(in)}}
}

func testExpiry(t *testing.T, open func(*testing.T) backend.Backend) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t)
		r := must(t, b, expiring("a", "1", time.Minute), expiring("b", "1", time.Hour), put("c", "1"))
		if got, want := get(t, b, "a").Expires, time.Now().Add(time.Minute); !got.Equal(want) {
			t.Fatalf("Expires = %v, want %v", got, want)
		}
		time.Sleep(time.Minute - time.Microsecond)
		same(t, "items", all(t, b), []string{"a=1", "b=1", "c=1"})
		// It is gone at that moment, whether or not it was removed already.
		time.Sleep(time.Microsecond)
		missing(t, b, "a")
		same(t, "items", all(t, b), []string{"b=1", "c=1"})
		same(t, "items with a limit", limited(t, b, 2), []string{"b=1", "c=1"})
		same(t, "last items", limited(t, b, -3), []string{"c=1", "b=1"})
		refused(t, b, fault.ErrNotFound, "a", update("a", "2", r))
		refused(t, b, fault.ErrNotFound, "a", remove("a", 0))
		refused(t, b, fault.ErrStale, "a", check("a", r))
		must(t, b, check("a", 0), put("d", "1"))
		must(t, b, create("a", "2"))
		time.Sleep(2 * time.Hour)
		same(t, "items", all(t, b), []string{"a=2", "c=1", "d=1"})
	})
}

func limited(t *testing.T, b backend.Backend, limit int) []string {
	t.Helper()
	items, _, err := b.Range(t.Context(), "", "", limit)
	if err != nil {
		t.Fatal(err)
	}
	return texts(items)
}

func testExpiryWatch(t *testing.T, open func(*testing.T) backend.Backend) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t)
		const n = 700 // more than a sweeper may want to remove at once
		for i := range n {
			must(t, b, expiring(fmt.Sprintf("k%03d", i), "v", time.Minute))
		}
		r := must(t, b, put("other", "v"))
		w := watch(t, b, "", r)
		start := time.Now()
		gone := make(map[string]bool)
		last := r
		for range n {
			e := <-w.Events()
			if !e.Deleted || gone[e.Item.Key] || e.Revision < last {
				t.Fatalf("event %v after revision %d", eventText(e), last)
			}
			gone[e.Item.Key], last = true, e.Revision
		}
		if took := time.Since(start); took < 59*time.Second || took > 75*time.Second {
			t.Fatalf("items of a minute were removed after %v", took)
		}
		_, now, err := b.Range(t.Context(), "x", "y", 0)
		if err != nil || now != last {
			t.Fatalf("revision = %d, %v, want that of the last event, %d", now, err, last)
		}
		same(t, "items", all(t, b), []string{"other=v"})
	})
}

func testExpiryRenewed(t *testing.T, open func(*testing.T) backend.Backend) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t)
		for i := range 10 {
			must(t, b, expiring("heartbeat", fmt.Sprint(i), time.Minute))
			time.Sleep(40 * time.Second)
		}
		same(t, "items", all(t, b), []string{"heartbeat=9"})
		must(t, b, put("heartbeat", "for ever"))
		time.Sleep(24 * time.Hour)
		same(t, "items", all(t, b), []string{"heartbeat=for ever"})
	})
}

package backend_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

func TestKey(t *testing.T) {
	parts := []string{"res", "a/b", "100%", "%2F"}
	if got, want := backend.Key(parts...), "res/a%2Fb/100%25/%252F"; got != want {
		t.Errorf("Key = %q, want %q", got, want)
	}
	if parts[1] != "a/b" || parts[2] != "100%" {
		t.Errorf("Key changed its arguments: %q", parts)
	}
	part := rapid.StringMatching(`[ab/%]{0,4}`)
	rapid.Check(t, func(r *rapid.T) {
		a, b := rapid.SliceOfN(part, 3, 3).Draw(r, "a"), rapid.SliceOfN(part, 3, 3).Draw(r, "b")
		if same := fmt.Sprint(a) == fmt.Sprint(b); same != (backend.Key(a...) == backend.Key(b...)) {
			r.Fatalf("Key(%q) = %q, Key(%q) = %q", a, backend.Key(a...), b, backend.Key(b...))
		}
	})
}

func TestEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a/": "a0", "a\xff": "b", "\xff\xff": "", "": "", "a\xff\xffb": "a\xff\xffc"} {
		if got := backend.End(prefix); got != want {
			t.Errorf("End(%q) = %q, want %q", prefix, got, want)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		prefix, s := rapid.StringMatching(`[a-b\x{fe}]{1,3}`).Draw(r, "prefix"), rapid.String().Draw(r, "s")
		end := backend.End(prefix)
		if inside := s >= prefix && s < end; inside != strings.HasPrefix(s, prefix) {
			r.Fatalf("%q is inside [%q, %q): %v", s, prefix, end, inside)
		}
	})
}

func TestPrecise(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 123456789, time.FixedZone("x", 3600))
	if got, want := backend.Precise(at), time.Date(2030, 1, 2, 2, 4, 5, 123456000, time.UTC); got != want {
		t.Errorf("Precise = %v, want %v", got, want)
	}
	if got := backend.Precise(time.Time{}); !got.IsZero() {
		t.Errorf("Precise of never = %v", got)
	}
	if backend.Expired(time.Time{}, at) || !backend.Expired(at, at) || backend.Expired(at, at.Add(-1)) {
		t.Error("Expired is wrong about the very moment")
	}
}

func publish(f *backend.Feed, revision uint64, keys ...string) {
	var events []backend.Event
	for _, k := range keys {
		events = append(events, backend.Event{Revision: revision, Item: backend.Item{Key: k, Value: []byte("value"), Revision: revision}})
	}
	f.Publish(revision, events)
}

// TestFeedHistory checks what a short history keeps, and that half a revision
// counts as lost.
func TestFeedHistory(t *testing.T) {
	f := backend.NewFeed(backend.FeedConfig{Events: 4, Floor: 10})
	defer f.Close()
	watch := func(after uint64) (backend.Watcher, error) { return f.Watch(t.Context(), "", after) }
	for _, after := range []uint64{9, 11} {
		if _, err := watch(after); !errors.Is(err, fault.ErrStale) {
			t.Errorf("Watch after %d of 10: got error %v, want ErrStale", after, err)
		}
	}
	publish(f, 11, "a", "b")
	publish(f, 12, "c")
	publish(f, 13, "d", "e") // drops a of 11
	for _, after := range []uint64{9, 10} {
		if _, err := watch(after); !errors.Is(err, fault.ErrStale) {
			t.Errorf("Watch after %d: got error %v, want ErrStale", after, err)
		}
	}
	for after, want := range map[uint64]string{11: "c d e", 12: "d e", 13: ""} {
		w, err := watch(after)
		if err != nil {
			t.Fatalf("Watch after %d: %v", after, err)
		}
		var got []string
		for range len(strings.Fields(want)) {
			e := <-w.Events()
			got = append(got, e.Item.Key)
			e.Item.Value[0] = 'X' // is the receiver's own
		}
		w.Close()
		if strings.Join(got, " ") != want {
			t.Errorf("Watch after %d = %q, want %q", after, got, want)
		}
	}
	w, err := watch(12)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if e := <-w.Events(); string(e.Item.Value) != "value" {
		t.Errorf("a receiver changed the value of another: %q", e.Item.Value)
	}
}

// TestFeedBytes checks that large values shorten the history.
func TestFeedBytes(t *testing.T) {
	f := backend.NewFeed(backend.FeedConfig{Bytes: 1000})
	defer f.Close()
	f.Publish(1, []backend.Event{{Revision: 1, Item: backend.Item{Key: "small"}}})
	f.Publish(2, []backend.Event{{Revision: 2, Item: backend.Item{Key: "large", Value: make([]byte, 2000)}}})
	for _, after := range []uint64{0, 1} {
		if _, err := f.Watch(t.Context(), "", after); !errors.Is(err, fault.ErrStale) {
			t.Errorf("Watch after %d: got error %v, want ErrStale", after, err)
		}
	}
	if w, err := f.Watch(t.Context(), "", 2); err != nil {
		t.Errorf("Watch after the last revision: %v", err)
	} else {
		w.Close()
	}
}

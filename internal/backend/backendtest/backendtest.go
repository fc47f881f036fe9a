// Package backendtest is the suite that every backend passes. It is for the tests
// of the plugs, not for products.
package backendtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

// Run puts a backend through the suite. Open returns an empty one and has it
// closed by t.Cleanup; it may be called inside a synctest bubble.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	t.Helper()
	tests := map[string]func(*testing.T, func(*testing.T) backend.Backend){
		"create":              testCreate,
		"update":              testUpdate,
		"delete":              testDelete,
		"check":               testCheck,
		"batch_atomic":        testBatchAtomic,
		"batch_refused":       testBatchRefused,
		"range_bounds":        testRangeBounds,
		"range_limits":        testRangeLimits,
		"values":              testValues,
		"revision":            testRevision,
		"expiry":              testExpiry,
		"expiry_watch":        testExpiryWatch,
		"expiry_renewed":      testExpiryRenewed,
		"watch_order":         testWatchOrder,
		"watch_prefix":        testWatchPrefix,
		"watch_resume":        testWatchResume,
		"watch_not_ours":      testWatchNotOurs,
		"watch_slow":          testWatchSlow,
		"watch_ends":          testWatchEnds,
		"snapshot_and_watch":  testSnapshotAndWatch,
		"latest":              testLatest,
		"writers":             testWriters,
		"compare_and_set":     testCompareAndSet,
		"readers_see_batches": testReadersSeeBatches,
		"cancelled":           testCancelled,
		"closed":              testClosed,
		"model":               testModel,
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range tests {
			if !yield(n) {
				return
			}
		}
	}) {
		t.Run(name, func(t *testing.T) { tests[name](t, open) })
	}
}

func create(key, value string) backend.Op {
	return backend.Op{Type: backend.OpCreate, Item: backend.Item{Key: key, Value: []byte(value)}}
}

func put(key, value string) backend.Op {
	return backend.Op{Type: backend.OpPut, Item: backend.Item{Key: key, Value: []byte(value)}}
}

func update(key, value string, revision uint64) backend.Op {
	return backend.Op{Type: backend.OpUpdate, Item: backend.Item{Key: key, Value: []byte(value), Revision: revision}}
}

func remove(key string, revision uint64) backend.Op {
	return backend.Op{Type: backend.OpDelete, Item: backend.Item{Key: key, Revision: revision}}
}

func check(key string, revision uint64) backend.Op {
	return backend.Op{Type: backend.OpCheck, Item: backend.Item{Key: key, Revision: revision}}
}

func must(t *testing.T, b backend.Backend, ops ...backend.Op) uint64 {
	t.Helper()
	revision, err := b.Batch(t.Context(), ops...)
	if err != nil {
		t.Fatalf("Batch: %v", err)
	}
	return revision
}

// refused checks that the batch fails with the kind, and names the key.
func refused(t *testing.T, b backend.Backend, kind error, key string, ops ...backend.Op) {
	t.Helper()
	_, err := b.Batch(t.Context(), ops...)
	if !errors.Is(err, kind) {
		t.Fatalf("Batch: got error %v, want %v", err, kind)
	}
	var ke *backend.KeyError
	if key != "" && (!errors.As(err, &ke) || ke.Key != key) {
		t.Fatalf("Batch: error %v does not name key %q", err, key)
	}
}

func get(t *testing.T, b backend.Backend, key string) backend.Item {
	t.Helper()
	it, err := b.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return it
}

func missing(t *testing.T, b backend.Backend, key string) {
	t.Helper()
	if it, err := b.Get(t.Context(), key); !errors.Is(err, fault.ErrNotFound) {
		t.Fatalf("Get(%q) = %v, %v, want ErrNotFound", key, it, err)
	}
}

// all returns "key=value" of every item.
func all(t *testing.T, b backend.Backend) []string {
	t.Helper()
	items, _, err := b.Range(t.Context(), "", "", 0)
	if err != nil {
		t.Fatalf("Range: %v", err)
	}
	return texts(items)
}

func texts(items []backend.Item) []string {
	var out []string
	for _, it := range items {
		out = append(out, it.Key+"="+string(it.Value))
	}
	return out
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func testCreate(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	missing(t, b, "k")
	rev := must(t, b, create("k", "v"))
	it := get(t, b, "k")
	same(t, "item", it, backend.Item{Key: "k", Value: []byte("v"), Revision: rev})
	refused(t, b, fault.ErrExists, "k", create("k", "other"))
	same(t, "value", string(get(t, b, "k").Value), "v")
	// A put does not mind, and the value that was read is the reader's.
	it.Value[0] = 'X'
	rev2 := must(t, b, put("k", "w"), put("new", "n"))
	same(t, "items", all(t, b), []string{"k=w", "new=n"})
	same(t, "revision", get(t, b, "k").Revision, rev2)
}

func testUpdate(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	refused(t, b, fault.ErrNotFound, "k", update("k", "v", 1))
	r1 := must(t, b, create("k", "1"))
	r2 := must(t, b, update("k", "2", r1))
	refused(t, b, fault.ErrStale, "k", update("k", "3", r1))
	refused(t, b, fault.ErrStale, "k", update("k", "3", r2+1))
	refused(t, b, fault.ErrStale, "k", update("k", "3", 0))
	same(t, "items", all(t, b), []string{"k=2"})
}

func testDelete(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	refused(t, b, fault.ErrNotFound, "k", remove("k", 0))
	r1 := must(t, b, create("k", "1"))
	refused(t, b, fault.ErrStale, "k", remove("k", r1+1))
	must(t, b, remove("k", r1))
	missing(t, b, "k")
	must(t, b, create("k", "again"))
	must(t, b, remove("k", 0))
	missing(t, b, "k")
	refused(t, b, fault.ErrNotFound, "k", remove("k", r1))
}

func testCheck(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	must(t, b, check("k", 0), create("a", "1"))
	refused(t, b, fault.ErrStale, "k", check("k", 1), put("a", "2"))
	r := must(t, b, create("k", "v"))
	refused(t, b, fault.ErrStale, "k", check("k", 0), put("a", "2"))
	refused(t, b, fault.ErrStale, "k", check("k", r+1), put("a", "2"))
	same(t, "items", all(t, b), []string{"a=1", "k=v"})
	must(t, b, check("k", r), put("a", "3"))
	same(t, "items", all(t, b), []string{"a=3", "k=v"})
	same(t, "revision of a key that was only checked", get(t, b, "k").Revision, r)
}

func testBatchAtomic(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	r := must(t, b, create("a", "1"), create("b", "1"), create("c", "1"))
	for _, key := range []string{"a", "b", "c"} {
		same(t, "revision of "+key, get(t, b, key).Revision, r)
	}
	refused(t, b, fault.ErrExists, "c", put("a", "2"), remove("b", 0), create("c", "2"))
	refused(t, b, fault.ErrNotFound, "d", create("e", "2"), remove("d", 0))
	same(t, "items", all(t, b), []string{"a=1", "b=1", "c=1"})
	_, now, err := b.Range(t.Context(), "", "", 1)
	if err != nil || now != r {
		t.Fatalf("revision after refused batches = %d, %v, want %d", now, err, r)
	}
}

func testBatchRefused(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	many := make([]backend.Op, backend.MaxOps+1)
	for i := range many {
		many[i] = put(fmt.Sprintf("k%d", i), "v")
	}
	rows := map[string]struct {
		ops  []backend.Op
		kind error
	}{
		"empty":        {nil, fault.ErrInvalid},
		"twice":        {[]backend.Op{put("k", "1"), put("x", "1"), put("k", "2")}, fault.ErrInvalid},
		"check_twice":  {[]backend.Op{check("k", 0), create("k", "2")}, fault.ErrInvalid},
		"no_key":       {[]backend.Op{put("", "1")}, fault.ErrInvalid},
		"long_key":     {[]backend.Op{put(strings.Repeat("k", backend.MaxKey+1), "1")}, fault.ErrInvalid},
		"unknown_op":   {[]backend.Op{{Type: 99, Item: backend.Item{Key: "k"}}}, fault.ErrInvalid},
		"zero_op":      {[]backend.Op{{Item: backend.Item{Key: "k"}}}, fault.ErrInvalid},
		"large_value":  {[]backend.Op{put("k", strings.Repeat("v", backend.MaxValue+1))}, fault.ErrLimit},
		"too_many_ops": {many, fault.ErrInvalid},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			refused(t, b, row.kind, "", row.ops...)
			same(t, "items", all(t, b), []string(nil))
		})
	}
}

func testRangeBounds(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	keys := []string{"a", "a/", "a/a", "a/b", "a/b/1", "a/b/2", "a/b0", "a/bc", "a/bc/1", "a/é", "a/\xff", "b", "b/1", "\xff", "\xff\xff"}
	slices.Sort(keys)
	for i := range keys {
		must(t, b, put(keys[len(keys)-1-i], "v"))
	}
	keysOf := func(start, end string) []string {
		items, _, err := b.Range(t.Context(), start, end, 0)
		if err != nil {
			t.Fatalf("Range: %v", err)
		}
		out := []string{}
		for _, it := range items {
			out = append(out, it.Key)
		}
		return out
	}
	same(t, "everything", keysOf("", ""), keys)
	start, end := backend.Prefix("a", "b")
	same(t, "below a/b", keysOf(start, end), []string{"a/b/1", "a/b/2"})
	start, end = backend.Prefix("a", "bc")
	same(t, "below a/bc", keysOf(start, end), []string{"a/bc/1"})
	same(t, "end is excluded", keysOf("a/b", "a/b/2"), []string{"a/b", "a/b/1"})
	same(t, "start is included", keysOf("b", ""), []string{"b", "b/1", "\xff", "\xff\xff"})
	same(t, "all that start with 0xff", keysOf("\xff", backend.End("\xff")), []string{"\xff", "\xff\xff"})
	same(t, "turned round", keysOf("b", "a"), []string{})
	same(t, "empty", keysOf("a", "a"), []string{})
}

func testRangeLimits(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	for i := range 9 {
		must(t, b, put(fmt.Sprintf("k%d", i+1), fmt.Sprint(i+1)))
	}
	rows := map[string]struct {
		start, end string
		limit      int
		want       string
	}{
		"all":              {"k", "l", 0, "123456789"},
		"first":            {"k", "l", 3, "123"},
		"more_than_there":  {"k8", "l", 5, "89"},
		"last":             {"k", "l", -3, "987"},
		"last_before_end":  {"k", "k5", -2, "43"},
		"last_until_start": {"k7", "", -9, "987"},
		"one":              {"k3", "", 1, "3"},
		"last_one":         {"", "", -1, "9"},
		"none":             {"x", "y", -1, ""},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			items, _, err := b.Range(t.Context(), row.start, row.end, row.limit)
			if err != nil {
				t.Fatalf("Range: %v", err)
			}
			var got strings.Builder
			for _, it := range items {
				got.Write(it.Value)
			}
			same(t, "values", got.String(), row.want)
		})
	}
}

func testValues(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	large := strings.Repeat("large\x00value\xff", backend.MaxValue/12)
	rows := map[string]string{"empty": "", "zero": "\x00", "binary": "\x00\xff\xfe\n'\";--", "large": large}
	for name, value := range rows {
		must(t, b, create(name, value))
		if got := get(t, b, name); string(got.Value) != value {
			t.Fatalf("value %s: %d bytes came back different (%d bytes)", name, len(value), len(got.Value))
		}
	}
	must(t, b, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "nil"}})
	same(t, "nil value", len(get(t, b, "nil").Value), 0)
	// What the caller does with its bytes afterwards does not matter.
	value := []byte("before")
	must(t, b, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "own", Value: value}})
	copy(value, "after!")
	same(t, "value", string(get(t, b, "own").Value), "before")
	items, _, err := b.Range(t.Context(), "own", "own0", 0)
	if err != nil || len(items) != 1 {
		t.Fatalf("Range = %v, %v", items, err)
	}
	copy(items[0].Value, "after!")
	same(t, "value", string(get(t, b, "own").Value), "before")
}

func testRevision(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	last := uint64(0)
	current := func() uint64 {
		_, rev, err := b.Range(t.Context(), "x", "y", 0)
		if err != nil {
			t.Fatalf("Range: %v", err)
		}
		return rev
	}
	same(t, "revision of an empty store", current(), uint64(0))
	for i := range 20 {
		rev := must(t, b, put("k", fmt.Sprint(i)), put("l", fmt.Sprint(i)))
		if rev <= last {
			t.Fatalf("revision %d after %d", rev, last)
		}
		same(t, "current revision", current(), rev)
		last = rev
	}
	same(t, "revision of a check", must(t, b, check("none", 0)), last)
	same(t, "revision after a check", current(), last)
	if rev := must(t, b, remove("k", 0)); rev <= last {
		t.Fatalf("revision %d of a deletion after %d", rev, last)
	}
}

package backendtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

const writers = 16

func testWriters(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	const each = 40
	w := watch(t, b, "", 0)
	var mu sync.Mutex
	revisions := make(map[uint64]bool)
	var wg sync.WaitGroup
	for n := range writers {
		wg.Go(func() {
			for i := range each {
				r, err := b.Batch(t.Context(), create(fmt.Sprintf("w%02d/%03d", n, i), "v"), put(fmt.Sprintf("last/%02d", n), strconv.Itoa(i)))
				if err != nil {
					t.Errorf("Batch: %v", err)
					return
				}
				mu.Lock()
				if revisions[r] {
					t.Errorf("revision %d was given twice", r)
				}
				revisions[r] = true
				mu.Unlock()
				// What was acknowledged is there to read.
				if _, err := b.Get(t.Context(), fmt.Sprintf("w%02d/%03d", n, i)); err != nil {
					t.Errorf("Get: %v", err)
				}
			}
		})
	}
	seen := make(map[uint64]int)
	last := uint64(0)
	for range writers * each * 2 {
		e := <-w.Events()
		if e.Revision < last {
			t.Fatalf("event of revision %d after %d", e.Revision, last)
		}
		last = e.Revision
		seen[e.Revision]++
	}
	wg.Wait()
	if len(seen) != writers*each || len(revisions) != writers*each {
		t.Fatalf("%d revisions seen by the watcher and %d by the writers, want %d", len(seen), len(revisions), writers*each)
	}
	if got := len(all(t, b)); got != writers*(each+1) {
		t.Fatalf("%d items, want %d", got, writers*(each+1))
	}
}

func testCompareAndSet(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	const each = 20
	must(t, b, create("counter", "0"))
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				it, err := b.Get(t.Context(), "counter")
				if err != nil {
					t.Errorf("Get: %v", err)
					return
				}
				n, err := strconv.Atoi(string(it.Value))
				if err != nil {
					t.Errorf("counter: %v", err)
					return
				}
				switch _, err := b.Batch(t.Context(), update("counter", strconv.Itoa(n+1), it.Revision)); {
				case err == nil:
					done++
				case !errors.Is(err, fault.ErrStale):
					t.Errorf("Batch: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	same(t, "counter", string(get(t, b, "counter").Value), strconv.Itoa(writers*each))
}

func testReadersSeeBatches(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	must(t, b, put("pair/a", "0"), put("pair/b", "0"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			start, end := backend.Prefix("pair")
			for ctx.Err() == nil {
				items, rev, err := b.Range(t.Context(), start, end, 0)
				if err != nil {
					t.Errorf("Range: %v", err)
					return
				}
				if len(items) != 2 || string(items[0].Value) != string(items[1].Value) || items[0].Revision > rev {
					t.Errorf("a reader saw half a batch: %v at revision %d", texts(items), rev)
					return
				}
			}
		})
	}
	for i := range 300 {
		v := strconv.Itoa(i)
		must(t, b, put("pair/a", v), put("pair/b", v))
	}
	cancel()
	wg.Wait()
}

// testModel compares the backend with a map through random batches.
func testModel(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	model := make(map[string]backend.Item)
	rapid.Check(t, func(r *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "a/", "a/b", "a/b/c", "b", "c", "é", "\xff"}), 1, 4, rapid.ID).Draw(r, "keys")
		var ops []backend.Op
		for i, key := range keys {
			op := backend.Op{
				Type: rapid.SampledFrom([]backend.OpType{backend.OpCreate, backend.OpPut, backend.OpUpdate, backend.OpDelete, backend.OpCheck}).Draw(r, "op"),
				Item: backend.Item{Key: key, Value: rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(r, "value")},
			}
			switch rapid.IntRange(0, 3).Draw(r, "revision") {
			case 0:
			case 1:
				op.Item.Revision = uint64(i + 1)
			default:
				op.Item.Revision = model[key].Revision
			}
			ops = append(ops, op)
		}
		var want error
		for _, op := range ops {
			it, ok := model[op.Item.Key]
			if want = backend.Admit(op, ok, it.Revision); want != nil {
				break
			}
		}
		rev, err := b.Batch(t.Context(), ops...)
		if fmt.Sprint(err) != fmt.Sprint(want) {
			r.Fatalf("Batch: got error %v, want %v", err, want)
		}
		for _, op := range ops {
			switch {
			case want != nil || op.Type == backend.OpCheck:
			case op.Type == backend.OpDelete:
				delete(model, op.Item.Key)
			default:
				model[op.Item.Key] = backend.Item{Key: op.Item.Key, Value: op.Item.Value, Revision: rev}
			}
		}
		items, _, err := b.Range(t.Context(), "", "", 0)
		if err != nil || len(items) != len(model) || !slices.IsSortedFunc(items, func(x, y backend.Item) int {
			if x.Key < y.Key {
				return -1
			}
			return 1
		}) {
			r.Fatalf("Range = %v, %v, want %d items in order", texts(items), err, len(model))
		}
		for _, it := range items {
			if m := model[it.Key]; string(m.Value) != string(it.Value) || m.Revision != it.Revision {
				r.Fatalf("%q = %q at %d, want %q at %d", it.Key, it.Value, it.Revision, m.Value, m.Revision)
			}
		}
	})
}

func testCancelled(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	must(t, b, put("k", "v"))
	cause := errors.New("because of the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := b.Batch(ctx, put("k", "w")); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("Batch: got error %v, want that of the context", err)
	}
	if _, err := b.Get(ctx, "k"); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("Get: got error %v, want that of the context", err)
	}
	if _, _, err := b.Range(ctx, "", "", 0); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("Range: got error %v, want that of the context", err)
	}
	if _, err := b.Watch(ctx, "", 0); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: got error %v, want that of the context", err)
	}
	same(t, "items", all(t, b), []string{"k=v"})
}

func testClosed(t *testing.T, open func(*testing.T) backend.Backend) {
	b := open(t)
	must(t, b, put("k", "v"))
	w, err := b.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	for range w.Events() {
		continue
	}
	for name, err := range map[string]error{
		"Watcher": w.Err(),
		"Get":     second(b.Get(t.Context(), "k")),
		"Batch":   second(b.Batch(t.Context(), put("k", "w"))),
		"Watch":   second(b.Watch(t.Context(), "", 0)),
	} {
		if !errors.Is(err, fault.ErrUnreachable) {
			t.Errorf("%s on a closed store: got error %v, want ErrUnreachable", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

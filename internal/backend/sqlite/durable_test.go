package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"teleport/internal/backend"
	"teleport/internal/backend/sqlite"
	"teleport/internal/fault"
)

func put(key, value string) backend.Op {
	return backend.Op{Type: backend.OpPut, Item: backend.Item{Key: key, Value: []byte(value)}}
}

func must(t testing.TB, b *sqlite.Backend, ops ...backend.Op) uint64 {
	t.Helper()
	rev, err := b.Batch(t.Context(), ops...)
	if err != nil {
		t.Fatalf("Batch: %v", err)
	}
	return rev
}

func events(t testing.TB, b *sqlite.Backend, prefix string, after uint64, n int) []string {
	t.Helper()
	w, err := b.Watch(t.Context(), prefix, after)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	defer w.Close()
	var out []string
	for range n {
		e, ok := <-w.Events()
		if !ok {
			t.Fatalf("watch ended: %v", w.Err())
		}
		out = append(out, fmt.Sprintf("%d %s=%s %v", e.Revision, e.Item.Key, e.Item.Value, e.Deleted))
	}
	return out
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new folder", "a store?x=%41#.db")
	b := open(t, path)
	r1 := must(t, b, put("k/a", "1"), put("k/b", "1"))
	r2 := must(t, b, put("k/a", "2"))
	r3 := must(t, b, backend.Op{Type: backend.OpDelete, Item: backend.Item{Key: "k/b"}}, put("k/c", "1"))
	closeIt(t, b)

	b = open(t, path)
	items, rev, err := b.Range(t.Context(), "", "", 0)
	if err != nil || rev != r3 || len(items) != 2 || string(items[0].Value) != "2" || items[0].Revision != r2 {
		t.Fatalf("Range after opening again = %v at %d, %v, want k/a=2 and k/c=1 at %d", items, rev, err, r3)
	}
	// Watchers resume where they were; of what changed twice the last change is shown.
	want := []string{fmt.Sprintf("%d k/a=2 false", r2), fmt.Sprintf("%d k/b= true", r3), fmt.Sprintf("%d k/c=1 false", r3)}
	if d := cmp.Diff(want, events(t, b, "k/", r1, 3)); d != "" {
		t.Errorf("events after opening again (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want[1:], events(t, b, "k/", r2, 2)); d != "" {
		t.Errorf("events after opening again (-want +got):\n%s", d)
	}
	if _, err := b.Watch(t.Context(), "", r3+1); !errors.Is(err, fault.ErrStale) {
		t.Errorf("Watch after a revision to come: got error %v, want ErrStale", err)
	}
	if r := must(t, b, put("k/d", "1")); r != r3+1 {
		t.Errorf("revision after opening again = %d, want %d", r, r3+1)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) == 0 || !strings.HasPrefix(entries[0].Name(), "a store?x=%41#.db") {
		t.Errorf("files = %v, %v", entries, err)
	}
}

// TestHistory writes more changes than are kept: the log is cut, old revisions are
// refused, and newer ones resume, also after a restart.
func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	b := open(t, path)
	first := must(t, b, put("first", "v"))
	var revs []uint64
	for round := range 12 {
		ops := make([]backend.Op, 1000)
		for i := range ops {
			ops[i] = put(fmt.Sprintf("k%d", i), fmt.Sprint(round))
		}
		revs = append(revs, must(t, b, ops...))
	}
	last := must(t, b, put("last", "v"))
	closeIt(t, b)
	b = open(t, path)
	for _, old := range []uint64{0, first, revs[0], revs[1]} {
		if _, err := b.Watch(t.Context(), "", old); !errors.Is(err, fault.ErrStale) {
			t.Errorf("Watch after revision %d of %d: got error %v, want ErrStale", old, last, err)
		}
	}
	got := events(t, b, "k9", revs[10], 111)
	if want := fmt.Sprintf("%d k9=11 false", revs[11]); got[0] != want {
		t.Errorf("first event = %q, want %q", got[0], want)
	}
	if d := cmp.Diff([]string{fmt.Sprintf("%d last=v false", last)}, events(t, b, "last", revs[5], 1)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if r := must(t, b, put("next", "v")); r != last+1 {
		t.Errorf("revision = %d, want %d", r, last+1)
	}
}

func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	b := open(t, path)
	must(t, b, put("k", "v"))
	check := func() {
		t.Helper()
		for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
			info, err := os.Stat(path + suffix)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("store.db%s has mode %v, %v, want 0600", suffix, info.Mode(), err)
			}
		}
	}
	check()
	closeIt(t, b)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	b = open(t, path)
	must(t, b, put("k", "w"))
	check()
}

func TestOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	b := open(t, path)
	second, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if !errors.Is(err, fault.ErrExists) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second Open = %v, %v, want ErrExists", second, err)
	}
	closeIt(t, b)
	open(t, path)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := filepath.Join(dir, "good.db")
	b := open(t, good)
	for i := range 200 {
		must(t, b, put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 1000)))
	}
	closeIt(t, b)
	if _, err := os.Stat(good + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log was not written back by Close: %v", err)
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	damaged := string(content)
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	// An empty database with the header of another application.
	other := []byte(damaged)
	copy(other[68:], "othr")
	newer := []byte(damaged)
	newer[63] = 99
	rows := map[string]struct {
		path string
		kind error
		says string
	}{
		"no_path":    {"", fault.ErrInvalid, "missing"},
		"folder":     {dir, fault.ErrInvalid, "not a regular file"},
		"link":       {link, fault.ErrInvalid, "not a regular file"},
		"below_file": {filepath.Join(good, "x"), fault.ErrInvalid, "folder"},
		"not_sqlite": {write("text.db", strings.Repeat("hello, world. ", 1000)), fault.ErrInvalid, "damaged"},
		"cut":        {write("cut.db", damaged[:len(damaged)/2]), fault.ErrInvalid, "damaged"},
		"header":     {write("header.db", "XXXX"+damaged[4:]), fault.ErrInvalid, "damaged"},
		"other":      {write("other.db", string(other)), fault.ErrInvalid, "something else"},
		"newer":      {write("newer.db", string(newer)), fault.ErrUnsupported, "newer version"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			b, err := sqlite.Open(t.Context(), sqlite.Config{Path: row.path})
			if err == nil {
				defer b.Close()
			}
			if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open: got error %v, want one line of kind %v with %q", err, row.kind, row.says)
			}
		})
	}
}

// TestDamagedInside overwrites pages of the tables: what was damaged is reported,
// never returned as if it were whole or missing.
func TestDamagedInside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	b := open(t, path)
	for i := range 400 {
		must(t, b, put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 1000)))
	}
	closeIt(t, b)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for page := int64(40); page < 60; page++ {
		if _, err := f.WriteAt([]byte(strings.Repeat("\xde\xad", 2048)), page*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		if !strings.Contains(err.Error(), "damaged") {
			t.Fatalf("Open: %v, want one that says damaged", err)
		}
		return
	}
	defer b.Close()
	failed := 0
	for i := range 400 {
		it, err := b.Get(t.Context(), fmt.Sprintf("k%03d", i))
		switch {
		case err == nil && string(it.Value) == strings.Repeat("v", 1000):
		case errors.Is(err, fault.ErrInvalid) && strings.Contains(err.Error(), "damaged"):
			failed++
		default:
			t.Fatalf("Get(k%03d) = %.20q..., %v", i, it.Value, err)
		}
	}
	if _, _, err := b.Range(t.Context(), "", "", 0); failed == 0 || err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%d reads failed and Range said %v, want a report of the damage", failed, err)
	}
}

func TestCancelWhileQueued(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	// However the cancellation falls, the answer says whether it was written.
	for i := range 200 {
		key := fmt.Sprintf("k%03d", i)
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, err := b.Batch(ctx, put(key, "v"))
		_, getErr := b.Get(t.Context(), key)
		if (err == nil) != (getErr == nil) {
			t.Fatalf("Batch said %v and Get %v", err, getErr)
		}
	}
}

// TestCreateMany creates many items at once, of which some exist or have expired, beside
// the requests of others.
func TestCreateMany(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	many := func(from, n int) []backend.Op {
		ops := make([]backend.Op, n)
		for i := range ops {
			ops[i] = backend.Op{Type: backend.OpCreate, Item: backend.Item{Key: fmt.Sprintf("k/%04d", from+i), Value: []byte("new")}}
		}
		return ops
	}
	gone := put("k/0100", "old")
	gone.Item.Expires = time.Now().Add(time.Millisecond)
	start := must(t, b, put("k/0010", "old"), gone)
	for !time.Now().After(gone.Item.Expires) {
		runtime.Gosched()
	}
	taken, err := b.Batch(t.Context(), many(0, 75)...)
	var ke *backend.KeyError
	if !errors.As(err, &ke) || ke.Key != "k/0010" || !errors.Is(err, fault.ErrExists) || taken != 0 {
		t.Fatalf("creating what exists: got revision %d and error %v, want ErrExists for k/0010", taken, err)
	}
	at := must(t, b, many(11, 200)...)
	if at <= start {
		t.Errorf("200 items were created at revision %d after %d", at, start)
	}
	items, now, err := b.Range(t.Context(), "k/", "k0", 0)
	if err != nil || len(items) != 201 || now != at {
		t.Fatalf("Range: got %d items at revision %d, %v; want 201 at %d", len(items), now, err, at)
	}
	for _, it := range items[1:] {
		if string(it.Value) != "new" || it.Revision != at {
			t.Errorf("%s: got %q at revision %d, want \"new\" at %d", it.Key, it.Value, it.Revision, at)
		}
	}
	if got := events(t, b, "k/", at-1, 200); got[0] != fmt.Sprintf("%d k/0011=new false", at) {
		t.Errorf("the first event is %q", got[0])
	}

	// Callers who write together do not notice each other's failures.
	var group errgroup.Group
	for i := range 32 {
		group.Go(func() error {
			if i%2 == 0 {
				if _, err := b.Batch(context.WithoutCancel(t.Context()), many(0, 16)...); !errors.Is(err, fault.ErrExists) {
					return fmt.Errorf("creating what exists: got error %w, want ErrExists", err)
				}
				return nil
			}
			_, err := b.Batch(context.WithoutCancel(t.Context()), many(1000+i*10, 10)...)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if items, _, err := b.Range(t.Context(), "k/1", "k/2", 0); err != nil || len(items) != 160 {
		t.Errorf("Range: got %d items, %v; want 160", len(items), err)
	}
}

package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

func limitPages(t *testing.T, b *Backend, extra int) {
	t.Helper()
	// Between two transactions the writer's connection is idle.
	var pages, limit int
	if err := b.writer.conn.QueryRowContext(t.Context(), `PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if err := b.writer.conn.QueryRowContext(t.Context(), fmt.Sprintf(`PRAGMA max_page_count = %d`, pages+extra)).Scan(&limit); err != nil {
		t.Fatal(err)
	}
}

// TestFull fills the database to a limit, as a full disk would: what does not fit
// fails alone and clearly, what was acknowledged stays, and writing goes on by
// itself once there is room.
func TestFull(t *testing.T) {
	b, err := Open(context.Background(), Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	put := func(key string, size int) error {
		_, err := b.Batch(context.Background(), backend.Op{Type: backend.OpPut, Item: backend.Item{Key: key, Value: []byte(strings.Repeat("v", size))}})
		return err
	}
	if err := put("before", 100); err != nil {
		t.Fatal(err)
	}
	limitPages(t, b, 20)
	w, err := b.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	var mu sync.Mutex
	stored := map[string]bool{"before": true}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			size := 100
			if i%4 == 0 {
				size = 1 << 20 // never fits
			}
			key := fmt.Sprintf("k%02d", i)
			err := put(key, size)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				stored[key] = true
			case !errors.Is(err, fault.ErrLimit) || !strings.Contains(err.Error(), "full"):
				t.Errorf("put %s: got error %v, want ErrLimit that says full", key, err)
			}
			if (err == nil) != (size == 100) {
				t.Errorf("put of %d bytes: %v", size, err)
			}
		})
	}
	wg.Wait()
	items, rev, err := b.Range(t.Context(), "", "", 0)
	if err != nil || len(items) != len(stored) {
		t.Fatalf("%d items, %v, want %d", len(items), err, len(stored))
	}
	last := uint64(0)
	for range items {
		e := <-w.Events()
		if !stored[e.Item.Key] || e.Revision <= last {
			t.Errorf("event of %q at revision %d after %d", e.Item.Key, e.Revision, last)
		}
		last = e.Revision
	}
	if last != rev {
		t.Errorf("revision %d, the last event is of %d", rev, last)
	}
	limitPages(t, b, 1000)
	if err := put("large", 1<<20); err != nil {
		t.Errorf("put with room again: %v", err)
	}
}

// TestDiskFailed breaks the commit itself: nobody is told that it worked, and
// nothing more is written by a process that cannot know what is on the disk.
func TestDiskFailed(t *testing.T) {
	told := make(chan error, 4)
	b, err := Open(context.Background(), Config{Path: filepath.Join(t.TempDir(), "store.db"), OnHealth: func(err error) { told <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	batch := func(key string) error {
		_, err := b.Batch(t.Context(), backend.Op{Type: backend.OpCreate, Item: backend.Item{Key: key, Value: []byte("v")}})
		return err
	}
	if err := batch("a"); err != nil {
		t.Fatal(err)
	}
	// A deferred constraint fails at the commit, like a disk that cannot be synced.
	for _, q := range []string{
		`PRAGMA foreign_keys = ON`,
		`CREATE TABLE parent (id INTEGER PRIMARY KEY)`,
		`CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)`,
		`CREATE TRIGGER bad AFTER INSERT ON item BEGIN INSERT INTO child (id) VALUES (1); END`,
	} {
		if _, err := b.writer.conn.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch("b"); err == nil || fault.Kind(err) == nil {
		t.Fatalf("Batch that could not be committed: %v, want an error of a kind", err)
	}
	if _, err := b.writer.conn.ExecContext(t.Context(), `DROP TRIGGER bad`); err != nil {
		t.Fatal(err)
	}
	if err := batch("c"); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("Batch after a failed commit: got error %v, want ErrUnreachable", err)
	}
	items, _, err := b.Range(t.Context(), "", "", 0)
	if err != nil || len(items) != 1 || items[0].Key != "a" {
		t.Errorf("items = %v, %v, want a alone", items, err)
	}
	if len(told) != 1 || fault.Kind(<-told) == nil {
		t.Error("health was not told once that the disk failed")
	}
}

// TestHealth fills the database and makes room again: health is told once of each,
// not of every write, and nothing of writes that were refused for another reason.
func TestHealth(t *testing.T) {
	told := make(chan error, 16)
	b, err := Open(context.Background(), Config{Path: filepath.Join(t.TempDir(), "store.db"), OnHealth: func(err error) { told <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	batch := func(typ backend.OpType, key string, size int) error {
		_, err := b.Batch(context.Background(), backend.Op{Type: typ, Item: backend.Item{Key: key, Value: []byte(strings.Repeat("v", size))}})
		return err
	}
	if err := batch(backend.OpCreate, "a", 100); err != nil {
		t.Fatal(err)
	}
	limitPages(t, b, 20)
	for range 3 {
		if err := batch(backend.OpPut, "big", 1<<20); !errors.Is(err, fault.ErrLimit) {
			t.Fatalf("Batch with a full disk: %v, want ErrLimit", err)
		}
		// What needs no room says nothing about it.
		if err := batch(backend.OpCreate, "a", 1); !errors.Is(err, fault.ErrExists) {
			t.Fatalf("Create of what exists: %v, want ErrExists", err)
		}
	}
	limitPages(t, b, 2000)
	for range 3 {
		if err := batch(backend.OpPut, "big", 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 2 {
		t.Fatalf("told %d times, want once for the failure and once for the end of it", len(told))
	}
	if err := <-told; !errors.Is(err, fault.ErrLimit) || !strings.Contains(err.Error(), "full") {
		t.Errorf("first told %v, want ErrLimit that says full", err)
	}
	if err := <-told; err != nil {
		t.Errorf("then told %v, want nil", err)
	}
}

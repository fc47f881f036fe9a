package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"teleport/internal/backend"
	"teleport/internal/backend/sqlite"
)

// crashChild names the database in the environment of a child that writes until
// it is killed.
const crashChild = "TELEPORT_TEST_CRASH_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashChild); path != "" {
		if err := writeForEver(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(3) // it should have been killed
	}
	os.Exit(m.Run())
}

const crashWriters = 8

// writeForEver writes batches of three new items and one counter from several
// goroutines, and prints each one that was acknowledged.
func writeForEver(path string) error {
	ctx := context.Background()
	b, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	_, start, err := b.Range(ctx, "", "", 1)
	if err != nil {
		return err
	}
	failed := make(chan error)
	for n := range crashWriters {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%06d", start, n, i)
				create := func(part string) backend.Op {
					return backend.Op{Type: backend.OpCreate, Item: backend.Item{Key: "batch/" + id + "/" + part, Value: []byte(id + strings.Repeat(part, i%2000))}}
				}
				counter := put(fmt.Sprintf("counter/%d", n), id)
				rev, err := b.Batch(ctx, create("a"), counter, create("b"), create("c"))
				if err != nil {
					failed <- err
					return
				}
				// One write, so that a line is whole or not there.
				if _, err := fmt.Fprintf(os.Stdout, "%s %d\n", id, rev); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

// TestCrash kills a writing process again and again: everything it was told is
// written is there, every batch is whole, and the revision never goes back.
func TestCrash(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "store.db")
	acknowledged := make(map[string]uint64)
	for round := range rounds {
		killWriter(t, self, path, acknowledged)
		b := open(t, path)
		checkCrashed(t, b, acknowledged)
		closeIt(t, b)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	t.Logf("%d batches were acknowledged", len(acknowledged))
	if len(acknowledged) < rounds*crashWriters {
		t.Errorf("only %d batches were written: the test shows nothing", len(acknowledged))
	}
}

func killWriter(t *testing.T, self, path string, acknowledged map[string]uint64) {
	t.Helper()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), crashChild+"="+path)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var id string
		var rev uint64
		if _, err := fmt.Sscanf(lines.Text(), "%s %d", &id, &rev); err != nil {
			t.Errorf("the writer said %q", lines.Text())
			continue
		}
		acknowledged[id] = rev
		once.Do(func() {
			after := time.Duration(rand.IntN(150)) * time.Millisecond
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		})
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the writer ended by itself: %v: %s", err, stderr.String())
	}
}

func checkCrashed(t *testing.T, b *sqlite.Backend, acknowledged map[string]uint64) {
	t.Helper()
	start, end := backend.Prefix("batch")
	items, now, err := b.Range(t.Context(), start, end, 0)
	if err != nil {
		t.Fatal(err)
	}
	parts := make(map[string]string)
	revisions := make(map[string]uint64)
	for _, it := range items {
		id := strings.Split(it.Key, "/")[1]
		parts[id] += it.Key[len(it.Key)-1:]
		if rev, ok := revisions[id]; ok && rev != it.Revision {
			t.Errorf("batch %s has items of revisions %d and %d", id, rev, it.Revision)
		}
		revisions[id] = it.Revision
		if !strings.HasPrefix(string(it.Value), id) {
			t.Errorf("item %s has the value of another: %.30q", it.Key, it.Value)
		}
	}
	for id, p := range parts {
		if p != "abc" {
			t.Errorf("batch %s has only the items %q", id, p)
		}
	}
	for id, rev := range acknowledged {
		if revisions[id] != rev || rev > now {
			t.Errorf("batch %s was acknowledged at revision %d and is at %d; the store is at %d", id, rev, revisions[id], now)
		}
	}
	counters, _, err := b.Range(t.Context(), "counter/", "counter0", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if id := string(c.Value); revisions[id] != c.Revision {
			t.Errorf("%s of revision %d says %s, which was written at revision %d", c.Key, c.Revision, id, revisions[id])
		}
	}
	// The log of changes has survived too: a watcher of the last revision resumes.
	if now > 0 {
		w, err := b.Watch(t.Context(), "", now-1)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if e := <-w.Events(); e.Revision != now {
			t.Errorf("the last change is of revision %d, the store is at %d", e.Revision, now)
		}
	}
}

package audit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
)

func openLog(t *testing.T, dir string) *audit.Log {
	t.Helper()
	l, err := audit.OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// uids returns the uids in the days' files in order of their names, by file.
func uids(t *testing.T, dir string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	names, err := filepath.Glob(filepath.Join(dir, "*:00.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
		for line := range strings.Lines(string(data)) {
			e, err := audit.ParseJSON([]byte(strings.TrimSuffix(line, "\n")))
			if err != nil || !strings.HasSuffix(line, "\n") {
				t.Errorf("%s: line %q: %v", name, line, err)
				continue
			}
			out[filepath.Base(name)] = append(out[filepath.Base(name)], e.GetUid())
		}
	}
	return out
}

func day(d, hour int) time.Time { return time.Date(2020, 2, d, hour, 0, 0, 0, time.UTC) }

func TestLogDays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log", "host")
	l := openLog(t, dir)
	if uid, at := l.Last(); uid != "" || !at.IsZero() {
		t.Errorf("Last of an empty log = %q, %v", uid, at)
	}
	batch := []*auditv1.Event{event("a", day(1, 23)), event("b", day(1, 23)), event("c", day(2, 0)), event("late", day(1, 1)), event("d", day(4, 5))}
	if err := l.Append(batch...); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"2020-02-01.00:00:00.log": {"a", "b"},
		"2020-02-02.00:00:00.log": {"c", "late"},
		"2020-02-04.00:00:00.log": {"d"},
	}
	if diff := cmp.Diff(want, uids(t, dir)); diff != "" {
		t.Error(diff)
	}
	if target, err := os.Readlink(filepath.Join(dir, "events.log")); err != nil || target != "2020-02-04.00:00:00.log" {
		t.Errorf("events.log points to %q, %v", target, err)
	}
	if uid, at := l.Last(); uid != "d" || !at.Equal(day(4, 5)) {
		t.Errorf("Last = %q, %v", uid, at)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder has mode %v, %v", info.Mode(), err)
	}
}

func TestLogNeverRunsAheadOfToday(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	before := time.Now().UTC().Format("2006-01-02") + ".00:00:00.log"
	if err := l.Append(event("future", time.Now().AddDate(1, 0, 0))); err != nil {
		t.Fatal(err)
	}
	after := time.Now().UTC().Format("2006-01-02") + ".00:00:00.log"
	for name := range uids(t, dir) {
		if name != before && name != after {
			t.Errorf("an event of next year went to %s", name)
		}
	}
}

func TestLogReopen(t *testing.T) {
	tests := []struct {
		name string
		tail string
		want []string
	}{
		{"whole", "", []string{"a", "b", "c"}},
		{"torn_line", `{"event":"exec","code":"T30`, []string{"a", "b", "c"}},
		{"torn_without_newline", `{"event":"exec","code":"T3002I","time":"2020-02-01T00:00:00Z","uid":"x","ei":0,"cluster_name":""}`, []string{"a", "b", "c"}},
		{"zeros", strings.Repeat("\x00", 5000), []string{"a", "b", "c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLog(t, dir)
			if err := l.Append(event("a", day(1, 1)), event("b", day(1, 2))); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, "2020-02-01.00:00:00.log")
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(tt.tail); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			l = openLog(t, dir)
			if uid, at := l.Last(); uid != "b" || !at.Equal(day(1, 2)) {
				t.Errorf("Last after opening = %q, %v, want b", uid, at)
			}
			if err := l.Append(event("c", day(1, 3))); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string][]string{"2020-02-01.00:00:00.log": tt.want}, uids(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLogReopenOddFolders(t *testing.T) {
	t.Run("newest_file_is_empty", func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		if err := l.Append(event("a", day(1, 1))); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "2020-02-03.00:00:00.log"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, dir)
		if uid, _ := l.Last(); uid != "a" {
			t.Errorf("Last = %q, want that of the file before", uid)
		}
		if err := l.Append(event("b", day(2, 1))); err != nil {
			t.Fatal(err)
		}
		want := map[string][]string{"2020-02-01.00:00:00.log": {"a"}, "2020-02-03.00:00:00.log": {"b"}}
		if diff := cmp.Diff(want, uids(t, dir)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("whole_line_that_is_no_event", func(t *testing.T) {
		dir := t.TempDir()
		l := openLog(t, dir)
		if err := l.Append(event("a", day(1, 1))); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "2020-02-01.00:00:00.log")
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, append(data, "a note by hand\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
		if uid, _ := openLog(t, dir).Last(); uid != "a" {
			t.Errorf("Last = %q, want a", uid)
		}
	})
	t.Run("other_files", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"notes.log", "2020-02-30.00:00:00.log", "events.log.new"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := openLog(t, dir).Append(event("a", day(1, 1))); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("folder_is_a_file", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.OpenLog(name); err == nil {
			t.Error("OpenLog took a file for a folder")
		}
	})
}

func TestLogParallel(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				if err := l.Append(event(fmt.Sprintf("%d-%d", i, j), day(1+j%3, 0))); err != nil {
					t.Error(err)
				}
				l.Last()
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, list := range uids(t, dir) {
		for _, uid := range list {
			seen[uid] = true
		}
	}
	if len(seen) != 80 {
		t.Errorf("%d events in the files, want 80", len(seen))
	}
}

// TestLogAfterAFailedWrite shows that part of a line, left by a write that failed,
// is gone before the next line.
func TestLogAfterAFailedWrite(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	if err := l.Append(event("a", day(1, 1))); err != nil {
		t.Fatal(err)
	}
	if err := audit.Tear(l, `{"event":"exec","co`); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(event("b", day(1, 2))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"2020-02-01.00:00:00.log": {"a", "b"}}, uids(t, dir)); diff != "" {
		t.Error(diff)
	}
}

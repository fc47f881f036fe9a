package postgres_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/service/db/dbtest"
)

func TestCopy(t *testing.T) {
	w := start(t, nil)
	c := w.pgx(t)
	ctx := t.Context()
	if _, err := c.Exec(ctx, "create unlogged table lines (n int, text text)"); err != nil {
		t.Fatal(err)
	}
	const rows, line = 1 << 20, 100
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	tag, err := c.PgConn().CopyFrom(ctx, &lines{left: rows, size: line}, "copy lines from stdin")
	if err != nil || tag.RowsAffected() != rows {
		t.Fatalf("COPY in = %v, %v, want %d rows", tag, err, rows)
	}
	in := time.Since(began)
	began = time.Now()
	out := &counter{peak: &before}
	if _, err := c.PgConn().CopyTo(ctx, out, "copy lines to stdout"); err != nil || out.n < 90<<20 {
		t.Fatalf("COPY out = %d bytes, %v", out.n, err)
	}
	t.Logf("100 MB: COPY in %s, COPY out %s", in, time.Since(began))
	if out.grown > 64<<20 {
		t.Errorf("the heap grew by %d bytes while 100 MB went by", out.grown)
	}
	for _, way := range []string{"in", "out"} {
		w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
			return dbtest.Field(e, "copy") == way && e.GetFields().AsMap()["copy_bytes"].(float64) > 90<<20 && strings.HasPrefix(dbtest.Field(e, "db_query"), "copy lines")
		})
	}
	if tag, err = c.PgConn().CopyFrom(ctx, io.MultiReader(strings.NewReader("1\tx\n"), failing{}), "copy lines from stdin"); err == nil {
		t.Errorf("a COPY that the client gives up = %v", tag)
	}
	if err := c.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
		t.Error(err)
	}
}

type failing struct{}

// Read fails.
func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

// lines is so many rows in the text form of COPY.
type lines struct {
	left, size int
	rest       []byte
}

// Read reads the next part.
func (l *lines) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.left == 0 {
			return 0, io.EOF
		}
		n := min(l.left, 500)
		l.rest = bytes.Repeat([]byte("1\t"+strings.Repeat("x", l.size-3)+"\n"), n)
		l.left -= n
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// counter counts what is written, and looks at the heap now and then.
type counter struct {
	n, next int
	peak    *runtime.MemStats
	grown   int64
}

// Write counts.
func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	if c.n > c.next {
		c.next = c.n + 8<<20
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		c.grown = max(c.grown, int64(now.HeapAlloc)-int64(c.peak.HeapAlloc))
	}
	return len(p), nil
}

func TestLargeValues(t *testing.T) {
	w := start(t, nil)
	c := w.pgx(t)
	// A statement and a parameter that are longer than what is kept of a message.
	long := strings.Repeat("y", 3<<20)
	var n int
	if err := c.QueryRow(t.Context(), "select length($1::text)", pgx.QueryExecModeExec, long).Scan(&n); err != nil || n != len(long) {
		t.Errorf("a long parameter: %d, %v", n, err)
	}
	if _, err := (conn{c.PgConn()}).Ask(t.Context(), "select length('"+long+"')"); err != nil {
		t.Error(err)
	}
	for _, e := range w.Events.All("TDB02I") {
		if n := len(e.String()); n > 200<<10 {
			t.Errorf("an event of %d bytes", n)
		}
	}
	e := w.Events.Query(t, "truncated")
	if !strings.Contains(dbtest.Field(e, "db_query"), "of 31457") {
		t.Errorf("TDB02I = %q...", dbtest.Field(e, "db_query")[:80])
	}
	if err := c.QueryRow(t.Context(), "select length(string_agg(repeat('z', 1000), '')) from generate_series(1, 20000)").Scan(&n); err != nil || n != 20_000_000 {
		t.Errorf("a large result: %d, %v", n, err)
	}
}

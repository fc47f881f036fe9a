package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"teleport/internal/backend"
)

// bulkRows are the numbers of rows that one statement writes, the most first. Most of
// what a row costs is the way into SQLite, and audit events come by the hundred.
var bulkRows = []int{64, 8}

// bulk are the statements that write so many rows at once.
type bulk struct {
	rows        int
	create, log *sql.Stmt
}

// errTaken says that a key which a bulk was to create has an item already.
var errTaken = errors.New("a key is in use")

func (w *writer) prepareBulks(prepare func(string) *sql.Stmt) {
	for _, n := range bulkRows {
		rows := strings.Repeat(`, (?, ?, ?, ?)`, n)[2:]
		w.bulks = append(w.bulks, bulk{
			rows:   n,
			create: prepare(fmt.Sprintf(`INSERT INTO item (key, value, expires, revision) VALUES %s ON CONFLICT (key) DO NOTHING`, rows)),
			log:    prepare(`INSERT INTO change (id, revision, key, deleted) VALUES ` + rows),
		})
	}
}

// creates reports whether a request does nothing but create many items.
func (r *request) creates() bool {
	for _, op := range r.ops {
		if op.Type != backend.OpCreate {
			return false
		}
	}
	return len(r.ops) >= bulkRows[len(bulkRows)-1]
}

// create carries out a request that creates, in the hope that no key is in use: nobody
// looks. If one is, the error is errTaken, and the transaction has to be undone.
func (w *writer) create(ctx context.Context, r *request, _ time.Time) ([]backend.Event, error) {
	r.err = nil
	next := w.revision + 1
	events := make([]backend.Event, len(r.ops))
	for i, op := range r.ops {
		expires := microsOf(op.Item.Expires)
		// A copy: the feed keeps it, and the caller may use its own again.
		value := append(make([]byte, 0, len(op.Item.Value)), op.Item.Value...)
		events[i] = backend.Event{Revision: next, Item: backend.Item{Key: op.Item.Key, Value: value, Expires: timeOf(expires), Revision: next}}
	}
	keys := keysOf(events)
	var args []any
	for at := 0; at < len(events); {
		stmt, n := w.stmt.create, 1
		for _, b := range w.bulks {
			if len(events)-at >= b.rows {
				stmt, n = b.create, b.rows
				break
			}
		}
		args = args[:0]
		for i, e := range events[at : at+n] {
			args = append(args, keys[at+i], e.Item.Value, microsOf(e.Item.Expires), next)
		}
		res, err := stmt.ExecContext(ctx, args...)
		if err != nil {
			return nil, err
		}
		if made, err := res.RowsAffected(); err != nil || made != int64(n) {
			return nil, errors.Join(err, errTaken)
		}
		at += n
	}
	if err := w.logChanges(ctx, events, keys); err != nil {
		return nil, err
	}
	w.revision, r.revision = next, next
	return events, nil
}

// logChanges adds to the log of changes.
func (w *writer) logChanges(ctx context.Context, events []backend.Event, keys [][]byte) error {
	var args []any
	for at := 0; at < len(events); {
		stmt, n := w.stmt.log, 1
		for _, b := range w.bulks {
			if len(events)-at >= b.rows {
				stmt, n = b.log, b.rows
				break
			}
		}
		args = args[:0]
		for i, e := range events[at : at+n] {
			w.lastChange++
			args = append(args, w.lastChange, e.Revision, keys[at+i], e.Deleted)
		}
		if _, err := stmt.ExecContext(ctx, args...); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// keysOf are the keys as SQLite takes them.
func keysOf(events []backend.Event) [][]byte {
	keys := make([][]byte, len(events))
	for i, e := range events {
		keys[i] = []byte(e.Item.Key)
	}
	return keys
}

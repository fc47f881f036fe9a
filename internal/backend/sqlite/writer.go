package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/backend"
)

const (
	// groupRequests and groupBytes bound what is committed in one transaction.
	groupRequests = 256
	groupBytes    = 4 << 20
	// trimEvery is how many changes the log may have too many before it is cut.
	trimEvery = 256
)

// States of a request. Only one of writer and caller gets to leave waiting.
const (
	waiting = iota
	taken
	abandoned
)

// request is a batch of a caller, or keys of the sweeper.
type request struct {
	ops     []backend.Op
	expired []string
	state   atomic.Int32
	done    chan struct{} // closed when the fields below are set

	revision uint64
	err      error
}

func (r *request) bytes() int {
	n := 0
	for _, op := range r.ops {
		n += len(op.Item.Value)
	}
	return n
}

// writer owns the one connection that writes.
type writer struct {
	db      *sql.DB
	conn    *sql.Conn
	stmt    statements
	bulks   []bulk
	open    []*sql.Stmt // all of stmt, to be closed
	explain func(error) error
	// onHealth is told when writing begins to fail and when it works again; or nil.
	onHealth func(error)
	feed     *backend.Feed
	queue    chan *request
	stop     <-chan struct{}
	exited   chan struct{}

	// publishing is held from commit to publication, so that nobody can ask the
	// feed for a revision that readers see and it does not know yet.
	publishing sync.Mutex

	// The rest belongs to the goroutine of run.
	revision    uint64
	firstChange int64 // ids of the log of changes
	lastChange  int64
	broken      error // the disk failed: what is on it is not known
	failing     bool  // as onHealth was told
}

type statements struct{ find, put, create, remove, expire, log, trim *sql.Stmt }

func (w *writer) prepare(ctx context.Context) error {
	var errs []error
	prepare := func(query string) *sql.Stmt {
		s, err := w.conn.PrepareContext(ctx, query)
		errs = append(errs, err)
		if s != nil {
			w.open = append(w.open, s)
		}
		return s
	}
	w.stmt = statements{
		find: prepare(`SELECT expires, revision FROM item WHERE key = ?`),
		put: prepare(`INSERT INTO item (key, value, expires, revision) VALUES (?, ?, ?, ?)
			ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires, revision = excluded.revision`),
		create: prepare(`INSERT INTO item (key, value, expires, revision) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING`),
		remove: prepare(`DELETE FROM item WHERE key = ?`),
		expire: prepare(`DELETE FROM item WHERE key = ? AND expires <> 0 AND expires <= ?`),
		log:    prepare(`INSERT INTO change (id, revision, key, deleted) VALUES (?, ?, ?, ?)`),
		trim:   prepare(`DELETE FROM change WHERE id <= ?`),
	}
	w.prepareBulks(prepare)
	return errors.Join(errs...)
}

// close closes the connection. Statements left open would keep it, and its hold on
// the file, for ever.
func (w *writer) close() error {
	var errs []error
	for _, s := range w.open {
		errs = append(errs, s.Close())
	}
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	return errors.Join(append(errs, w.db.Close())...)
}

// do hands a request to the writer and waits for the answer. When ctx ends first,
// the request is either taken back or waited for: an error of ctx means that
// nothing was written.
func (w *writer) do(ctx context.Context, r *request) (uint64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	select {
	case <-w.stop:
		return 0, backend.Closed()
	default:
	}
	select {
	case w.queue <- r:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-w.stop:
		return 0, backend.Closed()
	}
	select {
	case <-r.done:
		return r.revision, r.err
	case <-w.exited:
	case <-ctx.Done():
		if r.state.CompareAndSwap(waiting, abandoned) {
			return 0, context.Cause(ctx)
		}
	}
	select {
	case <-r.done:
		return r.revision, r.err
	case <-w.exited:
	}
	// The writer may have answered with its last breath.
	select {
	case <-r.done:
		return r.revision, r.err
	default:
		return 0, backend.Closed()
	}
}

func (w *writer) run() {
	defer close(w.exited)
	for {
		var first *request
		select {
		case <-w.stop:
			return
		case first = <-w.queue:
		}
		group := w.take(nil, first)
		size := first.bytes()
	gather:
		for len(group) < groupRequests && size < groupBytes {
			select {
			case r := <-w.queue:
				group = w.take(group, r)
				size += r.bytes()
			default:
				break gather
			}
		}
		w.commit(group)
	}
}

// take adds a request to the group unless its caller has given up.
func (w *writer) take(group []*request, r *request) []*request {
	if r.state.CompareAndSwap(waiting, taken) {
		return append(group, r)
	}
	return group
}

// commit carries out a group in one transaction, or each request in its own when
// the database refuses the group: then only those it refuses have failed.
func (w *writer) commit(group []*request) {
	if len(group) == 0 {
		return
	}
	err, wrote := w.broken, false
	if err == nil {
		wrote, err = w.transact(group, false)
	}
	if errors.Is(err, errTaken) {
		wrote, err = w.transact(group, true)
	}
	if err != nil && w.broken == nil && len(group) > 1 {
		for _, r := range group {
			w.commit([]*request{r})
		}
		return
	}
	if err != nil || wrote {
		w.report(err)
	}
	for _, r := range group {
		if err != nil {
			r.revision, r.err = 0, w.explain(err)
		}
		close(r.done)
	}
}

// report tells onHealth what a write came to, if that is news.
func (w *writer) report(err error) {
	if w.onHealth == nil || w.failing == (err != nil) {
		return
	}
	w.failing = err != nil
	w.onHealth(w.explain(err))
}

// transact carries out a group. On an error nothing of it was written. Outcomes
// of single requests (a precondition that failed) are left in the requests, and
// hold only if the whole was committed. It reports whether there was anything to
// write. Unless it is to look first, it fails with errTaken if a request that creates
// many items finds one.
func (w *writer) transact(group []*request, look bool) (wrote bool, err error) {
	ctx := context.Background()
	revision, lastChange := w.revision, w.lastChange
	if _, err := w.conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return false, err
	}
	now := time.Now()
	var events []backend.Event
	for _, r := range group {
		apply := w.apply
		if !look && r.creates() {
			apply = w.create
		}
		added, err := apply(ctx, r, now)
		if err != nil {
			w.rollback(ctx, revision, lastChange)
			return false, err
		}
		events = append(events, added...)
	}
	if len(events) == 0 {
		w.rollback(ctx, revision, lastChange)
		return false, nil
	}
	firstChange, err := w.trim(ctx)
	if err != nil {
		w.rollback(ctx, revision, lastChange)
		return false, err
	}
	w.publishing.Lock()
	defer w.publishing.Unlock()
	if _, err := w.conn.ExecContext(ctx, `COMMIT`); err != nil {
		if !isFull(err) {
			w.broken = err
		}
		w.rollback(ctx, revision, lastChange)
		return false, err
	}
	w.firstChange = firstChange
	w.feed.Publish(w.revision, events)
	return true, nil
}

// rollback undoes the transaction. SQLite may have done so by itself already and
// then reports that there is none; in any other case the next BEGIN fails.
func (w *writer) rollback(ctx context.Context, revision uint64, lastChange int64) {
	w.revision, w.lastChange = revision, lastChange
	_, _ = w.conn.ExecContext(ctx, `ROLLBACK`)
}

// apply carries out one request. An error of the request itself goes into it; an
// error of the database is returned.
func (w *writer) apply(ctx context.Context, r *request, now time.Time) ([]backend.Event, error) {
	r.revision, r.err = w.revision, nil
	for _, op := range r.ops {
		if op.Type == backend.OpPut {
			continue
		}
		exists, revision, err := w.find(ctx, op.Item.Key, now)
		if err != nil {
			return nil, err
		}
		if r.err = backend.Admit(op, exists, revision); r.err != nil {
			r.revision = 0
			return nil, nil
		}
	}
	var events []backend.Event
	next := w.revision + 1
	for _, op := range r.ops {
		key := []byte(op.Item.Key)
		switch op.Type {
		case backend.OpCheck:
			continue
		case backend.OpDelete:
			if _, err := w.stmt.remove.ExecContext(ctx, key); err != nil {
				return nil, err
			}
			events = append(events, backend.Event{Revision: next, Deleted: true, Item: backend.Item{Key: op.Item.Key}})
		default:
			expires := microsOf(op.Item.Expires)
			// A copy: the feed keeps it, and the caller may use its own again.
			value := bytes.Clone(op.Item.Value)
			if value == nil {
				value = []byte{}
			}
			if _, err := w.stmt.put.ExecContext(ctx, key, value, expires, next); err != nil {
				return nil, err
			}
			events = append(events, backend.Event{Revision: next, Item: backend.Item{Key: op.Item.Key, Value: value, Expires: timeOf(expires), Revision: next}})
		}
	}
	for _, key := range r.expired {
		res, err := w.stmt.expire.ExecContext(ctx, []byte(key), now.UnixMicro())
		if err != nil {
			return nil, err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return nil, err
		}
		if n == 0 {
			continue // written again since it was found
		}
		events = append(events, backend.Event{Revision: next, Deleted: true, Item: backend.Item{Key: key}})
	}
	if err := w.logChanges(ctx, events, keysOf(events)); err != nil {
		return nil, err
	}
	if len(events) > 0 {
		w.revision, r.revision = next, next
	}
	return events, nil
}

// find returns whether the key exists, unexpired, and at which revision.
func (w *writer) find(ctx context.Context, key string, now time.Time) (bool, uint64, error) {
	var expires int64
	var revision uint64
	err := w.stmt.find.QueryRowContext(ctx, []byte(key)).Scan(&expires, &revision)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, 0, nil
	case err != nil:
		return false, 0, err
	case backend.Expired(timeOf(expires), now):
		return false, 0, nil
	}
	return true, revision, nil
}

// trim cuts the log of changes when it has grown enough to be worth it, and
// returns the first id that is left.
func (w *writer) trim(ctx context.Context) (int64, error) {
	if w.lastChange-w.firstChange < keepChanges+trimEvery {
		return w.firstChange, nil
	}
	last := w.lastChange - keepChanges
	if _, err := w.stmt.trim.ExecContext(ctx, last); err != nil {
		return 0, err
	}
	return last + 1, nil
}

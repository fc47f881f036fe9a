// Package sqlite is the embedded backend: one SQLite file in WAL mode with full
// synchronisation. One goroutine writes; it commits the batches of many callers
// in one transaction and answers them after the commit, so that durability is
// paid once for all who wait. Readers have connections of their own and never
// wait for the writer. It is for one process: a second one is refused.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

const (
	// readers bounds the reads that run at once.
	readers = 4
	// keepChanges is how many changes outlive a restart.
	keepChanges = 8192
	// sweepEvery is how often expired items are removed.
	sweepEvery = time.Second
)

// Config is what Open needs.
type Config struct {
	// Path of the database file; its folder is made if need be.
	Path string
	// Log may be nil.
	Log *slog.Logger
	// OnHealth, if set, is told when writing begins to fail, and why, and with nil
	// when it works again. It is called by the writer and must not block.
	OnHealth func(error)
}

// Backend is an open store.
type Backend struct {
	path   string
	log    *slog.Logger
	lock   *os.File
	reads  *sql.DB
	query  queries
	writer *writer
	feed   *backend.Feed

	stop      chan struct{} // closed by Close
	sweeping  chan struct{} // closed when the sweeper has ended
	closeOnce sync.Once
	closeErr  error
}

// queries are the prepared statements of readers.
type queries struct {
	get      *sql.Stmt
	revision *sql.Stmt
	expired  *sql.Stmt
	ranges   map[rangeForm]*sql.Stmt
	open     []*sql.Stmt // all of them, to be closed
}

// rangeForm is a shape of Range.
type rangeForm struct{ bounded, descending bool }

// Open opens the store at cfg.Path, or makes an empty one.
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	if cfg.Path == "" {
		return nil, fault.Invalid("the path of the database file is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Backend{path: cfg.Path, log: cfg.Log, stop: make(chan struct{}), sweeping: make(chan struct{})}
	dirty, err := b.prepareFile()
	if err != nil {
		return nil, errors.Join(err, b.release())
	}
	if err := b.openDatabase(ctx, cfg.OnHealth, dirty); err != nil {
		return nil, errors.Join(b.explain(err), b.release())
	}
	go b.writer.run() //nolint:contextcheck // it lives until Close, not until ctx ends
	go b.sweepLoop()  //nolint:gosec,contextcheck // the same
	return b, nil
}

// Get implements backend.Backend.
func (b *Backend) Get(ctx context.Context, key string) (backend.Item, error) {
	it := backend.Item{Key: key}
	var expires int64
	err := b.query.get.QueryRowContext(ctx, []byte(key)).Scan(&it.Value, &expires, &it.Revision)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return backend.Item{}, backend.NotFound(key)
	case err != nil:
		return backend.Item{}, b.readError(ctx, err)
	}
	it.Expires = timeOf(expires)
	if backend.Expired(it.Expires, time.Now()) {
		return backend.Item{}, backend.NotFound(key)
	}
	return it, nil
}

// Range implements backend.Backend.
func (b *Backend) Range(ctx context.Context, start, end string, limit int) ([]backend.Item, uint64, error) {
	// A transaction, so that the items and the revision are of the same moment.
	tx, err := b.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, 0, b.readError(ctx, err)
	}
	items, revision, err := b.rangeTx(ctx, tx, start, end, limit)
	if err := errors.Join(err, tx.Rollback()); err != nil {
		return nil, 0, b.readError(ctx, err)
	}
	return items, revision, nil
}

func (b *Backend) rangeTx(ctx context.Context, tx *sql.Tx, start, end string, limit int) ([]backend.Item, uint64, error) {
	var revision uint64
	if err := tx.StmtContext(ctx, b.query.revision).QueryRowContext(ctx).Scan(&revision); err != nil {
		return nil, 0, err
	}
	form := rangeForm{bounded: end != "", descending: limit < 0}
	args := []any{time.Now().UnixMicro(), []byte(start)}
	if form.bounded {
		args = append(args, []byte(end))
	}
	most := max(limit, -limit)
	if most == 0 {
		most = -1
	}
	rows, err := tx.StmtContext(ctx, b.query.ranges[form]).QueryContext(ctx, append(args, most)...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	var out []backend.Item
	for rows.Next() {
		var it backend.Item
		var key []byte
		var expires int64
		if err := rows.Scan(&key, &it.Value, &expires, &it.Revision); err != nil {
			return nil, 0, err
		}
		it.Key, it.Expires = string(key), timeOf(expires)
		out = append(out, it)
	}
	return out, revision, rows.Err()
}

// Batch implements backend.Backend.
func (b *Backend) Batch(ctx context.Context, ops ...backend.Op) (uint64, error) {
	if err := backend.CheckBatch(ops); err != nil {
		return 0, err
	}
	return b.writer.do(ctx, &request{ops: ops, done: make(chan struct{})})
}

// Watch implements backend.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, after uint64) (backend.Watcher, error) {
	// A reader may know a revision that is committed and not yet published.
	b.writer.publishing.Lock()
	defer b.writer.publishing.Unlock()
	return b.feed.Watch(ctx, prefix, after)
}

// Latest implements backend.Dated: the file is locked, so nobody else writes to it.
func (b *Backend) Latest(prefix string) uint64 { return b.feed.Latest(prefix) }

// Close ends watchers, waits for writes in flight and closes the file.
func (b *Backend) Close() error {
	b.closeOnce.Do(func() {
		close(b.stop)
		<-b.sweeping
		<-b.writer.exited
		b.feed.Close()
		b.closeErr = b.release()
	})
	return b.closeErr
}

// release closes whatever was opened, the writer's connection last: it then
// writes the log back into the database file.
func (b *Backend) release() error {
	var errs []error
	for _, s := range b.query.open {
		errs = append(errs, s.Close())
	}
	if b.reads != nil {
		errs = append(errs, b.reads.Close())
	}
	if b.writer != nil {
		errs = append(errs, b.writer.close())
	}
	if b.lock != nil {
		errs = append(errs, b.lock.Close())
	}
	return errors.Join(errs...)
}

func (b *Backend) closed() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

// readError says what went wrong with a read.
func (b *Backend) readError(ctx context.Context, err error) error {
	switch {
	case b.closed():
		return backend.Closed()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return b.explain(err)
}

func (b *Backend) sweepLoop() {
	defer close(b.sweeping)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
		for more := true; more && !b.closed(); {
			n, err := b.sweep(ctx)
			if err != nil && !b.closed() {
				b.log.WarnContext(ctx, "expired items could not be removed, trying again", "error", err)
			}
			more = err == nil && n == sweepBatch
		}
	}
}

// sweepBatch is how many expired items are removed in one transaction.
const sweepBatch = 256

// sweep removes some expired items and returns how many it found.
func (b *Backend) sweep(ctx context.Context) (int, error) {
	rows, err := b.query.expired.QueryContext(ctx, time.Now().UnixMicro(), sweepBatch)
	if err != nil {
		return 0, b.readError(ctx, err)
	}
	defer rows.Close()
	var keys []string
	for rows.Next() {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			return 0, b.readError(ctx, err)
		}
		keys = append(keys, string(key))
	}
	if err := rows.Err(); err != nil {
		return 0, b.readError(ctx, err)
	}
	if len(keys) == 0 {
		return 0, nil
	}
	_, err = b.writer.do(ctx, &request{expired: keys, done: make(chan struct{})})
	return len(keys), err
}

// timeOf is the time of a stored expiry, microseconds or 0.
func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// microsOf is the stored form of an expiry. The one moment that the form of "no
// expiry" stands for moves a microsecond back.
func microsOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	if m := t.UnixMicro(); m != 0 {
		return m
	}
	return -1
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Dated   = (*Backend)(nil)
)

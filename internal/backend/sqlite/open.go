package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"teleport/internal/backend"
	"teleport/internal/fault"
)

const (
	// applicationID marks the file as ours ("TLPT"), and schemaVersion its layout.
	applicationID = 0x544c5054
	schemaVersion = 1
	// checkSize is the largest file that is checked through after a crash; more
	// would keep the cluster waiting.
	checkSize = 64 << 20
)

// schema: a rowid table with a unique key index (values of a kilobyte triple a
// table without rowid), and a log of changes that lets watchers resume across a
// restart and keeps the revision from going back.
var schema = []string{
	`CREATE TABLE item (id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL, expires INTEGER NOT NULL, revision INTEGER NOT NULL)`,
	`CREATE UNIQUE INDEX item_key ON item (key)`,
	`CREATE INDEX item_expires ON item (expires) WHERE expires <> 0`,
	`CREATE TABLE change (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key BLOB NOT NULL, deleted INTEGER NOT NULL)`,
	fmt.Sprintf(`PRAGMA application_id = %d`, applicationID),
	fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion),
}

// prepareFile makes or checks the file before SQLite sees it and takes the lock.
// It reports whether the last process did not close it. Nothing may open and
// close the database file later: that would drop SQLite's own locks.
func (b *Backend) prepareFile() (dirty bool, err error) {
	dir := filepath.Dir(b.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fault.New(fault.ErrInvalid, "make the folder of the database: %w", err)
	}
	b.lock, err = os.OpenFile(b.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fault.New(fault.ErrInvalid, "lock the database: %w", err)
	}
	if err := unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, fault.Exists("the database %s is in use by another process: stop that one first", b.path)
		}
		return false, fault.New(fault.ErrInvalid, "lock the database %s: %w", b.path, err)
	}
	switch info, err := os.Lstat(b.path); {
	case errors.Is(err, fs.ErrNotExist):
		f, err := os.OpenFile(b.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return false, fault.New(fault.ErrInvalid, "make the database file: %w", err)
		}
		if err := errors.Join(f.Sync(), f.Close(), syncDir(dir)); err != nil {
			return false, fault.New(fault.ErrInvalid, "make the database file: %w", err)
		}
	case err != nil:
		return false, fault.New(fault.ErrInvalid, "open the database file: %w", err)
	case !info.Mode().IsRegular():
		return false, fault.Invalid("the database %s is not a regular file (%s)", b.path, info.Mode().Type())
	}
	for _, name := range []string{b.path, b.path + "-wal", b.path + "-shm"} {
		info, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			b.log.Warn("the database was open to other users, closing it to them", "file", name, "mode", info.Mode().Perm().String())
			err = os.Chmod(name, 0o600)
		}
		if err != nil {
			return false, fault.New(fault.ErrInvalid, "make the database private: %w", err)
		}
		dirty = dirty || (name == b.path+"-wal" && info.Size() > 0)
	}
	return dirty, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// dsn is the data source for a connection with the pragmas.
func (b *Backend) dsn(pragmas ...string) string {
	q := url.Values{}
	for _, p := range append(pragmas, "busy_timeout(10000)", "trusted_schema(OFF)", "cell_size_check(ON)", "temp_store(MEMORY)") {
		q.Add("_pragma", p)
	}
	return "file:" + (&url.URL{Path: b.path}).EscapedPath() + "?" + q.Encode()
}

func (b *Backend) openDatabase(ctx context.Context, onHealth func(error), dirty bool) error {
	db, err := sql.Open("sqlite", b.dsn("journal_mode(WAL)", "synchronous(FULL)", "secure_delete(FAST)", "journal_size_limit(33554432)"))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	b.writer = &writer{
		db: db, stop: b.stop, explain: b.explain, onHealth: onHealth,
		queue: make(chan *request, 1024), exited: make(chan struct{}),
	}
	if b.writer.conn, err = db.Conn(ctx); err != nil {
		return err
	}
	if err := b.checkDatabase(ctx, b.writer.conn, dirty); err != nil {
		return err
	}
	if err := b.writer.prepare(ctx); err != nil {
		return err
	}
	if b.reads, err = sql.Open("sqlite", b.dsn("query_only(ON)", "cache_size(-1024)")); err != nil {
		return err
	}
	b.reads.SetMaxOpenConns(readers)
	b.reads.SetMaxIdleConns(readers)
	if err := b.prepareReads(ctx); err != nil {
		return err
	}
	return b.loadHistory(ctx)
}

// checkDatabase refuses a file that is not ours, is damaged or would not be
// durable, and lays out an empty one.
func (b *Backend) checkDatabase(ctx context.Context, conn *sql.Conn, dirty bool) error {
	var mode string
	var sync, app, version, tables, pages, pageSize int64
	for _, q := range []struct {
		query string
		into  any
	}{
		{`PRAGMA journal_mode`, &mode},
		{`PRAGMA synchronous`, &sync},
		{`PRAGMA application_id`, &app},
		{`PRAGMA user_version`, &version},
		{`PRAGMA page_count`, &pages},
		{`PRAGMA page_size`, &pageSize},
		{`SELECT count(*) FROM sqlite_schema`, &tables},
	} {
		if err := conn.QueryRowContext(ctx, q.query).Scan(q.into); err != nil {
			return err
		}
	}
	switch {
	case !strings.EqualFold(mode, "wal") || sync != 2:
		return fault.Unsupported("the database %s is not durable here (journal_mode %s, synchronous %d; want wal, 2): use a local file system", b.path, mode, sync)
	case tables == 0 && version == 0:
		return createSchema(ctx, conn)
	case app != applicationID:
		return fault.Invalid("the file %s is an SQLite database of something else: give another path", b.path)
	case version > schemaVersion:
		return fault.Unsupported("the database %s was written by a newer version (layout %d, this one knows %d): run that version", b.path, version, schemaVersion)
	}
	if size := pages * pageSize; !dirty || size > checkSize {
		return nil
	}
	var verdict string
	if err := conn.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return b.damaged(verdict)
	}
	return nil
}

func createSchema(ctx context.Context, conn *sql.Conn) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, statement := range schema {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

func (b *Backend) prepareReads(ctx context.Context) error {
	b.query.ranges = make(map[rangeForm]*sql.Stmt)
	var errs []error
	prepare := func(query string) *sql.Stmt {
		s, err := b.reads.PrepareContext(ctx, query)
		errs = append(errs, err)
		if s != nil {
			b.query.open = append(b.query.open, s)
		}
		return s
	}
	b.query.get = prepare(`SELECT value, expires, revision FROM item WHERE key = ?`)
	b.query.revision = prepare(`SELECT coalesce((SELECT revision FROM change ORDER BY id DESC LIMIT 1), 0)`)
	b.query.expired = prepare(`SELECT key FROM item WHERE expires <> 0 AND expires <= ? ORDER BY expires LIMIT ?`)
	for _, form := range []rangeForm{{}, {bounded: true}, {descending: true}, {bounded: true, descending: true}} {
		query := `SELECT key, value, expires, revision FROM item WHERE (expires = 0 OR expires > ?) AND key >= ?`
		if form.bounded {
			query += ` AND key < ?`
		}
		query += ` ORDER BY key`
		if form.descending {
			query += ` DESC`
		}
		b.query.ranges[form] = prepare(query + ` LIMIT ?`)
	}
	return errors.Join(errs...)
}

// loadHistory fills the feed with the changes that outlived the restart. Of a
// key that changed several times only the last change has a value to show.
func (b *Backend) loadHistory(ctx context.Context) error {
	rows, err := b.reads.QueryContext(ctx, `SELECT c.id, c.revision, c.key, c.deleted, i.value, i.expires
		FROM change c LEFT JOIN item i ON i.key = c.key AND i.revision = c.revision ORDER BY c.id DESC`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var events []backend.Event
	var oldest uint64
	var first int64
	bytes := 0
	for rows.Next() && bytes < historyBytes {
		var e backend.Event
		var key, value []byte
		var expires sql.NullInt64
		if err := rows.Scan(&first, &e.Revision, &key, &e.Deleted, &value, &expires); err != nil {
			return err
		}
		oldest = e.Revision
		b.writer.revision = max(b.writer.revision, e.Revision)
		b.writer.lastChange = max(b.writer.lastChange, first)
		bytes += len(key) + len(value)
		e.Item.Key = string(key)
		if !e.Deleted {
			if !expires.Valid {
				continue // written again since
			}
			e.Item.Value, e.Item.Expires, e.Item.Revision = value, timeOf(expires.Int64), e.Revision
		}
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if first <= 1 {
		oldest = 0 // nothing was ever dropped
	}
	slices.Reverse(events)
	b.writer.firstChange = first
	b.feed = backend.NewFeed(backend.FeedConfig{Bytes: historyBytes, Floor: oldest})
	b.writer.feed = b.feed
	b.feed.Publish(b.writer.revision, events)
	return nil
}

// historyBytes bounds the values that the feed keeps in memory.
const historyBytes = 8 << 20

package ssh

import (
	"os"
	"path"
	"sync"
	"sync/atomic"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
)

// transfer is a file that a client reads or writes, with what it moved.
type transfer struct {
	server *sftpServer
	file   *os.File
	path   string
	// writing says that the file was opened to write to it.
	writing bool
	// base is the size when the file was opened to append to it. Clients either
	// count from there or from zero.
	base          int64
	read, written atomic.Int64
	once          sync.Once
}

// ReadAt reads.
func (t *transfer) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.file.ReadAt(p, off)
	t.read.Add(int64(n))
	return n, err
}

// WriteAt writes.
func (t *transfer) WriteAt(p []byte, off int64) (int, error) {
	if off < t.base {
		off += t.base
	}
	n, err := t.file.WriteAt(p, off)
	t.written.Add(int64(n))
	return n, err
}

// Close closes the file and notes what was moved.
func (t *transfer) Close() error {
	err := os.ErrClosed
	t.once.Do(func() {
		err = t.file.Close()
		t.server.open.Add(-1)
		t.server.log.add(moved{path: t.path, writing: t.writing, read: t.read.Load(), written: t.written.Load()})
	})
	return err
}

// moved is what happened to one file.
type moved struct {
	path          string
	writing       bool
	read, written int64
}

// maxListed bounds the files of a session that get an event of their own.
const maxListed = 200

// transfers collects the files of a session; they go to the audit log at its end,
// the first ones singly and all in sum.
type transfers struct {
	record *record

	mu            sync.Mutex
	listed        []moved
	files         int64
	read, written int64
}

func (t *transfers) add(m moved) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files++
	t.read += m.read
	t.written += m.written
	if len(t.listed) < maxListed {
		t.listed = append(t.listed, m)
	}
}

// events returns an event for each listed file.
func (t *transfers) events() []*auditv1.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*auditv1.Event, 0, len(t.listed))
	for _, m := range t.listed {
		kind, action := audit.SCPDownload, "download"
		if m.writing {
			kind, action = audit.SCPUpload, "upload"
		}
		out = append(out, t.record.Event(kind, map[string]any{
			"action": action, "path": m.path, "command": "sftp", "bytes_read": m.read, "bytes_written": m.written,
		}))
	}
	return out
}

// summary returns the sums, or nil if no file was opened.
func (t *transfers) summary() map[string]any {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == 0 {
		return nil
	}
	return map[string]any{
		"files": t.files, "files_listed": len(t.listed), "bytes_read": t.read, "bytes_written": t.written,
	}
}

// cleanPath makes a path canonical in form; links are not looked at.
func cleanPath(p string) string { return path.Clean("/" + p) }

package transfer

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Side is a place that files are copied from and to: this machine, or a server. It is
// safe for concurrent use.
type Side interface {
	// Stat follows symbolic links.
	Stat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.FileInfo, error)
	// Open opens a file to read it.
	Open(name string) (io.ReadCloser, error)
	// Create opens a file to write it, empty. One that was not there gets the
	// permissions, less those that its side gives to no new file.
	Create(name string, perm fs.FileMode) (Sink, error)
	// Mkdir makes a directory that its owner may write to, or takes one that is there.
	Mkdir(name string, perm fs.FileMode) error
	// Keep sets permissions and time of change.
	Keep(name string, perm fs.FileMode, changed time.Time) error
	Join(dir, name string) string
	Base(name string) string
}

// Sink is a file that is being written.
type Sink interface {
	// Fill writes all of r, of which size bytes are expected; after an error what was
	// written without a gap is left.
	Fill(r io.Reader, size int64) error
	io.Closer
}

// Local is this machine.
type Local struct{}

// Stat follows symbolic links.
func (Local) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// ReadDir returns what is in a directory, in order.
func (Local) ReadDir(name string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(name)
	out := make([]fs.FileInfo, 0, len(entries))
	for _, e := range entries {
		info, ierr := e.Info()
		if ierr != nil {
			continue // it has gone since
		}
		out = append(out, info)
	}
	return out, err
}

// Open opens a file to read it.
func (Local) Open(name string) (io.ReadCloser, error) { return os.Open(name) }

// Create opens a file to write it.
func (Local) Create(name string, perm fs.FileMode) (Sink, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm.Perm())
	if err != nil {
		return nil, err
	}
	return localFile{f}, nil
}

// Mkdir makes a directory, or takes one that is there.
func (Local) Mkdir(name string, perm fs.FileMode) error {
	err := os.Mkdir(name, perm.Perm()|ownerRights)
	if err == nil {
		return nil
	}
	if info, serr := os.Stat(name); serr == nil && info.IsDir() {
		return nil
	}
	return err
}

// Keep sets permissions and time of change.
func (Local) Keep(name string, perm fs.FileMode, changed time.Time) error {
	if err := os.Chtimes(name, time.Time{}, changed); err != nil {
		return err
	}
	return os.Chmod(name, perm.Perm())
}

// Join puts a name into a directory.
func (Local) Join(dir, name string) string { return filepath.Join(dir, name) }

// Base returns the last part of a name.
func (Local) Base(name string) string { return filepath.Base(name) }

type localFile struct{ *os.File }

// Fill writes all of r: a file of a server writes itself, with many requests at once.
func (f localFile) Fill(r io.Reader, _ int64) error {
	var err error
	if w, ok := r.(io.WriterTo); ok {
		_, err = w.WriteTo(f.File)
	} else {
		_, err = io.CopyBuffer(struct{ io.Writer }{f.File}, r, make([]byte, bufferSize))
	}
	return err
}

const (
	ownerRights = 0o700
	bufferSize  = 256 << 10
)

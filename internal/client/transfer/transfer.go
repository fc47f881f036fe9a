// Package transfer copies files between this machine and servers by SFTP, as scp does:
// streamed, with many requests under way, several small files at a time, and never
// through a temporary file. From server to server the bytes pass through this machine.
//
// What a server says is not believed further than it has to be: a name with a slash in
// it is refused, nothing but regular files and directories is made, and no file gets
// set-user-ID or the like.
package transfer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pkg/sftp"
	"golang.org/x/sync/errgroup"

	"teleport/internal/fault"
)

const (
	// filesAtOnce is how many files of a directory are under way.
	filesAtOnce = 8
	// maxDepth bounds directories in directories: a symbolic link may lead above itself.
	maxDepth = 128
)

// Source is something to copy.
type Source struct {
	Side Side
	Name string
}

// Job says how to copy.
type Job struct {
	// Recursive copies directories with all that is in them, following symbolic links.
	Recursive bool
	// Preserve keeps permissions and the time of change.
	Preserve bool
	// Problem is told of each file that could not be copied; the others are.
	Problem func(name string, err error)
	// Meter counts; nil does not.
	Meter *Meter
}

// Meter counts what is copied, for those who watch.
type Meter struct {
	// Done is how many bytes have been copied, Total how many there are as far as is
	// known, Files how many files are done.
	Done, Total, Files atomic.Int64
	name               atomic.Pointer[string]
}

// Name returns the name of the file that was begun last.
func (m *Meter) Name() string {
	if p := m.name.Load(); p != nil {
		return *p
	}
	return ""
}

// run is a Job under way.
type run struct {
	Job
	group errgroup.Group

	mu     sync.Mutex
	failed int
	// later are the directories whose permissions and times wait for what is in them.
	later []func() error
}

// Copy copies the sources to a side under the name, or into the directory of that name.
// It returns how many files could not be copied, or an error if nothing was tried.
func (j Job) Copy(ctx context.Context, sources []Source, to Side, name string) (failed int, err error) {
	r := &run{Job: j}
	r.group.SetLimit(filesAtOnce)
	if r.Meter == nil {
		r.Meter = &Meter{}
	}
	info, err := to.Stat(name)
	isDir := err == nil && info.IsDir()
	if !isDir && (len(sources) > 1 || strings.HasSuffix(name, "/") && !j.Recursive) {
		return 0, fault.Invalid("%s: not a directory", name)
	}
	for _, s := range sources {
		r.source(ctx, s, to, name, isDir)
	}
	_ = r.group.Wait()
	for i := len(r.later) - 1; i >= 0; i-- {
		if err := r.later[i](); err != nil {
			r.problem(name, err)
		}
	}
	return r.failed, nil
}

// source copies one of the sources.
func (r *run) source(ctx context.Context, s Source, to Side, name string, isDir bool) {
	info, err := s.Side.Stat(s.Name)
	if err != nil {
		r.problem(s.Name, err)
		return
	}
	base := s.Side.Base(s.Name)
	// Of "." and the like, what is in it is meant.
	whole := base == "." || base == ".." || base == "/"
	if isDir && !whole {
		if !plain(base) {
			r.problem(s.Name, fault.Invalid("%q is no name for a file", base))
			return
		}
		name = to.Join(name, base)
	}
	r.copy(ctx, s, to, name, info, 0)
}

// copy copies a file or a directory.
func (r *run) copy(ctx context.Context, s Source, to Side, name string, info fs.FileInfo, depth int) {
	switch {
	case ctx.Err() != nil:
		r.problem(s.Name, context.Cause(ctx))
	case info.IsDir() && !r.Recursive:
		r.problem(s.Name, fault.Invalid("it is a directory: use -r"))
	case info.IsDir():
		r.directory(ctx, s, to, name, info, depth)
	case !info.Mode().IsRegular():
		r.problem(s.Name, fault.Invalid("not a regular file"))
	default:
		r.Meter.Total.Add(info.Size())
		r.group.Go(func() error {
			if err := r.file(ctx, s, to, name, info); err != nil {
				r.problem(s.Name, err)
			}
			return nil
		})
	}
}

func (r *run) directory(ctx context.Context, s Source, to Side, name string, info fs.FileInfo, depth int) {
	if depth > maxDepth {
		r.problem(s.Name, fault.Limit("more than %d directories deep: does a symbolic link lead to a directory above it?", maxDepth))
		return
	}
	entries, err := s.Side.ReadDir(s.Name)
	if err == nil {
		err = to.Mkdir(name, info.Mode())
	}
	if err != nil {
		r.problem(s.Name, err)
		return
	}
	if r.Preserve {
		r.later = append(r.later, func() error { return to.Keep(name, info.Mode(), info.ModTime()) })
	}
	for _, e := range entries {
		if !plain(e.Name()) {
			r.problem(s.Name, fault.Invalid("the server names a file %q, which is no name for one", e.Name()))
			continue
		}
		from := Source{s.Side, s.Side.Join(s.Name, e.Name())}
		if e.Mode()&fs.ModeSymlink != 0 {
			if e, err = s.Side.Stat(from.Name); err != nil {
				r.problem(from.Name, err)
				continue
			}
		}
		r.copy(ctx, from, to, to.Join(name, s.Side.Base(from.Name)), e, depth+1)
	}
}

func (r *run) file(ctx context.Context, s Source, to Side, name string, info fs.FileInfo) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	base := s.Side.Base(s.Name)
	r.Meter.name.Store(&base)
	in, err := s.Side.Open(s.Name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := to.Create(name, info.Mode())
	if err != nil {
		return err
	}
	err = out.Fill(r.counted(in), info.Size())
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil && r.Preserve {
		err = to.Keep(name, info.Mode(), info.ModTime())
	}
	if err == nil {
		r.Meter.Files.Add(1)
	}
	return err
}

func (r *run) problem(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	if r.Problem != nil {
		r.Problem(name, explain(err))
	}
}

// explain leaves out what the name of the file said already.
func explain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// plain reports whether a name that somebody else chose is one for a file in a
// directory.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// counted returns in with its bytes counted; a file of a server, which knows how to
// write itself with many requests at once, stays one.
func (r *run) counted(in io.Reader) io.Reader {
	if f, ok := in.(*sftp.File); ok {
		return countedFile{f, r.Meter}
	}
	return &countedReader{in, r.Meter}
}

type countedReader struct {
	io.Reader
	meter *Meter
}

// Read counts.
func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.meter.Done.Add(int64(n))
	return n, err
}

type countedFile struct {
	*sftp.File
	meter *Meter
}

// WriteTo counts.
func (c countedFile) WriteTo(w io.Writer) (int64, error) {
	return c.File.WriteTo(&countedWriter{w, c.meter})
}

type countedWriter struct {
	io.Writer
	meter *Meter
}

// Write counts.
func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.meter.Done.Add(int64(n))
	return n, err
}

package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// maxRefusal bounds what is kept of what a server says when it refuses.
const maxRefusal = 1024

// Remote is a server, by way of its SFTP subsystem.
type Remote struct {
	*sftp.Client
	session *ssh.Session
}

// Dial starts the SFTP subsystem of a server. Close ends it; the connection stays.
func Dial(conn *ssh.Client) (*Remote, error) {
	session, err := conn.NewSession()
	if err != nil {
		return nil, fault.Unreachable("open a session: %w", err)
	}
	stderr, err := session.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	refusal := &limited{left: maxRefusal}
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = io.Copy(refusal, stderr)
	}()
	c, err := start(session)
	if err == nil {
		return &Remote{c, session}, nil
	}
	_ = session.Close()
	select {
	case <-said:
	case <-time.After(patience):
	}
	if text := refusal.line(); text != "" {
		return nil, fault.Denied("the server refused to transfer files: %s", text)
	}
	return nil, err
}

// patience is how long it is waited for what a server says when it has refused.
const patience = time.Second

func start(session *ssh.Session) (*sftp.Client, error) {
	in, err := session.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	if err := session.RequestSubsystem("sftp"); err != nil {
		return nil, fault.Denied("the server does not transfer files: it has no SFTP, or your roles do not allow it (%w)", err)
	}
	c, err := sftp.NewClientPipe(out, in, sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true))
	if err != nil {
		return nil, fault.Unreachable("the server does not transfer files: %w", err)
	}
	return c, nil
}

// Close ends the subsystem.
func (r *Remote) Close() error {
	err := r.Client.Close()
	_ = r.session.Close()
	return err
}

// Home is how a name in the user's home directory begins for SFTP: "~" and "~/x" are
// what people write.
func Home(name string) (string, error) {
	switch rest, ok := strings.CutPrefix(name, "~"); {
	case name == "" || name == "~":
		return ".", nil
	case !ok:
		return name, nil
	case strings.HasPrefix(rest, "/"):
		return path.Clean("./" + rest), nil
	}
	return "", fault.Unsupported("%q: the home directory of another user cannot be named so: write its path", name)
}

// ReadDir returns what is in a directory. The names come from the server and are
// checked where they are used.
func (r *Remote) ReadDir(name string) ([]fs.FileInfo, error) { return r.Client.ReadDir(name) }

// Open opens a file to read it.
func (r *Remote) Open(name string) (io.ReadCloser, error) {
	f, err := r.Client.Open(name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Create opens a file to write it. SFTP says only whether there was one by failing.
func (r *Remote) Create(name string, perm fs.FileMode) (Sink, error) {
	const write = os.O_WRONLY | os.O_CREATE
	f, err := r.OpenFile(name, write|os.O_EXCL)
	if err != nil {
		if f, err = r.OpenFile(name, write|os.O_TRUNC); err != nil {
			return nil, err
		}
		return &remoteFile{f}, nil
	}
	info, err := f.Stat()
	if err == nil {
		if want := allowed(perm, info.Mode()); want != info.Mode().Perm() {
			err = f.Chmod(want)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &remoteFile{f}, nil
}

// allowed returns the permissions, less those that a server gives to no new file, of
// which one shows what it gave without being asked.
func allowed(perm, given fs.FileMode) fs.FileMode {
	given &= 0o666
	return perm.Perm() & (given | (given&0o444)>>2)
}

// Mkdir makes a directory, or takes one that is there.
func (r *Remote) Mkdir(name string, perm fs.FileMode) error {
	if err := r.Client.Mkdir(name); err != nil {
		if info, serr := r.Stat(name); serr == nil && info.IsDir() {
			return nil
		}
		return err
	}
	info, err := r.Stat(name)
	if err != nil {
		return err
	}
	if want := (perm.Perm() | ownerRights) & info.Mode().Perm(); want != info.Mode().Perm() {
		return r.Chmod(name, want)
	}
	return nil
}

// Keep sets permissions and time of change.
func (r *Remote) Keep(name string, perm fs.FileMode, changed time.Time) error {
	if err := r.Chtimes(name, time.Now(), changed); err != nil {
		return err
	}
	return r.Chmod(name, perm.Perm())
}

// Base returns the last part of a name.
func (r *Remote) Base(name string) string { return path.Base(name) }

// Join puts a name into a directory.
func (r *Remote) Join(dir, name string) string { return path.Join(dir, name) }

// Glob returns what a pattern of a shell (*, ?, [a-z]) stands for, or the pattern itself
// if that is nothing or it is none. A * does not stand for a dot at the beginning.
func (r *Remote) Glob(pattern string) ([]string, error) {
	if !strings.ContainsAny(pattern, `*?[\`) {
		return []string{pattern}, nil
	}
	found, err := r.Client.Glob(strings.TrimRight(pattern, "/"))
	if err != nil {
		return nil, fault.Invalid("%q: %w", pattern, err)
	}
	var out []string
	for _, name := range found {
		if plain(path.Base(name)) && !hides(pattern, name) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return []string{pattern}, nil
	}
	slices.Sort(out)
	return out, nil
}

// hides reports whether a part of the name begins with a dot where the pattern does not
// say so.
func hides(pattern, name string) bool {
	p, n := strings.Split(path.Clean(pattern), "/"), strings.Split(path.Clean(name), "/")
	if len(p) != len(n) {
		return false
	}
	for i := range n {
		if strings.HasPrefix(n[i], ".") && !strings.HasPrefix(p[i], ".") {
			return true
		}
	}
	return false
}

type remoteFile struct{ *sftp.File }

// sized is a reader of which it is known how much is left, so that the library makes
// several requests at once.
type sized struct {
	io.Reader
	size int64
}

// Size returns how many bytes are expected.
func (s sized) Size() int64 { return s.size }

// Fill writes all of r with many requests at once. After a failure the file has gaps
// behind where it began: they are cut off.
func (f *remoteFile) Fill(r io.Reader, size int64) error {
	if w, ok := r.(io.WriterTo); ok {
		return f.fromServer(w)
	}
	_, err := f.ReadFrom(sized{r, size})
	return f.cut(err)
}

// fromServer copies from another server: both make many requests at once.
func (f *remoteFile) fromServer(from io.WriterTo) error {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := from.WriteTo(pw)
		_ = pw.CloseWithError(err)
	}()
	_, err := f.ReadFromWithConcurrency(pr, 0)
	_ = pr.CloseWithError(errors.New("the other side failed"))
	<-done
	return f.cut(err)
}

func (f *remoteFile) cut(err error) error {
	if err == nil {
		return nil
	}
	if end, serr := f.Seek(0, io.SeekCurrent); serr == nil {
		_ = f.Truncate(end)
	}
	return err
}

// limited keeps the beginning of what is written.
type limited struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	left int
}

// Write keeps what fits.
func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := min(len(p), l.left)
	l.buf.Write(p[:keep])
	l.left -= keep
	return len(p), nil
}

func (l *limited) line() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, _, _ := strings.Cut(strings.TrimSpace(l.buf.String()), "\n")
	return strings.TrimSpace(first)
}

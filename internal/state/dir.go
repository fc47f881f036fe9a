package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

const (
	fileLock    = "lock"
	fileCurrent = "state"
	filePrev    = "state.prev"
	fileNew     = "state.new"

	dirMode  = 0o700
	fileMode = 0o600
)

// Dir is a data directory that this process alone uses. Its methods may be called
// from several goroutines at once.
type Dir struct {
	path string
	lock *os.File

	mu sync.Mutex
	// create makes the file that a save is written to; tests let it fail.
	create func(name string) (*os.File, error)
	damage error
}

// Open makes the directory if it is not there, and locks it. A directory that
// another process uses is fault.ErrExists; one that is not a directory, belongs to
// somebody else or can be written by others is fault.ErrInvalid; each error is one
// line that says what to do.
func Open(dir string) (*Dir, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Invalid("data directory %q: %w", dir, err)
	}
	if err := os.MkdirAll(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, unusable(path, "made", cause(err), fmt.Sprintf("make it, or set data_dir to one that user id %d can write", os.Geteuid()))
	}
	if err := checkDir(path, os.Geteuid()); err != nil {
		return nil, err
	}
	// So that a new directory is still there after a crash; a parent that is closed
	// to us was not made by us.
	_ = syncDir(filepath.Dir(path))
	d := &Dir{path: path, create: createExclusive}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	return d, nil
}

// OpenLocked opens a directory whose lock this process was handed by the one that had
// it: the kernel holds the lock until both have closed the file.
func OpenLocked(dir string, lock *os.File) (*Dir, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Invalid("data directory %q: %w", dir, err)
	}
	if err := checkDir(path, os.Geteuid()); err != nil {
		return nil, err
	}
	d := &Dir{path: path, create: createExclusive, lock: lock}
	d.sign()
	return d, nil
}

// LockFile returns another handle of the lock, to hand to a process that takes over.
func (d *Dir) LockFile() (*os.File, error) {
	fd, err := unix.FcntlInt(d.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lock of the data directory: %w", err)
	}
	return os.NewFile(uintptr(fd), d.lock.Name()), nil
}

// Peek returns the state that is saved in a directory, as Dir.Load does, without
// taking the directory: the process that uses it may run and save meanwhile.
func Peek(dir string) (*State, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Invalid("data directory %q: %w", dir, err)
	}
	return (&Dir{path: path}).Load()
}

// checkDir makes sure that the directory is one, belongs to the user
// id, and nobody else can write to it.
func checkDir(path string, uid int) error {
	info, err := os.Stat(path)
	if err != nil {
		return fault.Invalid("data directory %q cannot be read: %w: set data_dir to a directory that user id %d can read and write", path, cause(err), uid)
	}
	if !info.IsDir() {
		return fault.Invalid("data directory %q is not a directory: remove it, or set data_dir to another path", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fault.Invalid("data directory %q cannot be read: %w", path, err)
	}
	if int(st.Uid) != uid {
		return fault.Invalid("data directory %q belongs to user id %d, but this process runs as %d: run as that user, or `chown -R %d %s`",
			path, st.Uid, uid, uid, path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fault.Invalid("data directory %q can be written by other users (mode %04o): `chmod 700 %s`", path, info.Mode().Perm(), path)
	}
	if err := unix.Access(path, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return unusable(path, "used", err, "`chmod 700 "+path+"`")
	}
	return nil
}

// unusable says that the directory cannot be made or used, and what to do: the
// advice, unless the file system takes no writes at all.
func unusable(path, what string, err error, advice string) error {
	if errors.Is(err, unix.EROFS) {
		advice = "mount that file system for writing, or set data_dir to a directory on another one"
	}
	return fault.Invalid("data directory %q cannot be %s: %w: %s", path, what, err, advice)
}

// acquire takes the lock, which the kernel gives back when the process ends,
// however it ends. The file stays: removing it would let two processes lock two
// files of one name.
func (d *Dir) acquire() error {
	name := filepath.Join(d.path, fileLock)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return fault.Invalid("lock file %q cannot be opened: %w", name, cause(err))
	}
	err = flock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return fault.Exists("data directory %q is in use by another process (%s): stop it, or give this one its own data_dir", d.path, holder(f))
	}
	if err != nil {
		defer f.Close()
		return fault.Invalid("data directory %q cannot be locked: %w: it must be on a file system with flock", d.path, err)
	}
	d.lock = f
	d.sign()
	return nil
}

// sign writes who has the lock. The content only serves the message of acquire.
func (d *Dir) sign() {
	text := fmt.Sprintf("pid %d\nstarted %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	if err := d.lock.Truncate(0); err == nil {
		_, _ = d.lock.WriteAt([]byte(text), 0)
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// holder reads who has the lock. What is not as acquire writes it is not shown.
func holder(f *os.File) string {
	data, _ := io.ReadAll(io.LimitReader(f, maxHeader))
	var pid, started string
	for line := range strings.SplitSeq(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "pid "); ok {
			if n, err := strconv.ParseUint(v, 10, 32); err == nil {
				pid = strconv.FormatUint(n, 10)
			}
		}
		if v, ok := strings.CutPrefix(line, "started "); ok {
			if t, err := time.Parse(time.RFC3339, v); err == nil {
				started = t.UTC().Format(time.RFC3339)
			}
		}
	}
	if pid == "" || started == "" {
		return "pid unknown"
	}
	return "pid " + pid + ", started " + started
}

// Path returns the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Load returns the state that was saved last. If that file is damaged or missing,
// its predecessor is returned and Damage says why. Without either file the error is
// fault.ErrNotFound: this machine has not joined yet.
func (d *Dir) Load() (*State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.damage = nil
	s, err := d.read(fileCurrent)
	if err == nil {
		return s, nil
	}
	if !recoverable(err) {
		return nil, err
	}
	prev, prevErr := d.read(filePrev)
	switch {
	case prevErr == nil:
		d.damage = err
		return prev, nil
	case !recoverable(prevErr):
		return nil, prevErr
	case errors.Is(err, fault.ErrNotFound) && errors.Is(prevErr, fault.ErrNotFound):
		return nil, err
	}
	bad := err
	if errors.Is(err, fault.ErrNotFound) {
		bad = prevErr
	}
	return nil, fault.Invalid("%w, and there is no good copy: delete %s and %s, and join again with a token",
		bad, filepath.Join(d.path, fileCurrent), filepath.Join(d.path, filePrev))
}

// Damage says why the last Load had to return the predecessor; nil if it did not.
func (d *Dir) Damage() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.damage
}

// recoverable reports whether the predecessor may stand in: the file is missing or
// damaged, and not merely closed to us or of a newer version.
func recoverable(err error) bool {
	return errors.Is(err, fault.ErrNotFound) || errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fs.ErrPermission)
}

// read returns the state in a file; every error is of a fault kind.
func (d *Dir) read(name string) (*State, error) {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.NotFound("state file %s is missing", path)
	}
	if err != nil {
		return nil, fault.Invalid("state file %s cannot be opened: %w", path, cause(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, fault.Invalid("state file %s is not a file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fault.Invalid("state file %s cannot be read: %w", path, cause(err))
	}
	if len(data) > maxFile {
		return nil, fault.Invalid("state file %s is damaged: it is longer than %d bytes", path, maxFile)
	}
	s, err := decode(data)
	if errors.Is(err, fault.ErrUnsupported) {
		return nil, fault.Unsupported("state file %s cannot be used: %w", path, err)
	}
	if err != nil {
		return nil, fault.Invalid("state file %s is damaged: %w", path, err)
	}
	return s, nil
}

// Close gives the directory back.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// cause strips the path that the os package puts into its errors; the messages
// here name it already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

package ssh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// files are the file system as one user sees it.
type files struct{ thread *fsThread }

// open opens a file by its path with the user's rights. It does not wait for the
// other end of a pipe, and refuses what is no file: pipes and sockets, and what
// /proc shows of processes, since some of it is granted by who asks (this process)
// and not by rights.
func (f files) open(name string, flags int, mode fs.FileMode) (*os.File, error) {
	var file *os.File
	err := f.thread.do(func() (err error) {
		file, err = openHere(name, flags, mode)
		return err
	})
	return file, err
}

// openHere is open on the calling thread.
func openHere(name string, flags int, mode fs.FileMode) (*os.File, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NOCTTY | unix.O_NONBLOCK
	}
	fd, err := openat2(name, flags|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if err := checkOpened(fd, flags); err != nil {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openat2 opens without going through the magic links of /proc.
func openat2(name string, flags int, mode uint32) (int, error) {
	if flags&(unix.O_CREAT|unix.O_TMPFILE) == 0 {
		mode = 0
	}
	how := unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, name, &how)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS):
			// Kernels before 5.6. What was opened is looked at afterwards all the same.
			return unix.Open(name, flags, mode)
		}
		return fd, err
	}
}

// checkOpened refuses what must not be served.
func checkOpened(fd, flags int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; flags&unix.O_PATH == 0 && (kind == unix.S_IFIFO || kind == unix.S_IFSOCK) {
		return unix.ENXIO
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return err
	}
	if sfs.Type != unix.PROC_SUPER_MAGIC {
		return nil
	}
	where, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return unix.EACCES
	}
	for part := range strings.SplitSeq(where, "/") {
		if _, err := strconv.ParseUint(part, 10, 64); err == nil {
			return unix.EACCES
		}
	}
	return nil
}

// stat describes what name is or, if follow is set, points to.
func (f files) stat(name string, follow bool) (fs.FileInfo, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	var info fs.FileInfo
	err := f.thread.do(func() error {
		file, err := openHere(name, flags, 0)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		info, err = file.Stat()
		return err
	})
	return info, err
}

// readlink returns what a symbolic link says.
func (f files) readlink(name string) (string, error) {
	target := ""
	err := f.thread.do(func() error {
		file, err := openHere(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(file.Fd()), "", buf)
		if err != nil {
			return &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		target = string(buf[:n])
		return nil
	})
	return target, err
}

// realpath resolves symbolic links; what does not exist stays as it is.
func (f files) realpath(name string) string {
	out := name
	_ = f.thread.do(func() error {
		file, err := openHere(name, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		where, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
		if err == nil && strings.HasPrefix(where, "/") && !strings.HasSuffix(where, " (deleted)") {
			out = where
		}
		return err
	})
	return out
}

// rename moves without replacing anything, unless replace is set.
func (f files) rename(from, to string, replace bool) error {
	return f.thread.do(func() error {
		if replace {
			return os.Rename(from, to)
		}
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			// File systems without that flag. The window is only the user's own.
			if _, errStat := os.Lstat(to); errStat == nil {
				err = unix.EEXIST
			} else {
				return os.Rename(from, to)
			}
		}
		if err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return nil
	})
}

// call runs an operation with the user's rights.
func (f files) call(op func() error) error { return f.thread.do(op) }

func (f files) statfs(name string) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := f.thread.do(func() error { return unix.Statfs(name, &st) })
	if err != nil {
		return st, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return st, nil
}

// unlink removes a file, rmdir an empty directory: neither becomes the other.
func (f files) unlink(name string) error {
	return f.pathCall("remove", name, func() error { return unix.Unlink(name) })
}

func (f files) rmdir(name string) error {
	return f.pathCall("rmdir", name, func() error { return unix.Rmdir(name) })
}

// mkdir makes a directory that is as open as the umask allows.
func (f files) mkdir(name string) error {
	return f.pathCall("mkdir", name, func() error { return unix.Mkdir(name, 0o777) })
}

func (f files) pathCall(op, name string, call func() error) error {
	err := f.thread.do(call)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return &fs.PathError{Op: op, Path: name, Err: errno}
	}
	return err
}

// directory lists a directory bit by bit.
type directory struct {
	files files
	file  *os.File
	path  string
	next  int64
}

func (f files) openDir(name string) (*directory, error) {
	file, err := f.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &directory{files: f, file: file, path: name}, nil
}

// ListAt fills out with the next entries. Entries are only listed in order.
func (d *directory) ListAt(out []fs.FileInfo, offset int64) (int, error) {
	if offset != d.next {
		return 0, fmt.Errorf("list %s: entry %d was asked for, %d is next", path.Base(d.path), offset, d.next)
	}
	n := 0
	err := d.files.thread.do(func() error {
		infos, err := d.file.Readdir(len(out))
		n = copy(out, infos)
		return err
	})
	d.next += int64(n)
	return n, err
}

// Close closes the directory.
func (d *directory) Close() error { return d.file.Close() }

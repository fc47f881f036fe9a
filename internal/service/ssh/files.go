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
	"time"

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
		case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
			// Kernels before 5.6, and sandboxes that do not know the call. What was
			// opened is looked at afterwards all the same.
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

// at runs op on the thread with the directory of name, opened without magic links,
// and the last part of name.
func (f files) at(op, name string, call func(dir int, base string) error) error {
	return f.thread.do(func() error {
		dir, err := openHere(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return pathError(op, name, call(int(dir.Fd()), path.Base(name)))
	})
}

// on runs op on the thread with what name is or, if follow is set, points to.
func (f files) on(op, name string, follow bool, call func(file *os.File) error) error {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	return f.thread.do(func() error {
		file, err := openHere(name, flags, 0)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		return pathError(op, name, call(file))
	})
}

// pathError says which path a bare errno is about.
func pathError(op, name string, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return &fs.PathError{Op: op, Path: name, Err: errno}
	}
	return err
}

// link is a path to an open file for calls that take no descriptor.
func link(file *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(file.Fd())) }

// stat describes what name is or, if follow is set, points to.
func (f files) stat(name string, follow bool) (info fs.FileInfo, err error) {
	err = f.on("stat", name, follow, func(file *os.File) (err error) {
		info, err = file.Stat()
		return err
	})
	return info, err
}

// readlink returns what a symbolic link says.
func (f files) readlink(name string) (target string, err error) {
	err = f.on("readlink", name, false, func(file *os.File) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(file.Fd()), "", buf)
		target = string(buf[:max(n, 0)])
		return err
	})
	return target, err
}

// realpath resolves symbolic links; what does not exist stays as it is.
func (f files) realpath(name string) string {
	out := name
	_ = f.on("realpath", name, true, func(file *os.File) error {
		where, err := os.Readlink(link(file))
		if err == nil && strings.HasPrefix(where, "/") && !strings.HasSuffix(where, " (deleted)") {
			out = where
		}
		return err
	})
	return out
}

func (f files) statfs(name string) (st unix.Statfs_t, err error) {
	err = f.on("statfs", name, true, func(file *os.File) error { return unix.Fstatfs(int(file.Fd()), &st) })
	return st, err
}

func (f files) truncate(name string, size int64) error {
	return f.thread.do(func() error {
		file, err := openHere(name, unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		return file.Truncate(size)
	})
}

func (f files) chown(name string, uid, gid int) error {
	return f.on("chown", name, true, func(file *os.File) error {
		return unix.Fchownat(int(file.Fd()), "", uid, gid, unix.AT_EMPTY_PATH)
	})
}

func (f files) chmod(name string, mode uint32) error {
	return f.on("chmod", name, true, func(file *os.File) error { return unix.Chmod(link(file), mode) })
}

func (f files) chtimes(name string, accessed, modified time.Time) error {
	return f.on("utimes", name, true, func(file *os.File) error { return os.Chtimes(link(file), accessed, modified) })
}

// rename moves without replacing anything, unless replace is set.
func (f files) rename(from, to string, replace bool) error {
	return f.at("rename", from, func(fromDir int, fromBase string) error {
		dir, err := openHere(path.Dir(to), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		toDir, toBase := int(dir.Fd()), path.Base(to)
		if replace {
			return unix.Renameat(fromDir, fromBase, toDir, toBase)
		}
		err = unix.Renameat2(fromDir, fromBase, toDir, toBase, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
		// File systems without that flag. Only the user can get in between.
		var st unix.Stat_t
		if unix.Fstatat(toDir, toBase, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return unix.EEXIST
		}
		return unix.Renameat(fromDir, fromBase, toDir, toBase)
	})
}

// hardlink gives a file one more name; a symbolic link is not followed.
func (f files) hardlink(from, to string) error {
	return f.at("link", from, func(fromDir int, fromBase string) error {
		dir, err := openHere(path.Dir(to), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return unix.Linkat(fromDir, fromBase, int(dir.Fd()), path.Base(to), 0)
	})
}

func (f files) symlink(target, name string) error {
	return f.at("symlink", name, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

// mkdir makes a directory that is as open as the umask allows.
func (f files) mkdir(name string) error {
	return f.at("mkdir", name, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o777) })
}

// unlink removes a file, rmdir an empty directory: neither becomes the other.
func (f files) unlink(name string) error {
	return f.at("remove", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
}

func (f files) rmdir(name string) error {
	return f.at("rmdir", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
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

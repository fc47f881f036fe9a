package ssh

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// actAs runs f on an operating-system thread of its own that acts as the user:
// effective user and group, groups and file-system ids are the user's, and there are
// no capabilities. The other end of a Unix socket that f connects sees the user
// (SO_PEERCRED is about effective ids, which fsThread does not change), and firewall
// rules about the owner of a socket too. Real and saved ids stay root's: the user can
// neither signal nor trace the thread. The thread ends with f; f must not wait for
// anything. Nil means that we are the user.
func actAs(cred *syscall.Credential, f func() error) error {
	if cred == nil || cred.Uid == 0 {
		return f()
	}
	result := make(chan error, 1)
	onSpareThread(func() {
		defer func() {
			if r := recover(); r != nil {
				result <- fmt.Errorf("panic while acting as the user: %v\n%s", r, debug.Stack())
			}
		}()
		if err := becomeUser(cred); err != nil {
			result <- fmt.Errorf("take the rights of the user: %w", err)
			return
		}
		result <- f()
	})
	return <-result
}

// onSpareThread runs f in a goroutine on a thread that ends with it. It is never the
// first thread of the process, which the runtime keeps and which others take for the
// process.
func onSpareThread(f func()) {
	go func() {
		// Without an unlock the thread dies with this goroutine.
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		held := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(held)
			f()
		}()
		<-held
		runtime.UnlockOSThread()
	}()
}

// becomeUser gives the calling thread, and no other, the user's effective ids, in the
// order groups, group, user, and verifies each.
func becomeUser(cred *syscall.Credential) error {
	groups := make([]int, 0, len(cred.Groups))
	for _, g := range cred.Groups {
		groups = append(groups, int(g))
	}
	// This call of x/sys acts on the calling thread alone. Those for the other ids do
	// not: they would change every thread of the process.
	if err := unix.Setgroups(groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(sysSetresgid, keep, uintptr(cred.Gid), keep); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(sysSetresuid, keep, uintptr(cred.Uid), keep); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	_, uid, _ := unix.Getresuid()
	_, gid, _ := unix.Getresgid()
	if uid != int(cred.Uid) || gid != int(cred.Gid) {
		return fault.Denied("effective user and group are %d and %d, wanted %d and %d", uid, gid, cred.Uid, cred.Gid)
	}
	return verifyFS(cred, groups)
}

// newSocket makes a socket of the user.
func newSocket(cred *syscall.Credential, domain int, use func(fd int) error) (*os.File, error) {
	var file *os.File
	err := actAs(cred, func() error {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := use(fd); err != nil {
			_ = unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), "socket")
		return nil
	})
	return file, err
}

// listenerOf makes a listener of a socket that listens, and takes the file over.
func listenerOf(file *os.File) (net.Listener, error) {
	ln, err := net.FileListener(file)
	_ = file.Close()
	return ln, err
}

// connectionOf makes a connection of a socket that is connected, and takes the file
// over.
func connectionOf(file *os.File) (net.Conn, error) {
	conn, err := net.FileConn(file)
	_ = file.Close()
	return conn, err
}

// isErrno reports whether err is one of the numbers.
func isErrno(err error, numbers ...syscall.Errno) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains(numbers, errno)
}

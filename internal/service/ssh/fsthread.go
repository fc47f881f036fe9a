package ssh

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// fsThread is an operating-system thread that touches the file system with the
// rights of one user: groups, file-system group and file-system user are that
// user's, and it has no capabilities. Everything else stays root's, so that the user
// cannot signal or trace it. What it opens may be read and written by any thread:
// the kernel checks rights at opening. It ends with close and is never given back
// to the runtime.
type fsThread struct {
	calls chan func()
	once  sync.Once
	ended chan struct{}
}

// newFSThread starts a thread with the credential; nil means with our own rights. It
// sees the file system as the process like does, unless that is 0.
func newFSThread(cred *syscall.Credential, like int) (*fsThread, error) {
	t := &fsThread{calls: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	onSpareThread(func() {
		defer close(t.ended)
		mask := umaskOf(like)
		err := becomeLike(like)
		if err == nil {
			err = becomeFS(cred, mask)
		}
		ready <- err
		if err != nil {
			return
		}
		for f := range t.calls {
			f()
		}
	})
	if err := <-ready; err != nil {
		<-t.ended
		return nil, fmt.Errorf("take the file rights of the user: %w", err)
	}
	return t, nil
}

// do runs f on the thread. A panic in f is returned as an error.
func (t *fsThread) do(f func() error) error {
	result := make(chan error, 1)
	call := func() {
		defer func() {
			if r := recover(); r != nil {
				result <- fmt.Errorf("panic in a file operation: %v\n%s", r, debug.Stack())
			}
		}()
		result <- f()
	}
	select {
	case t.calls <- call:
		return <-result
	case <-t.ended:
		return errors.New("the session is over")
	}
}

// close ends the thread, once its last call has returned.
func (t *fsThread) close() {
	t.once.Do(func() { close(t.calls) })
	<-t.ended
}

// fsUmask is what new files of the user are not open to.
const fsUmask = 0o022

// becomeFS gives the calling thread, and no other, the file rights of the user, in
// the order groups, group, user, and verifies each.
func becomeFS(cred *syscall.Credential, umask int) error {
	// The umask is the process' unless the thread has its own. Some sandboxes do not
	// allow that: new files are then as open as ours.
	if err := unix.Unshare(unix.CLONE_FS); err == nil {
		unix.Umask(umask)
	}
	if cred == nil {
		return nil
	}
	groups := make([]int, 0, len(cred.Groups))
	for _, g := range cred.Groups {
		groups = append(groups, int(g))
	}
	// These calls of x/sys act on the calling thread alone, unlike those of syscall.
	if err := unix.Setgroups(groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := unix.Setfsgid(int(cred.Gid)); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if err := unix.Setfsuid(int(cred.Uid)); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	if cred.Uid != 0 {
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	return verifyFS(cred, groups)
}

// becomeLike has the calling thread see the same mounts as the process, which modules of
// PAM may have given its own, and be the same login for the audit of the kernel.
func becomeLike(pid int) error {
	if pid == 0 {
		return nil
	}
	path := "/proc/" + strconv.Itoa(pid)
	// Whether a login is noted at all depends on the kernel.
	if login, err := os.ReadFile(path + "/loginuid"); err == nil {
		_ = os.WriteFile("/proc/thread-self/loginuid", login, 0) //nolint:gosec // a file of the kernel
	}
	theirs, err := os.Readlink(path + "/ns/mnt")
	if err != nil {
		return fmt.Errorf("look at the mounts of the PAM session: %w", err)
	}
	if ours, err := os.Readlink("/proc/thread-self/ns/mnt"); err == nil && ours == theirs {
		return nil
	}
	ns, err := os.Open(path + "/ns/mnt")
	if err != nil {
		return fmt.Errorf("look at the mounts of the PAM session: %w", err)
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("see the mounts of the PAM session: %w", err)
	}
	return nil
}

// umaskOf is the umask of the process, as modules of PAM may have set it.
func umaskOf(pid int) int {
	if pid == 0 {
		return fsUmask
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return fsUmask
	}
	for line := range strings.Lines(string(text)) {
		if mask, found := strings.CutPrefix(line, "Umask:"); found {
			if n, err := strconv.ParseUint(strings.TrimSpace(mask), 8, 9); err == nil {
				return int(n)
			}
		}
	}
	return fsUmask
}

func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// verifyFS reads back what the thread has become.
func verifyFS(cred *syscall.Credential, groups []int) error {
	// An id that does not exist changes nothing and returns the one in force.
	const ask = -1
	if uid, err := unix.SetfsuidRetUid(ask); err != nil || uid != int(cred.Uid) {
		return fault.Denied("file-system user is %d, wanted %d", uid, cred.Uid)
	}
	if gid, err := unix.SetfsgidRetGid(ask); err != nil || gid != int(cred.Gid) {
		return fault.Denied("file-system group is %d, wanted %d", gid, cred.Gid)
	}
	got, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("getgroups: %w", err)
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(groups))
	if !slices.Equal(got, want) {
		return fault.Denied("groups are %v, wanted %v", got, want)
	}
	if cred.Uid == 0 {
		return nil
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if caps != [2]unix.CapUserData{} {
		return fault.Denied("capabilities are left")
	}
	return nil
}

package ssh

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
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

// newFSThread starts a thread with the credential; nil means with our own rights.
func newFSThread(cred *syscall.Credential) (*fsThread, error) {
	t := &fsThread{calls: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	onSpareThread(func() {
		defer close(t.ended)
		err := becomeFS(cred)
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
func becomeFS(cred *syscall.Credential) error {
	// The umask is the process' unless the thread has its own. Some sandboxes do not
	// allow that: new files are then as open as ours.
	if err := unix.Unshare(unix.CLONE_FS); err == nil {
		unix.Umask(fsUmask)
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

package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/state"
	"teleport/internal/types"
)

// maxLocks bounds what is read of the kernel's list of locks.
const maxLocks = 1 << 20

// dataDirectory looks at the directory without touching it: the process that uses it
// may run.
func (x *examination) dataDirectory() finding {
	dir := x.Config.DataDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return good("%s is not there yet: the first start makes it", dir)
	case err != nil:
		return broken("run as the user that Teleport runs as (sudo teleport doctor ...), or set teleport.data_dir", "%s: %s", dir, cause(err))
	case !info.IsDir():
		return broken("remove it, or set teleport.data_dir to another path", "%s is not a directory", dir)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return broken(fmt.Sprintf("run as that user, or `chown -R %d %s`", os.Geteuid(), dir), "%s belongs to user id %d, this is user id %d", dir, owner.Uid, os.Geteuid())
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return broken("`chmod 700 "+dir+"`", "%s can be written by other users (mode %04o)", dir, perm)
	}
	if err := unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return broken("`chmod 700 "+dir+"`, or mount that file system for writing", "%s cannot be used: %s", dir, err)
	}
	if pid := holder(filepath.Join(dir, "lock")); pid > 0 {
		return good("%s is in use by process %d", dir, pid)
	}
	return good("%s is not in use", dir)
}

// cause drops the path that an error of the file system repeats.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// holder returns the process that holds the lock on the file, or 0. It asks the kernel
// instead of trying to lock: that could stop a process that starts just now.
func holder(name string) int {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	suffix := ":" + strconv.FormatUint(st.Ino, 10)
	device := fmt.Sprintf("%02x:%02x", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))) //nolint:unconvert // another type on some systems
	for lines := bufio.NewScanner(io.LimitReader(f, maxLocks)); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF
		words := strings.Fields(lines.Text())
		if len(words) < 6 || words[1] != "FLOCK" || words[5] != device+suffix {
			continue
		}
		if pid, err := strconv.Atoi(words[4]); err == nil {
			return pid
		}
	}
	return 0
}

// identity compares what the directory has with what the configuration needs.
func (x *examination) identity() finding {
	x.join = true
	st, err := state.Peek(x.Config.DataDir)
	switch {
	case errors.Is(err, fault.ErrNotFound) && x.Config.Auth.Enabled:
		return good("there is none yet: the first start makes it")
	case errors.Is(err, fault.ErrNotFound):
		return good("there is none yet: this machine has to join")
	}
	const afresh = "delete the data directory and join afresh with a token"
	if err != nil {
		return broken(afresh, "%s", err)
	}
	holder, err := state.NewHolder(st)
	if err != nil {
		return broken(afresh, "the identity cannot be used: %s", err)
	}
	x.holder = holder
	who := fmt.Sprintf("host %s of cluster %q with %s", st.HostID, st.Cluster, roleList(st.Roles))
	expires := holder.Expires().UTC().Format("2006-01-02 15:04:05 UTC")
	missing := slices.DeleteFunc(x.roles(), func(r types.SystemRole) bool { return slices.Contains(st.Roles, r) })
	switch {
	case x.Config.Auth.Enabled:
		return good("%s until %s; each start makes it anew", who, expires)
	case !x.Now().Before(holder.Expires()):
		return good("%s, which expired at %s: it has to join again", who, expires)
	case len(missing) > 0:
		return good("%s until %s; the configuration also has %s, for which it has to join again", who, expires, roleList(missing))
	}
	x.join = false
	left := holder.Expires().Sub(x.Now()).Round(time.Minute)
	return good("%s until %s (%s)", who, expires, left)
}

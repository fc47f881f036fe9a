package ssh

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"teleport/internal/fault"
)

// credential returns whom a process of the account has to be started as, or nil if
// that is who we are. Only root can become somebody else.
func credential(a *account, euid int) (*syscall.Credential, error) {
	if euid == 0 {
		return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}, nil
	}
	if int(a.uid) == euid {
		return nil, nil
	}
	return nil, fault.Denied("this host can only log in its own user (uid %d), not %q: run teleport as root for others", euid, a.name)
}

// verifyCredential checks that the process runs with exactly these ids: real,
// effective, saved and file system, no group less and, unless more is set, none more.
func verifyCredential(pid int, want *syscall.Credential, more bool) error {
	if want == nil {
		return nil
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return fmt.Errorf("verify the ids of process %d: %w", pid, err)
	}
	return checkStatus(string(text), want, more)
}

// checkStatus holds the lines of /proc/PID/status against what is wanted.
func checkStatus(status string, want *syscall.Credential, more bool) error {
	groups := slices.Clone(want.Groups)
	slices.Sort(groups)
	expected := map[string][]uint32{
		"Uid:":    {want.Uid, want.Uid, want.Uid, want.Uid},
		"Gid:":    {want.Gid, want.Gid, want.Gid, want.Gid},
		"Groups:": groups,
	}
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		ids, ok := expected[f[0]]
		if !ok {
			continue
		}
		got := make([]uint32, 0, len(f)-1)
		for _, text := range f[1:] {
			id, err := parseID(text)
			if err != nil {
				return err
			}
			got = append(got, id)
		}
		if f[0] == "Groups:" {
			slices.Sort(got)
			if more {
				got = slices.DeleteFunc(got, func(g uint32) bool { return !slices.Contains(ids, g) })
			}
		}
		if !slices.Equal(got, ids) {
			return fault.Denied("process has %s %v, wanted %v", strings.TrimSuffix(f[0], ":"), got, ids)
		}
		delete(expected, f[0])
	}
	if len(expected) > 0 {
		return fault.Denied("ids of the process could not be verified")
	}
	return nil
}

package ssh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// account is a local user as the system knows it.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary, without duplicates
	home   string
	shell  string
}

// hostFiles are the files that say who may log in. Tests have their own.
type hostFiles struct {
	passwd, group, shadow string
	nologin               []string
	getent, id            string
}

func systemFiles() hostFiles {
	return hostFiles{
		passwd: "/etc/passwd", group: "/etc/group", shadow: "/etc/shadow",
		nologin: []string{"/etc/nologin", "/run/nologin", "/var/run/nologin"},
		getent:  "getent", id: "id",
	}
}

const (
	lookupTimeout = 10 * time.Second
	maxLookup     = 1 << 20
	defaultShell  = "/bin/sh"
)

// find returns the local user; one who is not in the file is asked for with
// getent, which knows directories such as LDAP.
func (h hostFiles) find(ctx context.Context, name string) (*account, error) {
	if err := types.ValidLogin(name); err != nil {
		return nil, err
	}
	line, err := findLine(h.passwd, name)
	if err != nil {
		return nil, err
	}
	local := line != ""
	if !local {
		if line, err = run(ctx, h.getent, "--", "passwd", name); err != nil {
			return nil, err
		}
	}
	if line == "" {
		return nil, fault.NotFound("there is no user %q on this host", name)
	}
	a, err := parsePasswd(strings.TrimSuffix(line, "\n"))
	if err != nil {
		return nil, err
	}
	if a.name != name {
		// A directory may compare without case: the certificate does not.
		return nil, fault.NotFound("there is no user %q on this host, only %q", name, a.name)
	}
	if a.groups, err = h.groupsOf(ctx, a, local); err != nil {
		return nil, err
	}
	return a, nil
}

// groupsOf returns the primary and supplementary groups.
func (h hostFiles) groupsOf(ctx context.Context, a *account, local bool) ([]uint32, error) {
	groups := []uint32{a.gid}
	if !local {
		text, err := run(ctx, h.id, "-G", "--", a.name)
		if err != nil {
			return nil, err
		}
		for f := range strings.FieldsSeq(text) {
			g, err := parseID(f)
			if err != nil {
				return nil, fmt.Errorf("groups of user %q: %w", a.name, err)
			}
			groups = append(groups, g)
		}
	}
	err := eachLine(h.group, func(line string) error {
		if g, member := parseGroup(line, a.name); member {
			groups = append(groups, g)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

// parsePasswd reads a line of passwd(5).
func parsePasswd(line string) (*account, error) {
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" {
		return nil, fault.Invalid("malformed passwd entry of %d fields", len(f))
	}
	uid, err := parseID(f[2])
	if err != nil {
		return nil, fmt.Errorf("user id of %q: %w", f[0], err)
	}
	gid, err := parseID(f[3])
	if err != nil {
		return nil, fmt.Errorf("group id of %q: %w", f[0], err)
	}
	a := &account{name: f[0], uid: uid, gid: gid, home: f[5], shell: f[6]}
	if a.shell == "" {
		a.shell = defaultShell
	}
	if a.home == "" {
		a.home = "/"
	}
	if !strings.HasPrefix(a.shell, "/") || !strings.HasPrefix(a.home, "/") {
		return nil, fault.Invalid("home %q and shell %q of user %q must be absolute paths", a.home, a.shell, a.name)
	}
	return a, nil
}

// parseGroup reads a line of group(5): its id, and whether the user is a member.
func parseGroup(line, user string) (uint32, bool) {
	f := strings.Split(line, ":")
	if len(f) != 4 {
		return 0, false
	}
	gid, err := parseID(f[2])
	if err != nil {
		return 0, false
	}
	for member := range strings.SplitSeq(f[3], ",") {
		if strings.TrimSpace(member) == user {
			return gid, true
		}
	}
	return 0, false
}

// noID is what the kernel takes for "no change".
const noID = 1<<32 - 1

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == noID {
		return 0, fault.Invalid("%q is no user or group id", s)
	}
	return uint32(n), nil
}

// closed says why the account may not be used now, in words for its user: the
// host lets nobody but root in, or the account has expired.
func (h hostFiles) closed(a *account, now time.Time) error {
	if a.uid == 0 {
		return nil
	}
	for _, path := range h.nologin {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		note := strings.TrimSpace(string(text))
		if note == "" {
			note = "only root may log in at the moment (" + path + ")"
		}
		return fault.Denied("%s", note)
	}
	// Only root can read the file, and only root logs others in.
	line, _ := findLine(h.shadow, a.name)
	if f := strings.Split(line, ":"); len(f) >= 8 && f[7] != "" {
		days, err := strconv.ParseInt(f[7], 10, 32)
		if err != nil || now.Unix() >= days*24*3600 {
			return fault.Denied("the account of user %q on this host has expired", a.name)
		}
	}
	return nil
}

// eachLine calls f for each line of a file; errDone ends it early.
func eachLine(path string, f func(line string) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLookup)
	for lines.Scan() {
		if err := f(lines.Text()); err != nil {
			if errors.Is(err, errDone) {
				return nil
			}
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

var errDone = errors.New("done")

// findLine returns the line whose first field is name, or "". A file that does not
// exist has no lines.
func findLine(path, name string) (string, error) {
	found := ""
	err := eachLine(path, func(line string) error {
		if strings.HasPrefix(line, name+":") {
			found = line
			return errDone
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return found, err
}

// run returns the first lines that a program prints; an exit status, which is how
// it says that there is nothing, or no such program, gives "".
func run(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = time.Second
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", nil
		}
		return "", fmt.Errorf("start %s: %w", program, err)
	}
	text, errRead := io.ReadAll(io.LimitReader(pipe, maxLookup))
	err = cmd.Wait()
	if ctx.Err() != nil {
		return "", fault.Unreachable("%s did not answer within %s", program, lookupTimeout)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("run %s: %w", program, err)
	case errRead != nil:
		return "", fmt.Errorf("read the output of %s: %w", program, errRead)
	}
	return string(text), nil
}

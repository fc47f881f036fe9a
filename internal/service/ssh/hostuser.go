package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	// keepGroup and dropGroup mark the local users that are ours: others are left as
	// they are.
	keepGroup = "teleport-keep"
	dropGroup = "teleport-system"
	// Traits that say which ids a new user gets.
	uidTrait = "host_user_uid"
	gidTrait = "host_user_gid"
	// leastID keeps traits from naming root or a user of the system.
	leastID = 1000
	greatID = 1<<31 - 1
	// toolTimeout bounds one change to the users of the host.
	toolTimeout = 30 * time.Second
	// sweepUsers is the pause between two attempts to delete users that are no longer
	// needed, but still have processes.
	sweepUsers = 30 * time.Second
)

// hostUserName is what useradd takes everywhere, and sudoers needs no escapes for.
var hostUserName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// hostUsers makes local users for logins that there are none for, and deletes those
// that are to be dropped after their last connection.
type hostUsers struct {
	hosts   hostFiles
	sudoers string
	log     *slog.Logger

	// locks is where the processes of this host say which users they hold: during an
	// upgrade there are two.
	locks string

	mu sync.Mutex
	// held counts the connections of each user that is ours, claims has the open file
	// that says so to others.
	held   map[string]int
	claims map[string]*os.File
}

func newHostUsers(hosts hostFiles, log *slog.Logger) *hostUsers {
	return &hostUsers{hosts: hosts, sudoers: "/etc/sudoers.d", log: log, locks: "/run/teleport-users", held: map[string]int{}, claims: map[string]*os.File{}}
}

// hold makes sure that the user exists as the roles want it, and returns what gives it
// up again, or nil if the user is not ours. ids are the traits of whoever logs in.
func (h *hostUsers) hold(ctx context.Context, name string, want access.HostUser, traits map[string][]string) (func(context.Context), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	line, err := findLine(h.hosts.passwd, name)
	if err != nil {
		return nil, err
	}
	switch {
	case want.Mode == types.HostUserOff && line != "" && h.temporary(name):
		return nil, fault.Denied("the user %q of this host is there for somebody else, for a while: your roles do not make it for you", name)
	case want.Mode == types.HostUserOff:
		return nil, nil
	case line == "":
		if _, err := h.hosts.find(ctx, name); err == nil {
			return nil, nil // a directory knows the user
		}
	case !h.temporary(name) && !h.member(keepGroup, name):
		return nil, nil
	}
	if err := h.claim(name); err != nil {
		return nil, err
	}
	// Whoever had the claim before may just have deleted the user.
	if line, err = findLine(h.hosts.passwd, name); err == nil && line == "" {
		err = h.create(ctx, name, want, traits)
	} else if err == nil {
		err = h.update(ctx, name, want)
	}
	if err == nil {
		err = h.writeSudoers(ctx, name, want.Sudoers)
	}
	if err != nil {
		h.disclaim(name)
		return nil, err
	}
	h.held[name]++
	return func(ctx context.Context) { h.release(ctx, name) }, nil
}

// temporary reports whether the user goes with its last connection.
func (h *hostUsers) temporary(name string) bool {
	return h.member(dropGroup, name) && !h.member(keepGroup, name)
}

func (h *hostUsers) member(group, name string) bool {
	line, _ := findLine(h.hosts.group, group)
	_, member := parseGroup(line, name)
	return member
}

// groupsFor are the groups of the user, the one that marks it included. Those that do
// not exist are made.
func (h *hostUsers) groupsFor(ctx context.Context, want access.HostUser) (string, error) {
	mark := keepGroup
	if want.Mode == types.HostUserInsecureDrop {
		mark = dropGroup
	}
	groups := append([]string{mark}, want.Groups...)
	for _, g := range groups {
		if line, err := findLine(h.hosts.group, g); err != nil || line != "" {
			continue
		}
		if err := tool(ctx, "groupadd", "-f", g); err != nil {
			return "", err
		}
	}
	return strings.Join(groups, ","), nil
}

func (h *hostUsers) create(ctx context.Context, name string, want access.HostUser, traits map[string][]string) error {
	if !hostUserName.MatchString(name) {
		return fault.Denied("no user %q can be made on this host: use lower-case letters, digits, - and _, at most 32", name)
	}
	groups, err := h.groupsFor(ctx, want)
	if err != nil {
		return err
	}
	args := []string{"-G", groups}
	if uid, err := traitID(traits, uidTrait); err != nil {
		return err
	} else if uid != "" {
		args = append(args, "-u", uid)
	}
	gid, err := traitID(traits, gidTrait)
	if err != nil {
		return err
	}
	if gid != "" {
		if nameOf(h.hosts.group, gid) == gid {
			if err := tool(ctx, "groupadd", "-g", gid, name); err != nil {
				return err
			}
		}
		args = append(args, "-g", gid)
	}
	if want.Shell != "" && exists(want.Shell) {
		args = append(args, "-s", want.Shell)
	}
	if want.Mode == types.HostUserKeep {
		args = append(args, "-m")
	} else {
		args = append(args, "-M", "-d", "/")
	}
	if err := tool(ctx, "useradd", append(args, "--", name)...); err != nil {
		return err
	}
	h.log.InfoContext(ctx, "local user made", "login", name, "mode", want.Mode, "groups", groups)
	return nil
}

// update gives a user that is ours the groups that the roles say now.
func (h *hostUsers) update(ctx context.Context, name string, want access.HostUser) error {
	if h.held[name] > 0 && h.member(keepGroup, name) {
		want.Mode = types.HostUserKeep // somebody else is to keep it
	}
	groups, err := h.groupsFor(ctx, want)
	if err != nil {
		return err
	}
	return tool(ctx, "usermod", "-G", groups, "--", name)
}

// traitID reads the id that a trait names, or "".
func traitID(traits map[string][]string, name string) (string, error) {
	values := traits[name]
	if len(values) == 0 {
		return "", nil
	}
	id, err := strconv.ParseUint(values[0], 10, 32)
	if err != nil || len(values) > 1 || id < leastID || id > greatID {
		return "", fault.Denied("the trait %s is %q: it must be one number from %d to %d", name, values, leastID, greatID)
	}
	return strconv.FormatUint(id, 10), nil
}

// release gives the user up. After the last connection its rights by sudo end, and the
// user does if it is to be dropped.
func (h *hostUsers) release(ctx context.Context, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[name]--; h.held[name] > 0 {
		return
	}
	delete(h.held, name)
	if h.alone(name) {
		h.drop(context.WithoutCancel(ctx), name)
	}
	h.disclaim(name)
}

// claim says to other processes of this host that the user is in use here.
func (h *hostUsers) claim(name string) error {
	if h.claims[name] != nil {
		return nil
	}
	if err := os.MkdirAll(h.locks, 0o700); err != nil {
		return fmt.Errorf("claim the local user %q: %w", name, err)
	}
	f, err := os.OpenFile(filepath.Join(h.locks, filepath.Base(h.sudoersFile(name))), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("claim the local user %q: %w", name, err)
	}
	// It is taken from everybody for no longer than it takes to delete a user.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		_ = f.Close()
		return fmt.Errorf("claim the local user %q: %w", name, err)
	}
	h.claims[name] = f
	return nil
}

// alone reports whether no other process has claimed the user, and keeps others from it
// until disclaim.
func (h *hostUsers) alone(name string) bool {
	return h.claim(name) == nil && unix.Flock(int(h.claims[name].Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// disclaim gives the claim up, unless there are connections here.
func (h *hostUsers) disclaim(name string) {
	if f := h.claims[name]; f != nil && h.held[name] == 0 {
		_ = f.Close()
		delete(h.claims, name)
	}
}

// drop takes away what a user without connections does not keep.
func (h *hostUsers) drop(ctx context.Context, name string) {
	if err := os.Remove(h.sudoersFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		h.log.ErrorContext(ctx, "sudoers file could not be removed", "login", name, "error", err)
	}
	if !h.temporary(name) {
		return
	}
	if err := tool(ctx, "userdel", "--", name); err != nil {
		// Processes that outlived the session: it is tried again.
		h.log.InfoContext(ctx, "local user could not be deleted yet", "login", name, "error", err)
		return
	}
	h.log.InfoContext(ctx, "local user deleted", "login", name)
}

// sweep takes away what users without a connection do not keep: those of an earlier run
// of this process, and those that still had processes.
func (h *hostUsers) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepUsers)
	defer tick.Stop()
	for {
		h.sweepOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *hostUsers) sweepOnce(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, group := range []string{dropGroup, keepGroup} {
		line, _ := findLine(h.hosts.group, group)
		f := strings.Split(line, ":")
		if len(f) != 4 {
			continue
		}
		for name := range strings.SplitSeq(f[3], ",") {
			if name == "" || h.held[name] > 0 || group == keepGroup && !exists(h.sudoersFile(name)) {
				continue
			}
			if h.alone(name) {
				h.drop(ctx, name)
			}
			h.disclaim(name)
		}
	}
}

// sudoersFile is the file of a user. sudo passes over names with dots.
func (h *hostUsers) sudoersFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(h.sudoers, "teleport-"+hex.EncodeToString(sum[:8]))
}

// writeSudoers gives the user the lines by sudo, and no others, once visudo has found
// them in order. A file that sudo cannot read would lock everybody out of it.
func (h *hostUsers) writeSudoers(ctx context.Context, name string, lines []string) error {
	path := h.sudoersFile(name)
	if len(lines) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the sudoers file of %q: %w", name, err)
		}
		return nil
	}
	if !hostUserName.MatchString(name) {
		return fault.Denied("user %q cannot be written into a sudoers file", name)
	}
	var text strings.Builder
	for _, line := range lines {
		if err := types.ValidSudoersLine(line); err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s %s\n", name, line)
	}
	// sudo does not look at a name with a dot.
	tmp := path + ".new"
	defer func() { _ = os.Remove(tmp) }()
	//nolint:gosec // the mode that sudo wants
	if err := os.WriteFile(tmp, []byte(text.String()), 0o440); err != nil {
		return fmt.Errorf("write the sudoers file of %q: %w", name, err)
	}
	if err := tool(ctx, "visudo", "-c", "-q", "-f", tmp); err != nil {
		return fault.Denied("host_sudoers of your roles are not what sudo understands: ask an administrator (%v)", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write the sudoers file of %q: %w", name, err)
	}
	return nil
}

// tool runs a program that changes the users of the host.
func tool(ctx context.Context, name string, args ...string) error {
	path := ""
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"} {
		if p := filepath.Join(dir, name); exists(p) {
			path = p
			break
		}
	}
	if path == "" {
		return fault.Unsupported("this host has no program %s, which making local users needs: ask an administrator to install it", name)
	}
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		lines := slices.Collect(strings.Lines(clean(string(out[:min(len(out), 1000)]))))
		return fault.Unsupported("%s failed: %s", name, strings.TrimSpace(strings.Join(lines, " ")))
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	return nil
}

// ensureUser makes sure that the connection's local user exists, if the roles have it
// made.
func (c *connection) ensureUser(ctx context.Context) error {
	if c.s.cfg.NoHostUsers || os.Geteuid() != 0 {
		return nil
	}
	c.userMu.Lock()
	defer c.userMu.Unlock()
	if c.giveUp != nil {
		return nil
	}
	want := access.HostUserOf(c.s.subject(c.ID), c.s.labelMap())
	giveUp, err := c.s.users.hold(ctx, c.Login(), want, c.ID.User.Traits)
	c.giveUp = giveUp
	return err
}

// leaveUser gives the local user up.
func (c *connection) leaveUser(ctx context.Context) {
	c.userMu.Lock()
	defer c.userMu.Unlock()
	if c.giveUp != nil {
		c.giveUp(ctx)
	}
}

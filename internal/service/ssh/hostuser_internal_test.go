package ssh

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"teleport/internal/access"
	"teleport/internal/types"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// groupsOf returns what id says of the user's groups.
func idOf(t *testing.T, flag, name string) string {
	t.Helper()
	out, err := exec.Command("id", flag, name).CombinedOutput()
	if err != nil {
		t.Fatalf("id %s %s: %v: %s", flag, name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestHostUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root makes users
	}
	if os.Getenv("TELEPORT_TEST_OWN_ETC") == "" {
		t.Fatal("these are the users of this machine: TestMain has to give the tests an /etc of their own")
	}
	ctx := context.Background()
	locks := t.TempDir()
	process := func() *hostUsers {
		h := newHostUsers(systemFiles(), slog.New(slog.DiscardHandler))
		h.locks = locks
		return h
	}
	h := process()
	keep := access.HostUser{Mode: types.HostUserKeep, Groups: []string{"games", "tlp-new"}, Shell: "/bin/sh", Sudoers: []string{"ALL=(root) NOPASSWD: /bin/true"}}
	hold := func(t *testing.T, name string, want access.HostUser, traits map[string][]string) func(context.Context) {
		t.Helper()
		giveUp, err := h.hold(ctx, name, want, traits)
		if err != nil {
			t.Fatal(err)
		}
		return giveUp
	}
	t.Run("keep", func(t *testing.T) {
		giveUp := hold(t, "tlp-made", keep, map[string][]string{"host_user_uid": {"23456"}, "host_user_gid": {"23457"}})
		if got := idOf(t, "-u", "tlp-made") + ":" + idOf(t, "-g", "tlp-made"); got != "23456:23457" {
			t.Errorf("ids = %s, want 23456:23457", got)
		}
		for _, g := range []string{"games", "tlp-new", keepGroup} {
			if !h.member(g, "tlp-made") {
				t.Errorf("the user is not in %s: %s", g, idOf(t, "-Gn", "tlp-made"))
			}
		}
		if a := must(h.hosts.find(ctx, "tlp-made")); a.shell != "/bin/sh" || a.home != "/home/tlp-made" || !exists(a.home) {
			t.Errorf("account = %+v", a)
		}
		info := must(os.Stat(h.sudoersFile("tlp-made")))
		if text := string(must(os.ReadFile(h.sudoersFile("tlp-made")))); info.Mode().Perm() != 0o440 || text != "tlp-made ALL=(root) NOPASSWD: /bin/true\n" {
			t.Errorf("sudoers file %v: %q", info.Mode(), text)
		}
		again := hold(t, "tlp-made", keep, nil)
		giveUp(ctx)
		if !exists(h.sudoersFile("tlp-made")) {
			t.Error("sudo is taken away while there is a connection")
		}
		again(ctx)
		if exists(h.sudoersFile("tlp-made")) || idOf(t, "-u", "tlp-made") != "23456" {
			t.Error("after the last connection sudo has to be gone and the user has to be there")
		}
		// The groups follow the roles.
		less := access.HostUser{Mode: types.HostUserKeep, Groups: []string{"tlp-new"}}
		hold(t, "tlp-made", less, nil)(ctx)
		if h.member("games", "tlp-made") || !h.member("tlp-new", "tlp-made") {
			t.Errorf("groups = %s, want games gone", idOf(t, "-Gn", "tlp-made"))
		}
	})
	t.Run("drop", func(t *testing.T) {
		drop := access.HostUser{Mode: types.HostUserInsecureDrop}
		one, two := hold(t, "tlp-gone", drop, nil), hold(t, "tlp-gone", drop, nil)
		if a := must(h.hosts.find(ctx, "tlp-gone")); a.home != "/" || exists("/home/tlp-gone") {
			t.Errorf("account = %+v, want no home", a)
		}
		if _, err := h.hold(ctx, "tlp-gone", access.HostUser{Mode: types.HostUserOff}, nil); err == nil {
			t.Error("a user that is there for others is given to somebody else")
		}
		one(ctx)
		if line := must(findLine("/etc/passwd", "tlp-gone")); line == "" {
			t.Fatal("the user is deleted while there is a connection")
		}
		two(ctx)
		if line := must(findLine("/etc/passwd", "tlp-gone")); line != "" {
			t.Errorf("the user is there after the last connection: %s", line)
		}
	})
	t.Run("swept", func(t *testing.T) {
		hold(t, "tlp-swept", access.HostUser{Mode: types.HostUserInsecureDrop}, nil)
		hold(t, "tlp-kept", keep, nil)
		other := process()
		other.sweepOnce(ctx)
		if line := must(findLine("/etc/passwd", "tlp-swept")); line == "" || !exists(h.sudoersFile("tlp-kept")) {
			t.Error("another process takes away what is in use")
		}
		// Processes that are killed say nothing.
		for name, claim := range h.claims {
			_ = claim.Close()
			delete(h.claims, name)
		}
		h = process()
		other.sweepOnce(ctx)
		if line := must(findLine("/etc/passwd", "tlp-swept")); line != "" {
			t.Errorf("what an earlier run left is there: %s", line)
		}
		if line := must(findLine("/etc/passwd", "tlp-kept")); line == "" || exists(h.sudoersFile("tlp-kept")) {
			t.Error("what an earlier run left: the user has to be there, and sudo has to be gone")
		}
	})
	t.Run("two_processes", func(t *testing.T) {
		// As during an upgrade: the old one keeps its connections.
		one, other := hold(t, "tlp-both", keep, nil), process()
		two, err := other.hold(ctx, "tlp-both", keep, nil)
		if err != nil {
			t.Fatal(err)
		}
		two(ctx)
		if !exists(h.sudoersFile("tlp-both")) {
			t.Error("sudo is taken away while another process has a connection")
		}
		one(ctx)
		if exists(h.sudoersFile("tlp-both")) {
			t.Error("sudo is there after the last connection of both")
		}
	})
	t.Run("others", func(t *testing.T) {
		before := string(must(os.ReadFile("/etc/group")))
		if giveUp := hold(t, "daemon", keep, nil); giveUp != nil {
			t.Error("a user of the system became ours")
		}
		if giveUp := hold(t, "tlp-none", access.HostUser{Mode: types.HostUserOff}, nil); giveUp != nil || must(findLine("/etc/passwd", "tlp-none")) != "" {
			t.Error("a user was made although the roles do not say so")
		}
		if after := string(must(os.ReadFile("/etc/group"))); after != before {
			t.Error("groups were changed")
		}
	})
	t.Run("refused", func(t *testing.T) {
		for name, try := range map[string]struct {
			user   string
			want   access.HostUser
			traits map[string][]string
		}{
			"root_id": {"tlp-bad", keep, map[string][]string{"host_user_uid": {"0"}}}, "system_group": {"tlp-bad", keep, map[string][]string{"host_user_gid": {"27"}}},
			"two_ids": {"tlp-bad", keep, map[string][]string{"host_user_uid": {"2000", "2001"}}}, "no_id": {"tlp-bad", keep, map[string][]string{"host_user_uid": {"-o"}}},
			"option": {"tlp.bad", keep, nil}, "capital": {"TlpBad", keep, nil},
		} {
			if _, err := h.hold(ctx, try.user, try.want, try.traits); err == nil {
				t.Errorf("%s: made", name)
			}
			if line := must(findLine("/etc/passwd", try.user)); line != "" {
				t.Errorf("%s: there is %s", name, line)
			}
		}
		broken := access.HostUser{Mode: types.HostUserKeep, Sudoers: []string{"ALL=(ALL : nonsense"}}
		if _, err := h.hold(ctx, "tlp-sudo", broken, nil); err == nil {
			t.Error("a sudoers file that sudo cannot read was written")
		}
		left := must(filepath.Glob(filepath.Join(h.sudoers, "teleport-*")))
		if len(left) > 0 {
			t.Errorf("left in sudoers.d: %v", left)
		}
		if _, err := os.Stat(h.sudoersFile("tlp-sudo")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("sudoers file: %v", err)
		}
	})
}

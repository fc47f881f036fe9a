package pam_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/pam"
	"teleport/internal/pam/pamtest"
)

var root = os.Geteuid() == 0

// programDir has teleport-pam as long as the tests run.
var programDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "teleport-pam-")
	if err != nil {
		panic(err)
	}
	programDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func open(t testing.TB) *pam.Helper {
	t.Helper()
	h, err := pam.Open(t.Context(), pamtest.Program(t, programDir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// request is for root, whom every machine has.
func request(service string) pam.Request {
	return pam.Request{
		Service: service, User: "root", TTY: "ssh", RemoteHost: "192.0.2.1", RemoteUser: "alice",
		Credential: &syscall.Credential{Groups: []uint32{0}},
		Dir:        "/", Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"},
	}
}

func permit(t testing.TB, more ...string) string {
	return pamtest.Service(t, append(more, "auth required pam_permit.so", "account required pam_permit.so", "session required pam_permit.so")...)
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	_, err := pam.Find(filepath.Join(dir, "teleport"))
	if _, errLib := os.Stat("/usr/lib/teleport/teleport-pam"); errLib != nil && (!errors.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "/usr/lib/teleport")) {
		t.Errorf("Find = %v, want both places named", err)
	}
	if err := os.WriteFile(filepath.Join(dir, pam.Program), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := pam.Find(filepath.Join(dir, "teleport")); err != nil || got != filepath.Join(dir, pam.Program) {
		t.Errorf("Find = %q, %v, want the file beside the program", got, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if !root {
		if _, err := pam.Open(t.Context(), "/bin/true"); !errors.Is(err, fault.ErrDenied) {
			t.Errorf("Open without being root = %v", err)
		}
		return
	}
	good := pamtest.Program(t, programDir)
	for name, tt := range map[string]struct {
		change func(path string) error
		want   string
	}{
		"of_somebody":     {func(p string) error { return os.Chown(p, 1, 1) }, "make it root's"},
		"group_writable":  {func(p string) error { return os.Chmod(p, 0o775) }, "make it root's"},
		"setuid":          {func(p string) error { return os.Chmod(p, 0o755|os.ModeSetuid) }, "must not be setuid"},
		"not_executable":  {func(p string) error { return os.Chmod(p, 0o644) }, "cannot be run"},
		"is_a_directory":  {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) }, "is no program"},
		"is_not_there":    {os.Remove, "no such file"},
		"another_release": {func(p string) error { return copyFile("/bin/echo", p) }, "of another release"},
		"another_program": {func(p string) error { return copyFile("/bin/false", p) }, "cannot be run"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), pam.Program)
			if err := errors.Join(copyFile(good, path), tt.change(path)); err != nil {
				t.Fatal(err)
			}
			if h, err := pam.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, %v, want an error with %q", h, err, tt.want)
			}
		})
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// An upgrade puts another file there while this process goes on with the old one.
func TestOpenedStaysTheSame(t *testing.T) {
	if !root {
		return
	}
	path := filepath.Join(t.TempDir(), pam.Program)
	if err := copyFile(pamtest.Program(t, programDir), path); err != nil {
		t.Fatal(err)
	}
	h, err := pam.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	if err := copyFile("/bin/false", path); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(t.Context(), request(permit(t))); err != nil {
		t.Errorf("Check = %v after another file was installed", err)
	}
}

func TestRun(t *testing.T) {
	if !root {
		return
	}
	h := open(t)
	run, err := h.Start(request(permit(t)), []*os.File{nil, nil, nil})
	if err != nil {
		t.Fatal(err)
	}
	status, err := run.Result()
	if err != nil || status.ExitStatus() != 3 {
		t.Errorf("Result = %v, %v, want exit status 3", status, err)
	}
	run.Close()
	if err := run.Signal(unix.SIGTERM); err == nil {
		t.Error("a session that is over was signalled")
	}
	r := request(permit(t))
	r.Started = func(int) error { return errors.New("not like this") }
	r.Args[2] = "touch " + filepath.Join(t.TempDir(), "ran")
	if run, err = h.Start(r, []*os.File{nil, nil, nil}); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(); err == nil || err.Error() != "not like this" {
		t.Errorf("Result = %v, want the error of Started", err)
	}
	run.Close()
	if _, err := os.Stat(strings.TrimPrefix(r.Args[2], "touch ")); err == nil {
		t.Error("the program ran all the same")
	}
	for _, bad := range []func(*pam.Request){
		func(r *pam.Request) { r.User = "a\x00b" },
		func(r *pam.Request) { r.Args[2] = strings.Repeat("x", 5<<20) },
	} {
		r := request(permit(t))
		bad(&r)
		if _, err := h.Start(r, []*os.File{nil, nil, nil}); err == nil {
			t.Error("a request was sent that cannot be")
		}
	}
}

// Signals that come before the program runs reach it.
func TestEarlySignals(t *testing.T) {
	if !root {
		return
	}
	script := filepath.Join(programDir, "slow")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 0.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := request(permit(t, "session required pam_exec.so "+script))
	r.Args[2] = "sleep 100"
	run, err := open(t).Start(r, []*os.File{nil, nil, nil})
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if status, err := run.Result(); err != nil || !status.Signaled() || status.Signal() != unix.SIGUSR1 {
		t.Errorf("Result = %v, %v, want it ended by USR1", status, err)
	}
	run.Close()
}

func TestHold(t *testing.T) {
	if !root {
		return
	}
	h := open(t)
	run, err := h.Hold(t.Context(), request(permit(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing of ours is open there, or known.
	proc := fmt.Sprintf("/proc/%d/", run.HelperID())
	links, _ := filepath.Glob(proc + "fd/*")
	for _, link := range links {
		to, _ := os.Readlink(link)
		if to != os.DevNull && !strings.HasPrefix(to, "socket:") {
			t.Errorf("%s is %s", link, to)
		}
	}
	if environ, err := os.ReadFile(proc + "environ"); err != nil || len(environ) != 0 {
		t.Errorf("environment = %q, %v, want none", environ, err)
	}
	if line, err := os.ReadFile(proc + "cmdline"); err != nil || string(line) != "teleport-pam\x00" {
		t.Errorf("command line = %q, %v", line, err)
	}
	select {
	case <-run.Ended():
		t.Error("it ended by itself")
	default:
	}
	run.Close()
	if _, err := os.Stat(proc); err == nil {
		t.Error("it lives on")
	}
	var refusal *pam.Refusal
	_, err = h.Hold(t.Context(), request(pamtest.Service(t, "account required pam_deny.so")), nil)
	if !errors.As(err, &refusal) || refusal.Stage != "account" || refusal.Code == 0 || !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Hold = %v", err)
	}
}

func TestRefusalsInWords(t *testing.T) {
	for _, tt := range []struct {
		r    pam.Refusal
		want string
	}{
		{pam.Refusal{Stage: "account", Code: 13}, `the account of user "bob" on this host has expired`},
		{pam.Refusal{Stage: "account", Code: 12}, `the password of user "bob" on this host has expired: ask an administrator`},
		{pam.Refusal{Stage: "account", Code: 6}, `this host does not let user "bob" in at the moment`},
		{pam.Refusal{Stage: "auth", Code: 7}, `this host did not let user "bob" in: authentication failed`},
		{pam.Refusal{Stage: "auth", Code: 11}, "too many attempts: try again later"},
		{pam.Refusal{Stage: "auth", Code: 9}, "this host cannot ask the service that knows its users: try again later"},
		{pam.Refusal{Stage: "auth", Code: 10}, `user "bob" is not known to PAM on this host`},
		{pam.Refusal{Stage: "auth", Code: 19, Asked: true}, "this host asks for more before it lets you in, and there is no terminal to ask on: use one, as in tsh ssh -t"},
		{pam.Refusal{Stage: "credentials", Code: 16}, `the credentials of user "bob" on this host have expired or cannot be used`},
		{pam.Refusal{Stage: "session", Code: 14}, `this host does not open a session for user "bob"`},
		{pam.Refusal{Stage: "session", Code: 28, Detail: "Module is unknown"}, `PAM of this host did not let user "bob" in: Module is unknown, ask an administrator`},
	} {
		tt.r.User = "bob"
		if got := tt.r.Error(); got != tt.want {
			t.Errorf("%+v = %q, want %q", tt.r, got, tt.want)
		}
	}
}

// started runs teleport-pam as only its parent can, with a socket that we speak through.
func started(t testing.TB, extra ...*os.File) (*exec.Cmd, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.Command(pamtest.Program(t, programDir))
	cmd.ExtraFiles = append([]*os.File{theirs}, extra...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(func() { _ = ours.Close() })
	return cmd, ours
}

func frame(text string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(text)))) + text
}

func records(list ...string) string { return strings.Join(list, "\x00") + "\x00" }

// It trusts its parent, and what that says only as far as it makes sense.
func TestBadRequests(t *testing.T) {
	if !root {
		return
	}
	service := permit(t)
	whole := []string{"v1", "ms", "S" + service, "Uroot", "tssh", "r", "R", "u0", "g0", "G0", "d/", "p/bin/true", "Atrue"}
	for name, text := range map[string]string{
		"nothing":         "",
		"half_a_length":   "\x00\x00",
		"no_records":      frame(""),
		"too_long":        "\xff\xff\xff\xff" + "x",
		"cut_off":         frame(records(whole...))[:40],
		"no_zero_at_end":  frame(strings.TrimSuffix(records(whole...), "\x00")),
		"empty_record":    frame(records(append(whole, "", "x")...)),
		"unknown_record":  frame(records(append(whole, "Zx")...)),
		"another_release": frame(records(append([]string{"v0"}, whole...)...)),
		"no_service":      frame(records(append(append([]string{}, whole[:2]...), whole[3:]...)...)),
		"no_groups":       frame(records(append(append([]string{}, whole[:9]...), whole[10:]...)...)),
		"negative_id":     frame(records(append(whole, "u-1")...)),
		"no_id":           frame(records(append(whole, "u4294967295")...)),
		"huge_id":         frame(records(append(whole, "u99999999999999999999")...)),
		"text_as_id":      frame(records(append(whole, "g1x")...)),
		"relative":        frame(records(append(whole, "pbin/true")...)),
		"no_variable":     frame(records(append(whole, "eNAME")...)),
		"no_name":         frame(records(append(whole, "E=value")...)),
		"many_records":    frame(strings.Repeat("A\x00", 70001)),
		"bad_mode":        frame(records(append(whole, "mx")...)),
	} {
		t.Run(name, func(t *testing.T) {
			cmd, ours := started(t)
			_, _ = io.WriteString(ours, text)
			_ = unix.Shutdown(int(ours.Fd()), unix.SHUT_WR)
			answer, _ := io.ReadAll(ours)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 254 || len(answer) != 0 {
				t.Errorf("exit code %d (%v), answer %q, want 254 and none", code, cmd.ProcessState, answer)
			}
		})
	}
	// Nothing of it makes it fall over.
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := []byte(frame(records(whole...)))
		for range 1 + random.IntN(8) {
			b[4+random.IntN(len(b)-4)] = byte(random.UintN(256))
		}
		cmd, ours := started(t)
		_, _ = ours.Write(b)
		_ = ours.Close()
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() < 0 {
			t.Fatalf("%v after %q", cmd.ProcessState, b)
		}
	}
}

func TestStrayDescriptorsAreClosed(t *testing.T) {
	if !root {
		return
	}
	stray, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	cmd, ours := started(t, stray, stray, stray)
	_, _ = io.WriteString(ours, frame(records("v1", "mh", "S"+permit(t), "Uroot", "tssh", "r", "R", "u0", "g0", "G0")))
	answer := make([]byte, 5)
	if _, err := io.ReadFull(ours, answer); err != nil || answer[4] != 'O' {
		t.Fatalf("answer %q, %v", answer, err)
	}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
	for _, link := range links {
		if to, _ := os.Readlink(link); to == "/etc/passwd" {
			t.Errorf("%s is open", link)
		}
	}
	_ = ours.Close()
	_ = cmd.Wait()
}

// It does nothing for anybody but a parent that is root.
func TestNotByHand(t *testing.T) {
	if !root {
		return
	}
	path := pamtest.Program(t, programDir)
	//nolint:usetesting // the directories above t.TempDir are closed to others
	public, err := os.MkdirTemp("/var/tmp", "teleport-pam-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(public) }()
	theirs := filepath.Join(public, "setuid")
	if err := errors.Join(os.Chmod(public, 0o755), copyFile(path, theirs), os.Chmod(theirs, 0o755|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	for name, tt := range map[string]struct {
		cmd  *exec.Cmd
		attr *syscall.SysProcAttr
		want string
	}{
		"by_root":           {exec.Command(path), nil, "does nothing by hand"},
		"with_arguments":    {exec.Command(path, "root", "/bin/sh"), nil, "does nothing by hand"},
		"through_a_shell":   {exec.Command("sh", "-c", path+"; exit $?"), nil, "does nothing by hand"},
		"by_somebody":       {exec.Command("/bin/sh", "-c", theirs), nobody, "it must not be setuid"},
		"by_a_setuid_child": {exec.Command(theirs), nobody, "it must not be setuid"},
	} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, child := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "child")
			defer func() { _, _ = ours.Close(), child.Close() }()
			if name == "through_a_shell" { // which has the socket, and is not who made it
				tt.cmd.ExtraFiles = []*os.File{child}
			}
			tt.cmd.SysProcAttr = tt.attr
			tt.cmd.WaitDelay = time.Second
			out, _ := tt.cmd.CombinedOutput()
			if code := tt.cmd.ProcessState.ExitCode(); code != 254 || !strings.Contains(string(out), tt.want) {
				t.Errorf("exit code %d, %q, want 254 and %q", code, out, tt.want)
			}
		})
	}
}

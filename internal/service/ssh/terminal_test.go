package ssh_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"teleport/internal/ca"
)

func TestTerminal(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	cmd := alice.ssh(w.login, `stat -Lc '%U %G %a' $(tty); [ "$(tty)" = "$SSH_TTY" ] && echo same; echo $TERM; ps -o tpgid=,pgid= -p $$`)
	cmd.Args = append([]string{"ssh", "-tt"}, cmd.Args[1:]...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	out := strings.ReplaceAll(ok(t, cmd), "\r\n", "\n")
	lines := strings.Split(out, "\n")
	if root && lines[0] != testUser+" tty 620" {
		t.Errorf("the terminal is %q, want %s tty 620", lines[0], testUser)
	}
	if lines[1] != "same" || lines[2] != "xterm-256color" {
		t.Errorf("output = %q", out)
	}
	if f := strings.Fields(lines[3]); len(f) != 2 || f[0] != f[1] {
		t.Errorf("foreground group and group of the shell = %v, want them equal", f)
	}
	w.events.wait(t, "T2004I", nil)
}

func TestLoginShell(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	cmd := alice.ssh(w.login)
	cmd.Stdin = strings.NewReader("echo $0\nexit 7\n")
	if got := runCmd(t, cmd); got.code != 7 || !strings.HasPrefix(got.out, "-") {
		t.Errorf("login shell = %+v, want an argv0 with a dash and exit 7", got)
	}
}

func TestNoTerminalWithoutPermission(t *testing.T) {
	w := start(t, nil)
	plain := w.person(t, "plain", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) { r.PermitPTY = false })
	s := session(t, plain.dial(t, w.login))
	if err := s.RequestPty("xterm", 24, 80, nil); err == nil {
		t.Error("a terminal was given to a certificate that does not permit it")
	}
}

// shellOn starts a shell on a terminal with the Go client.
func shellOn(t testing.TB, c *gossh.Client) (*gossh.Session, io.Writer, *bufio.Reader) {
	t.Helper()
	s := session(t, c)
	in, out := must(s.StdinPipe()), must(s.StdoutPipe())
	if err := s.RequestPty("xterm", 24, 80, gossh.TerminalModes{gossh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	return s, in, bufio.NewReader(out)
}

// await reads lines until one has the prefix and returns the rest of it.
func await(t testing.TB, r *bufio.Reader, prefix string) string {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if i := strings.Index(line, prefix); i >= 0 {
			return strings.TrimSpace(line[i+len(prefix):])
		}
		if err != nil {
			t.Fatalf("the output ended before %q: %v", prefix, err)
		}
	}
}

func say(t testing.TB, w io.Writer, line string) {
	t.Helper()
	if _, err := io.WriteString(w, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func TestWindowSize(t *testing.T) {
	w := start(t, nil)
	s, in, out := shellOn(t, w.alice(t).dial(t, w.login))
	say(t, in, `trap 'echo "now:"$(stty size)' WINCH; echo "first:"$(stty size)`)
	if got := await(t, out, "first:"); got != "24 80" {
		t.Errorf("size at first = %q, want 24 80", got)
	}
	if err := s.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	say(t, in, "")
	if got := await(t, out, "now:"); got != "50 132" {
		t.Errorf("size after the change = %q, want 50 132", got)
	}
}

func TestSignals(t *testing.T) {
	w := start(t, nil)
	s := session(t, w.alice(t).dial(t, w.login))
	out := bufio.NewReader(must(s.StdoutPipe()))
	if err := s.Start(`trap 'echo "got:USR1"' USR1; trap 'echo "got:TERM"; exit 9' TERM; echo "ready:"; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	await(t, out, "ready:")
	for _, sig := range []gossh.Signal{gossh.SIGUSR1, gossh.SIGTERM} {
		if err := s.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := await(t, out, "got:"); got != string(sig) {
			t.Errorf("got signal %q, want %q", got, sig)
		}
	}
	var exit *gossh.ExitError
	if err := s.Wait(); !asExit(err, &exit) || exit.ExitStatus() != 9 {
		t.Errorf("Wait = %v, want exit status 9", err)
	}
	s = session(t, w.alice(t).dial(t, w.login))
	if err := s.Run("kill -TERM $$"); !asExit(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("Run = %v, want it ended by TERM", err)
	}
}

func asExit(err error, target **gossh.ExitError) bool {
	return errors.As(err, target)
}

// gone waits until no process has the marker in its command line.
func gone(t testing.TB, marker string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		left := processes(marker)
		if len(left) == 0 {
			return
		}
		select {
		case <-limit:
			t.Fatalf("still running: %v", left)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// appear waits until a process has the marker in its command line.
func appear(t testing.TB, marker string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for len(processes(marker)) == 0 {
		select {
		case <-limit:
			t.Fatalf("%q did not start", marker)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func processes(marker string) []string {
	var left []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), marker) && !strings.Contains(string(b), "ssh\x00") {
			left = append(left, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}

func TestKilledClientLeavesNothing(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	for name, tt := range map[string]struct{ tty, command string }{
		"pipes":            {"-T", "echo started; sleep 10011; true"},
		"terminal":         {"-tt", "echo started; sleep 10012; true"},
		"children":         {"-T", "sleep 10013 & sleep 10013 & echo started; wait"},
		"deaf_to_hangup":   {"-T", "trap '' HUP TERM INT; echo started; while :; do sleep 10014; done"},
		"deaf_on_terminal": {"-tt", "trap '' HUP TERM INT; echo started; while :; do sleep 10015; done"},
		"stopped":          {"-T", "echo started; kill -STOP $$; sleep 10016"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := alice.ssh(w.login, tt.command)
			cmd.Args = append([]string{"ssh", tt.tty}, cmd.Args[1:]...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out := bufio.NewReader(must(cmd.StdoutPipe()))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, out, "started")
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			_ = cmd.Wait()
			gone(t, "sleep\x00"+tt.command[strings.Index(tt.command, "sleep ")+6:][:5])
			gone(t, tt.command)
		})
	}
	t.Run("interactive_job", func(t *testing.T) {
		t.Parallel()
		c := alice.dial(t, w.login)
		_, in, out := shellOn(t, c)
		say(t, in, "sleep 10017 & nohup sleep 10018 >/dev/null 2>&1 & echo started:; sleep 10019")
		await(t, out, "started:")
		for _, n := range []string{"10017", "10018", "10019"} {
			appear(t, "sleep\x00"+n)
		}
		_ = c.Close()
		gone(t, "sleep\x0010017")
		gone(t, "sleep\x0010019")
		if left := processes("sleep\x0010018"); len(left) != 1 {
			t.Errorf("what was started with nohup is %v, want it to live on", left)
		}
		_ = exec.Command("pkill", "-x", "-f", "sleep 10018").Run()
	})
}

// A job that goes on in the background neither holds the session up for ever nor
// dies with it.
func TestBackgroundJob(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	began := time.Now()
	if got := ok(t, alice.ssh(w.login, "sleep 10021 & echo done")); got != "done\n" {
		t.Errorf("output = %q", got)
	}
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("a background job held the session for %s", took)
	}
	if left := processes("sleep\x0010021"); len(left) != 1 {
		t.Errorf("background job = %v, want it to live on", left)
	}
	_ = exec.Command("pkill", "-x", "-f", "sleep 10021").Run()
	// Output that comes soon after is not lost.
	if got := ok(t, alice.ssh(w.login, "(sleep 0.5; echo late) & echo early")); got != "early\nlate\n" {
		t.Errorf("output = %q, want early and late", got)
	}
}

func TestWhoShowsTheLogin(t *testing.T) {
	if !root {
		return
	}
	const utmp = "/var/run/utmp"
	if _, err := os.Stat(utmp); os.IsNotExist(err) {
		if err := os.WriteFile(utmp, nil, 0o664); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(utmp) }()
	}
	w := start(t, nil)
	s, in, out := shellOn(t, w.alice(t).dial(t, w.login))
	say(t, in, `echo "who:"$(who | grep -c `+fmt.Sprintf("'%s .*127.0.0.1'", testUser)+`)`)
	if got := await(t, out, "who:"); got != "1" {
		t.Errorf("who lists %s logins, want 1", got)
	}
	say(t, in, "exit")
	_ = s.Wait()
	w.events.wait(t, "T2004I", nil)
	if got := string(must(exec.Command("who").Output())); strings.Contains(got, testUser) {
		t.Errorf("who after logout = %q", got)
	}
}

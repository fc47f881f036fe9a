package ssh_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/sftp"
	gossh "golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/service/ssh"
)

// asking is a module that asks for a password and knows one.
func asking(t testing.TB) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "ask")
	program(t, script, `test "$(tr -d '\0')" = "open sesame"`)
	return "auth required pam_exec.so expose_authtok " + script
}

func authenticating(c *ssh.PAMConfig) { c.Authenticate = true }

// asked opens a terminal that is about to be asked something.
func asked(t testing.TB, c *gossh.Client, command string) (*gossh.Session, io.Writer, *screen) {
	t.Helper()
	s := session(t, c)
	in := must(s.StdinPipe())
	from, to := io.Pipe()
	t.Cleanup(func() { _ = to.Close() })
	shown := watch(from)
	s.Stdout, s.Stderr = to, to
	if err := s.RequestPty("xterm", 24, 80, gossh.TerminalModes{gossh.VINTR: 3, gossh.ECHO: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(command); err != nil {
		t.Fatal(err)
	}
	shown.shows(t, "Password: ")
	return s, in, shown
}

func TestPAMAuthenticates(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(asking(t), b.line("session")), authenticating))
	carol := w.carol(t, nil)
	client := carol.dial(t, w.login)
	echo := listen(t, "tcp", "127.0.0.1:0")
	serve(t, echo, shout)

	// Where nobody can be asked, nobody gets in.
	for _, args := range [][]string{{"echo in"}, {}} {
		cmd := carol.ssh(w.login, args...)
		cmd.Stdin = strings.NewReader("open sesame\n")
		if got := runCmd(t, cmd); got.code != 254 || got.out != "" || !strings.Contains(got.err, "there is no terminal to ask on: use one, as in tsh ssh -t (audit event ") {
			t.Errorf("without a terminal = %+v, want it refused", got)
		}
	}
	if f, err := sftp.NewClient(client); err == nil {
		_ = f.Close()
		t.Error("sftp was let in")
	}
	if c, err := client.Dial("tcp", echo.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("a forward was let through")
	}
	for _, answer := range []string{"wrong\n", "\n", "\x03", "\x04", strings.Repeat("x", 1000) + "\n"} {
		s, in, shown := asked(t, client, "echo it is $((40+2))")
		must(io.WriteString(in, answer))
		err := s.Wait()
		var exit *gossh.ExitError
		if text := shown.String(); !asExit(err, &exit) || exit.ExitStatus() != 254 || strings.Contains(text, "it is 42") || strings.Contains(text, "wrong") {
			t.Errorf("answer %q: %v, shown %q", answer, err, text)
		}
	}
	if opened, _ := b.opened(); opened != 0 {
		t.Errorf("%d sessions were opened", opened)
	}

	s, in, shown := asked(t, client, "echo it is $((40+2)); stty -a | tr ' ' '\\n' | grep -x 'isig\\|echo' | tr '\\n' ' '")
	must(io.WriteString(in, "open sesame\n"))
	if err := s.Wait(); err != nil || !strings.Contains(shown.String(), "it is 42") || strings.Contains(shown.String(), "sesame") {
		t.Errorf("the right answer: %v, shown %q", err, shown)
	}
	if !strings.HasSuffix(shown.String(), "isig echo ") {
		t.Errorf("the terminal is not as it was: %q", shown)
	}
	b.waitClosed(t, 1)
	// Who has answered on the connection may forward.
	if got := talk(t, must(client.Dial("tcp", echo.Addr().String())), "hello"); got != "HELLO" {
		t.Errorf("answer %q", got)
	}
}

// A module that asks nothing decides without a terminal too.
func TestPAMAuthenticatesWithoutQuestions(t *testing.T) {
	if !root {
		return
	}
	script := filepath.Join(t.TempDir(), "decide")
	program(t, script, `test "$TELEPORT_USERNAME" = carol`)
	w := start(t, withPAM(t, permitted("auth required pam_exec.so "+script), authenticating))
	carol := w.carol(t, nil)
	if got := ok(t, carol.ssh(w.login, "echo in")); got != "in\n" {
		t.Errorf("output = %q", got)
	}
	echo := listen(t, "tcp", "127.0.0.1:0")
	serve(t, echo, shout)
	if got := talk(t, must(carol.dial(t, w.login).Dial("tcp", echo.Addr().String())), "hello"); got != "HELLO" {
		t.Errorf("answer %q", got)
	}
	alice := w.alice(t)
	if got := runCmd(t, alice.ssh(w.login, "echo in")); got.code != 254 || !strings.Contains(got.err, "PAM of this host did not let user \""+testUser+"\" in: System error, ask an administrator (audit event ") {
		t.Errorf("alice = %+v, want her refused", got)
	}
	if _, err := alice.dial(t, w.login).Dial("tcp", echo.Addr().String()); err == nil {
		t.Error("alice forwards")
	}
	if reason, _ := field(w.events.wait(t, "T1006W", nil), "reason").(string); !strings.Contains(reason, ", auth: ") {
		t.Errorf("reason = %q", reason)
	}
	// Without use_pam_auth the same modules are not asked.
	w = start(t, withPAM(t, permitted("auth required pam_deny.so"), nil))
	if got := ok(t, w.alice(t).ssh(w.login, "echo in")); got != "in\n" {
		t.Errorf("output = %q", got)
	}
}

// Whatever ends a session ends it for PAM, once.
func TestPAMSessionEnds(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(b.line("session")), nil))
	alice := w.alice(t)
	n := 0
	gone := func(t *testing.T) {
		n++
		b.waitClosed(t, n)
		until(t, "no helper is left", func() bool { return len(helpers()) == 0 })
	}
	t.Run("client_vanishes", func(t *testing.T) {
		cmd := alice.ssh(w.login, "trap '' HUP; echo begun; while :; do sleep 0.1; done")
		out := bufio.NewReader(must(cmd.StdoutPipe()))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, out, "begun")
		_, _ = cmd.Process.Kill(), cmd.Wait()
		gone(t)
	})
	t.Run("terminal_vanishes", func(t *testing.T) {
		client := alice.dial(t, w.login)
		_, in, out := shellOn(t, client)
		say(t, in, `sleep 1000 & echo "begun:"`)
		await(t, out, "begun:")
		_ = client.Close()
		gone(t)
	})
	t.Run("helper_is_told_to_end", func(t *testing.T) {
		s := session(t, alice.dial(t, w.login))
		out := bufio.NewReader(must(s.StdoutPipe()))
		if err := s.Start("echo begun; sleep 1000"); err != nil {
			t.Fatal(err)
		}
		await(t, out, "begun")
		if err := syscall.Kill(helpers()[0], syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var exit *gossh.ExitError
		if err := s.Wait(); !asExit(err, &exit) || exit.Signal() != "HUP" {
			t.Errorf("the session ended with %v, want HUP", err)
		}
		gone(t)
	})
	// Nobody can close what was held by who was killed; but what ran in it is over.
	t.Run("helper_is_killed", func(t *testing.T) {
		s := session(t, alice.dial(t, w.login))
		out, errOut := bufio.NewReader(must(s.StdoutPipe())), watch(must(s.StderrPipe()))
		if err := s.Start("trap '' HUP; echo pid:$$; while :; do sleep 0.1; done"); err != nil {
			t.Fatal(err)
		}
		pid := await(t, out, "pid:")
		if err := syscall.Kill(helpers()[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var exit *gossh.ExitError
		if err := s.Wait(); !asExit(err, &exit) || exit.ExitStatus() != 254 {
			t.Errorf("the session ended with %v", err)
		}
		errOut.shows(t, "held the PAM session, has ended")
		until(t, "the program ended", func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
	})
}

// What has not begun when its client leaves does not begin.
func TestPAMIsLeft(t *testing.T) {
	if !root {
		return
	}
	dir := t.TempDir()
	slow := filepath.Join(dir, "slow")
	program(t, slow, `: > `+dir+`/asked; while [ ! -e `+dir+`/go ]; do sleep 0.02; done`)
	b := newBook(t)
	w := start(t, withPAM(t, permitted("account required pam_exec.so "+slow, b.line("session")), nil))
	cmd := w.alice(t).ssh(w.login, "touch /home/"+testUser+"/ran")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the module is asked", func() bool { _, err := os.Stat(dir + "/asked"); return err == nil })
	_, _ = cmd.Process.Kill(), cmd.Wait()
	w.events.wait(t, "T2004I", nil)
	write(t, dir+"/go", "")
	until(t, "no helper is left", func() bool { return len(helpers()) == 0 })
	if _, err := os.Stat("/home/" + testUser + "/ran"); err == nil {
		t.Error("the command ran for nobody")
	}
	if opened, closed := b.opened(); opened != closed {
		t.Errorf("sessions opened %d, closed %d", opened, closed)
	}
}

// What cannot be started is told as it is without PAM, and is no session for long.
func TestPAMNoShell(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(b.line("session")), nil))
	alice := w.alice(t)
	change := func(args ...string) {
		t.Helper()
		// What earlier sessions started may be about to end.
		until(t, "usermod", func() bool { return exec.Command("usermod", append(args, testUser)...).Run() == nil })
	}
	change("-s", "/no/such/shell")
	got := runCmd(t, alice.ssh(w.login, "echo in"))
	change("-s", "/bin/bash")
	if want := "cannot start the session: start \"/no/such/shell\": no such file or directory\n"; got != (result{"", want, 254}) {
		t.Errorf("without a shell = %+v", got)
	}
	change("-d", "/no/such/home")
	got = runCmd(t, alice.ssh(w.login, "pwd"))
	change("-d", "/home/"+testUser)
	if want := "Could not change directory to /no/such/home: starting in /\n"; got != (result{"/\n", want, 0}) {
		t.Errorf("without a home = %+v", got)
	}
	b.waitClosed(t, 2)
}

// Limits of roles count before PAM is asked.
func TestPAMMaxSessions(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(b.line("session")), nil))
	client := w.carol(t, func(o *typesv1.RoleOptions) { o.MaxSessions = 1 }).dial(t, w.login)
	s := session(t, client)
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo in; sleep 1000"); err != nil {
		t.Fatal(err)
	}
	// Before that a session may end without PAM having opened one.
	if _, err := io.ReadFull(out, make([]byte, len("in\n"))); err != nil {
		t.Fatal(err)
	}
	until(t, "there is one helper", func() bool { return len(helpers()) == 1 })
	if _, err := client.NewSession(); err == nil {
		t.Error("a second session was opened")
	}
	_ = s.Close()
	b.waitClosed(t, 1)
}

// What PAM refuses again and again is one event.
func TestPAMRefusalsAreCounted(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(b.line("account"), "account required pam_deny.so"), nil))
	client := w.carol(t, nil).dial(t, w.login)
	for range 20 {
		if _, err := client.Dial("tcp", "127.0.0.1:1"); err == nil {
			t.Fatal("a forward was let through")
		}
	}
	if got := strings.Count(b.read(), "account "); got != 1 {
		t.Errorf("modules were asked %d times for 20 forwards of a connection, want once", got)
	}
	w.stop()
	e := w.events.wait(t, audit.PortForwardFailure.Code, nil)
	if text, _ := field(e, "error").(string); !strings.Contains(text, "at the moment") {
		t.Errorf("error = %q", text)
	}
}

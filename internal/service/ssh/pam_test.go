package ssh_test

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/sftp"
	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/ca"
	"teleport/internal/pam"
	"teleport/internal/pam/pamtest"
	"teleport/internal/service/ssh"
)

// What PAM is here are the modules of this machine. /etc is the tests' own, see TestMain.

// allPAM has every test do what it does in PAM sessions that let everybody in: nothing
// else may change.
var allPAM = flag.Bool("pam", false, "all sessions of all tests are PAM sessions")

// pamDir outlives each test and is gone with the copy of /etc.
const pamDir = "/etc"

// permitted is a service that lets everybody in; more lines come first.
func permitted(lines ...string) []string {
	return append(lines, "auth required pam_permit.so", "account required pam_permit.so", "session required pam_permit.so")
}

// withPAM has sessions opened by a service of the lines.
func withPAM(t testing.TB, lines []string, change func(*ssh.PAMConfig)) func(*ssh.Config) {
	t.Helper()
	helper, err := pam.Open(t.Context(), pamtest.Program(t, pamDir))
	if err != nil {
		t.Fatal(err)
	}
	p := ssh.PAMConfig{Helper: helper, Service: pamtest.Service(t, lines...)}
	if change != nil {
		change(&p)
	}
	return func(c *ssh.Config) { c.PAM = p }
}

// book is a module that writes down what it is called for.
type book struct{ file, script string }

func newBook(t testing.TB) *book {
	t.Helper()
	dir := t.TempDir()
	b := &book{filepath.Join(dir, "lines"), filepath.Join(dir, "script")}
	program(t, b.script, `echo "$PAM_TYPE user=$PAM_USER tty=$PAM_TTY rhost=$PAM_RHOST ruser=$PAM_RUSER `+
		`$TELEPORT_USERNAME/$TELEPORT_LOGIN/$TELEPORT_ROLES EMAIL=$EMAIL" >> `+b.file)
	return b
}

func program(t testing.TB, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// line is the module in the stack of the type.
func (b *book) line(typ string) string { return typ + " required pam_exec.so " + b.script }

func (b *book) read() string {
	text, _ := os.ReadFile(b.file)
	return string(text)
}

// opened returns how often a session was opened, and closed.
func (b *book) opened() (opened, closed int) {
	text := b.read()
	return strings.Count(text, "open_session "), strings.Count(text, "close_session ")
}

// waitClosed waits until n sessions were opened, and all of them closed.
func (b *book) waitClosed(t testing.TB, n int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the book says: %s", b.read())
		}
	}()
	until(t, fmt.Sprintf("%d sessions were opened and closed", n), func() bool {
		opened, closed := b.opened()
		return opened == n && closed == n
	})
}

// helpers are the processes of teleport-pam that this process started.
func helpers() []int {
	var out []int
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(text)) {
			name, _ := os.ReadFile("/proc/" + f + "/comm")
			if string(name) == pam.Program+"\n" {
				out = append(out, must(strconv.Atoi(f)))
			}
		}
	}
	return out
}

func TestPAMSession(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	lines := permitted(b.line("account"), b.line("session"), "session required pam_env.so conffile="+pamFile(t, "OF_PAM DEFAULT=module\nLANG OVERRIDE=C.PAM\n"))
	w := start(t, withPAM(t, lines, func(p *ssh.PAMConfig) {
		p.Environment = map[string]string{
			"EMAIL": "<{{external.email}}>", "ALL": "{{external.teams}}", "NONE": "{{external.nothing}}", "SITE": "cellar", "L": "{{internal.logins}}",
		}
	}))
	alice := w.person(t, "alice", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) {
		r.Identity.User.Traits = map[string][]string{"email": {"alice@example.com"}, "teams": {"a", "b c"}, "logins": {"root"}}
	})
	for name, tt := range map[string]struct {
		command string
		want    result
	}{
		"output":      {"echo hello; echo oops >&2; exit 42", result{"hello\n", "oops\n", 42}},
		"killed":      {"kill -KILL $$", result{"", "", 255}},
		"descriptors": {"ls /proc/self/fd | tr '\\n' ' '", result{"0 1 2 3 ", "", 0}},
		"leads":       {"ps -o pid=,sid=,pgid= -p $$ | tr -s ' ' '\\n' | sort -u | grep -c .", result{"1\n", "", 0}},
		"signals":     {"trap", result{"", "", 0}},
		"masks":       {"exec grep -E '^Sig(Blk|Ign):' /proc/self/status", result{"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", "", 0}},
		"environment": {"echo $EMAIL,$ALL,${NONE-unset},$SITE,$L,$OF_PAM,$LANG,${TELEPORT_LOGIN-unset},$USER,$SSH_TELEPORT_USER", result{
			"<alice@example.com>,a b c,unset,cellar,root,module,C.PAM,unset," + testUser + ",alice\n", "", 0,
		}},
		"caps": {"grep -cE '^(Cap(Prm|Eff)|NoNewPrivs):.*0$' /proc/self/status", result{"3\n", "", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := runCmd(t, alice.ssh(w.login, tt.command)); got != tt.want {
				t.Errorf("ssh %q = %+v, want %+v", tt.command, got, tt.want)
			}
		})
	}
	b.waitClosed(t, 8)
	for _, line := range strings.Split(strings.TrimSpace(b.read()), "\n") {
		typ, rest, _ := strings.Cut(line, " ")
		who := map[string]string{"account": "alice"}[typ]
		want := "user=" + testUser + " tty=ssh rhost=127.0.0.1 ruser=" + who + " alice/" + testUser + "/dev EMAIL=<alice@example.com>"
		if rest != want {
			t.Errorf("the module was called with %q, want %q", rest, want)
		}
	}
	ids := ok(t, exec.Command("id", testUser))
	if got := ok(t, alice.ssh(w.login, "id")); got != ids {
		t.Errorf("id in the session = %q, want %q", got, ids)
	}
}

// pamFile is a file for a module.
func pamFile(t testing.TB, text string) string {
	t.Helper()
	f := must(os.CreateTemp(pamDir, "module-"))
	must(f.WriteString(text))
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestPAMTerminal(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	lines := permitted(b.line("session"), "session required pam_echo.so welcome %u", "session optional pam_motd.so motd="+pamFile(t, "message of the day\n"),
		"session required pam_umask.so umask=027")
	w := start(t, withPAM(t, lines, nil))
	alice := w.alice(t)
	command := []string{w.login, `echo "at $(tty) $(umask)"; ps -o tpgid=,pgid= -p $$; stat -Lc '%U %G %a' $(tty); [ "$(tty)" = "$SSH_TTY" ] && echo same`}
	cmd := alice.ssh(command[0], command[1])
	cmd.Args = append([]string{"ssh", "-tt"}, cmd.Args[1:]...)
	out := strings.Split(strings.ReplaceAll(ok(t, cmd), "\r\n", "\n"), "\n")
	if len(out) < 6 || out[0] != "welcome "+testUser || out[1] != "message of the day" {
		t.Fatalf("output = %q, want what the modules say first", out)
	}
	tty, mask, _ := strings.Cut(strings.TrimPrefix(out[2], "at "), " ")
	if f := strings.Fields(out[3]); mask != "0027" || len(f) != 2 || f[0] != f[1] || out[4] != testUser+" tty 620" || out[5] != "same" {
		t.Errorf("output = %q", out)
	}
	b.waitClosed(t, 1)
	if !strings.Contains(b.read(), " tty="+tty+" ") {
		t.Errorf("terminal is %s, the module was told %s", tty, b.read())
	}
	// Messages that are no errors do not get in the way of programs.
	if got := runCmd(t, alice.ssh(w.login, "echo hello; umask")); got != (result{"hello\n0027\n", "", 0}) {
		t.Errorf("without a terminal = %+v", got)
	}

	// The shell has a terminal as always: it is interrupted, resized, and ends with it.
	client := alice.dial(t, w.login)
	s, in, r := shellOn(t, client)
	say(t, in, `trap 'echo "now:"$(stty size)' WINCH; trap 'echo "int:"' INT; echo "first:"$(stty size)`)
	if got := await(t, r, "first:"); got != "24 80" {
		t.Errorf("size = %q", got)
	}
	if err := s.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	say(t, in, "")
	if got := await(t, r, "now:"); got != "50 132" {
		t.Errorf("size after the change = %q", got)
	}
	must(in.Write([]byte{3}))
	await(t, r, "int:")
	if len(helpers()) != 1 {
		t.Errorf("helpers = %v, want one", helpers())
	}
	_ = client.Close()
	b.waitClosed(t, 3)
}

// Who PAM refuses gets in by no way, and it is said why.
func TestPAMRefuses(t *testing.T) {
	if !root {
		return
	}
	for name, tt := range map[string]struct {
		lines        []string
		want, reason string
	}{
		"account": {
			permitted("account required pam_echo.so the office is closed", "account required pam_deny.so"),
			"the office is closed\nthis host does not let user \"" + testUser + "\" in at the moment (audit event ", "account: ",
		},
		"nologin": {
			permitted("account required pam_nologin.so file=" + pamFile(t, "painting the walls\n")),
			"painting the walls\n\nthis host does not let user", "account: ",
		},
		"access": {
			permitted("account required pam_access.so accessfile=" + pamFile(t, "-:"+testUser+":127.0.0.1\n")),
			"this host does not let user", "account: Permission denied (code 6)",
		},
		"session":   {permitted("session required pam_deny.so"), "this host does not open a session for user", "session: "},
		"no_module": {permitted("account required pam_no_such_module.so"), "PAM of this host did not let user \"" + testUser + "\" in: Module is unknown, ask an administrator", "account: Module is unknown"},
		"user":      {permitted("account required pam_succeed_if.so quiet user != " + testUser), "this host", "account: "},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			w := start(t, withPAM(t, append(tt.lines, b.line("session")), nil))
			carol := w.carol(t, nil)
			check := func(what string, got result) {
				t.Helper()
				if got.code != 254 || got.out != "" || !strings.HasPrefix(got.err, tt.want) {
					t.Errorf("%s = %+v, want it refused with %q", what, got, tt.want)
				}
			}
			check("exec", runCmd(t, carol.ssh(w.login, "echo in")))
			shell := carol.ssh(w.login)
			shell.Args = append([]string{"ssh", "-T"}, shell.Args[1:]...)
			shell.Stdin = strings.NewReader("echo in\n")
			check("shell", runCmd(t, shell))
			tty := carol.ssh(w.login, "echo in")
			tty.Args = append([]string{"ssh", "-tt"}, tty.Args[1:]...)
			if got := runCmd(t, tty); got.code != 254 || strings.Contains(got.out, "\nin") || !strings.HasPrefix(strings.ReplaceAll(got.out+got.err, "\r", ""), tt.want) {
				t.Errorf("terminal = %+v, want it refused", got)
			}
			e := w.events.wait(t, "T1006W", nil)
			if reason, _ := field(e, "reason").(string); !strings.Contains(reason, tt.reason) || !strings.HasPrefix(reason, "PAM, service ") {
				t.Errorf("reason = %q, want %q", reason, tt.reason)
			}
			w.events.wait(t, "T2004I", func(e *auditv1.Event) bool { return field(e, "exitCode") == "254" })

			client := carol.dial(t, w.login)
			if f, err := sftp.NewClient(client); err == nil {
				_ = f.Close()
				t.Error("sftp was let in")
			}
			if name != "session" {
				w.refusesForwards(t, client)
			}
			if opened, closed := b.opened(); closed != 0 || name != "session" && opened != 0 {
				t.Errorf("sessions opened %d, closed %d", opened, closed)
			}
		})
	}
}

// refusesForwards tries what is no session.
func (w *world) refusesForwards(t *testing.T, client *gossh.Client) {
	t.Helper()
	echo := listen(t, "tcp", "127.0.0.1:0")
	serve(t, echo, shout)
	path := filepath.Join(w.openDir(t), "socket")
	local := listen(t, "unix", path)
	serve(t, local, shout)
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, to := range []net.Addr{echo.Addr(), local.Addr()} {
		if c, err := client.Dial(to.Network(), to.String()); err == nil {
			_ = c.Close()
			t.Errorf("forward to %s was let through", to)
		} else if !strings.Contains(err.Error(), "audit event") {
			t.Errorf("forward to %s: %v", to, err)
		}
	}
	e := w.events.wait(t, "T3003E", nil)
	if reason, _ := field(e, "reason").(string); !strings.HasPrefix(reason, "PAM, service ") {
		t.Errorf("reason = %q", reason)
	}
	if ln, err := client.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = ln.Close()
		t.Error("a listener was opened")
	}
	s := session(t, client)
	if ok, _ := s.SendRequest("auth-agent-req@openssh.com", true, nil); ok {
		t.Error("an agent was forwarded")
	}
}

// What PAM allows for a connection it is asked once.
func TestPAMForwards(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	w := start(t, withPAM(t, permitted(b.line("account"), b.line("session")), nil))
	client := w.carol(t, nil).dial(t, w.login)
	echo := listen(t, "tcp", "127.0.0.1:0")
	serve(t, echo, shout)
	for range 3 {
		if got := talk(t, must(client.Dial("tcp", echo.Addr().String())), "hello"); got != "HELLO" {
			t.Errorf("answer %q", got)
		}
	}
	must(client.Listen("tcp", "127.0.0.1:0"))
	if got := strings.Count(b.read(), "account "); got != 1 {
		t.Errorf("PAM was asked %d times, want once: %s", got, b.read())
	}
	if opened, _ := b.opened(); opened != 0 {
		t.Errorf("%d sessions were opened for forwards", opened)
	}
}

func TestPAMLimits(t *testing.T) {
	if !root {
		return
	}
	conf := pamFile(t, testUser+" hard nofile 321\n"+testUser+" soft nofile 123\n"+testUser+" - core 7\n")
	w := start(t, withPAM(t, permitted("session required pam_limits.so conf="+conf, "session optional pam_loginuid.so"), nil))
	alice := w.alice(t)
	if got := ok(t, alice.ssh(w.login, "ulimit -Hn; ulimit -Sn; ulimit -c")); got != "321\n123\n7\n" {
		t.Errorf("limits = %q", got)
	}
	s, in, out := shellOn(t, alice.dial(t, w.login))
	say(t, in, `echo "limit:"$(ulimit -Sn)`)
	if got := await(t, out, "limit:"); got != "123" {
		t.Errorf("limit on a terminal = %q", got)
	}
	_ = s.Close()
	if got := ok(t, alice.ssh("root", "ulimit -c")); got == "7\n" {
		t.Errorf("root has the limits of %s", testUser)
	}
}

// Modules may add groups; not what the session is started with.
func TestPAMGroups(t *testing.T) {
	if !root {
		return
	}
	if err := os.WriteFile("/etc/security/group.conf", []byte("*;*;"+testUser+";Al0000-2400;audio\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w := start(t, withPAM(t, permitted("auth optional pam_group.so"), nil))
	groups := strings.Fields(ok(t, w.alice(t).ssh(w.login, "id -Gn")))
	slices.Sort(groups)
	if want := []string{"audio", "games", testUser}; !slices.Equal(groups, want) {
		t.Errorf("groups = %v, want %v", groups, want)
	}
}

// A module may make the user who logs in.
func TestPAMMakesTheUser(t *testing.T) {
	if !root {
		return
	}
	script := filepath.Join(pamDir, "make-user")
	program(t, script, `id "$TELEPORT_LOGIN" >/dev/null 2>&1 || /usr/sbin/useradd -m -c "of $TELEPORT_USERNAME" "$TELEPORT_LOGIN"`)
	w := start(t, withPAM(t, permitted("account required pam_exec.so "+script), nil))
	t.Cleanup(func() { _ = exec.Command("userdel", "-r", "no-such-user").Run() })
	if got := ok(t, w.alice(t).ssh("no-such-user", "whoami")); got != "no-such-user\n" {
		t.Errorf("whoami = %q", got)
	}
	if u := must(user.Lookup("no-such-user")); u.Name != "of alice" {
		t.Errorf("user = %+v", u)
	}
}

func TestPAMCopies(t *testing.T) {
	if !root {
		return
	}
	b := newBook(t)
	// The module says the same for everybody: who is in another world sees another directory.
	const instances = "/home/instances"
	t.Cleanup(func() { _, _ = os.RemoveAll(instances), os.RemoveAll("/home/shared") })
	if err := errors.Join(os.Mkdir(instances, 0), os.Mkdir("/home/shared", 0o777), os.Chmod("/home/shared", 0o777),
		os.WriteFile("/etc/security/namespace.conf", []byte("/home/shared "+instances+"/ user root\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	lines := permitted(b.line("session"), "session required pam_umask.so umask=077", "session required pam_namespace.so",
		"session optional pam_echo.so welcome")
	w := start(t, withPAM(t, lines, nil))
	alice := w.alice(t)
	client := alice.dial(t, w.login)
	f := must(sftp.NewClient(client))
	file := must(f.Create("/home/shared/file"))
	must(file.Write([]byte("by sftp")))
	_ = file.Close()
	if info := must(f.Stat("/home/shared/file")); info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, want the umask of the module", info.Mode())
	}
	if opened, closed := b.opened(); opened != 1 || closed != 0 {
		t.Errorf("sessions opened %d, closed %d while copying", opened, closed)
	}
	if got := ok(t, alice.ssh(w.login, "cat /home/shared/file")); got != "by sftp" {
		t.Errorf("the shell sees %q", got)
	}
	if _, err := os.Stat("/home/shared/file"); err == nil {
		t.Error("the file is where everybody sees it")
	}
	_ = f.Close()
	b.waitClosed(t, 2)

	// A session that is lost is lost for sftp too.
	f = must(sftp.NewClient(client))
	until(t, "there is one helper", func() bool { return len(helpers()) == 1 })
	if err := syscall.Kill(helpers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "sftp ended with its PAM session", func() bool { _, err := f.Stat("/"); return err != nil })
}

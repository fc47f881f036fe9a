package ssh_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/ssh"
)

// carol may do everything that options can allow; change alters her role.
func (w *world) carol(t testing.TB, change func(*typesv1.RoleOptions)) *person {
	t.Helper()
	w.carolMay(change)
	return w.person(t, "carol", []string{w.login}, []string{"all"}, func(r *ca.UserRequest) {
		r.PermitPortForwarding, r.PermitAgentForwarding, r.PermitX11Forwarding = true, true, true
	})
}

func (w *world) carolMay(change func(*typesv1.RoleOptions)) {
	yes := true
	r := role("all", w.login)
	r.Spec.Options = &typesv1.RoleOptions{ForwardAgent: &yes, PermitX11Forwarding: &yes}
	if change != nil {
		change(r.Spec.Options)
	}
	w.setRole(r)
}

// uid is that of the user that sessions run as.
func (w *world) uid(t testing.TB) int {
	t.Helper()
	return must(strconv.Atoi(must(user.Lookup(w.login)).Uid))
}

// openDir returns a directory that the test user may write to.
func (w *world) openDir(t testing.TB) string {
	t.Helper()
	//nolint:usetesting // the directories above t.TempDir are closed to that user
	dir := must(os.MkdirTemp("/tmp", "tlp-forward-"))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serve answers each connection with f.
func serve(t testing.TB, ln net.Listener, f func(net.Conn)) {
	t.Helper()
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				f(c)
			}()
		}
	}()
}

// shout sends what it got in capitals once the other side has said all.
func shout(c net.Conn) {
	b, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write(bytes.ToUpper(b))
	}
}

// talk sends text, ends the input and returns the answer.
func talk(t testing.TB, c net.Conn, text string) string {
	t.Helper()
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return string(must(io.ReadAll(c)))
}

func listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestForwardToPort(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	ln := listen(t, "tcp", "127.0.0.1:0")
	owners := make(chan string, 8)
	serve(t, ln, func(c net.Conn) {
		owners <- socketOwner(t, c.RemoteAddr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port)
		shout(c)
	})
	c := carol.dial(t, w.login)
	for range 3 {
		conn, err := c.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := talk(t, conn, "hello"); got != "HELLO" {
			t.Errorf("answer through the forward = %q, want HELLO", got)
		}
		if owner := <-owners; owner != strconv.Itoa(w.uid(t)) {
			t.Errorf("the socket belongs to uid %s, want %d", owner, w.uid(t))
		}
	}
	big := strings.Repeat("x", 4<<20)
	conn := must(c.Dial("tcp", ln.Addr().String()))
	if got := talk(t, conn, big); len(got) != len(big) {
		t.Errorf("%d bytes came back, want %d", len(got), len(big))
	}
	<-owners
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("connect to a closed port = %v, want it refused with the cause", err)
	}
	_ = c.Close()
	to := func(e *auditv1.Event) bool { return field(e, "addr") == ln.Addr().String() }
	w.events.wait(t, "T3003I", to)
	stop := w.events.wait(t, "T3003S", to)
	if field(stop, "connections") != 4.0 || field(stop, "rx") != float64(15+len(big)) {
		t.Errorf("port event at the end = %v, want 4 connections and %d bytes", stop, 15+len(big))
	}
}

// socketOwner is the uid of the socket that is connected from one local port to
// another.
func socketOwner(t testing.TB, from, to int) string {
	want := fmt.Sprintf("0100007F:%04X 0100007F:%04X", from, to)
	for line := range strings.Lines(string(must(os.ReadFile("/proc/net/tcp")))) {
		if f := strings.Fields(line); len(f) > 7 && strings.Join(f[1:3], " ") == want {
			return f[7]
		}
	}
	t.Errorf("no socket at port %d", from)
	return ""
}

func TestForwardToSocket(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	dir := w.openDir(t)
	ln := listen(t, "unix", filepath.Join(dir, "open"))
	_ = os.Chmod(filepath.Join(dir, "open"), 0o666)
	peers := make(chan unix.Ucred, 1)
	serve(t, ln, func(c net.Conn) {
		rc := must(c.(*net.UnixConn).SyscallConn())
		_ = rc.Control(func(fd uintptr) { peers <- *must(unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)) })
		shout(c)
	})
	c := carol.dial(t, w.login)
	if got := talk(t, must(c.Dial("unix", filepath.Join(dir, "open"))), "hello"); got != "HELLO" {
		t.Errorf("answer through the socket = %q", got)
	}
	// Programs give rights by what they see here: it must not be root's.
	if peer := <-peers; int(peer.Uid) != w.uid(t) {
		t.Errorf("the other end sees uid %d, want %d", peer.Uid, w.uid(t))
	}
	w.events.wait(t, "T3003I", nil)
	closed := filepath.Join(dir, "closed")
	serve(t, listen(t, "unix", closed), shout)
	if err := os.Symlink("/proc/self/cwd/closed", filepath.Join(dir, "magic")); err != nil {
		t.Fatal(err)
	}
	cases := []string{filepath.Join(dir, "missing"), filepath.Join(dir, "magic"), "/proc/self/root" + filepath.Join(dir, "open")}
	if root {
		if err := os.Chmod(closed, 0o600); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, closed)
	}
	for _, path := range cases {
		if conn, err := c.Dial("unix", path); err == nil {
			_ = conn.Close()
			t.Errorf("connected to %s", path)
		}
	}
}

func TestListenOnPort(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	c := carol.dial(t, w.login)
	ln, err := c.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, shout)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	hosts := []string{"127.0.0.1"}
	if probe, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = probe.Close()
		hosts = append(hosts, "::1")
	}
	for _, host := range hosts {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		if got := talk(t, conn, "hello"); got != "HELLO" {
			t.Errorf("answer from the client through %s = %q", host, got)
		}
	}
	e := w.events.wait(t, "T3003I", nil)
	if field(e, "addr") != "localhost:"+port || field(e, "direction") != "remote" {
		t.Errorf("port event = %v", e)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:"+port); err == nil {
		t.Error("a port that is taken was opened again")
	}
	if err := ln.Close(); err != nil {
		t.Errorf("cancel = %v", err)
	}
	if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
		_ = conn.Close()
		t.Error("the port is open after it was cancelled")
	}
	// Everywhere means here.
	wide, err := c.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(wide.Addr().String())
	for _, addr := range ownAddresses(t) {
		if conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("the port is open at %s", addr)
		}
	}
	if _, err := c.Listen("tcp", "192.0.2.1:0"); err == nil {
		t.Error("a port was opened on an address that is not loopback")
	}
	if root {
		if _, err := c.Listen("tcp", "127.0.0.1:81"); err == nil {
			t.Error("a privileged port was opened for an ordinary user")
		}
	}
	w.events.wait(t, "T3003E", nil)
}

// ownAddresses are those of this machine that others know.
func ownAddresses(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, a := range must(net.InterfaceAddrs()) {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			out = append(out, ip.IP.String())
		}
	}
	return out
}

func TestListenOnSocket(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	path := filepath.Join(w.openDir(t), "s")
	c := carol.dial(t, w.login)
	ln, err := c.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, shout)
	info := must(os.Stat(path))
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Mode().Perm() != 0o600 || int(owner) != w.uid(t) {
		t.Errorf("the socket is %v of uid %d, want -rw------- of %d", info.Mode(), owner, w.uid(t))
	}
	if got := talk(t, must(net.Dial("unix", path)), "hello"); got != "HELLO" {
		t.Errorf("answer from the client = %q", got)
	}
	if _, err := carol.dial(t, w.login).ListenUnix(path); err == nil {
		t.Error("a socket that is there was replaced")
	}
	w.events.wait(t, "T3003E", nil)
	_ = c.Close()
	w.events.wait(t, "T3003S", nil)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after the end: %v, want it gone", err)
	}
}

func TestForwardAgent(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	sock := w.path("agent")
	agent := exec.Command("ssh-agent", "-D", "-a", sock)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	for try := 0; ; try++ {
		if _, err := os.Stat(sock); err == nil {
			break
		}
		if try == 200 {
			t.Fatal("ssh-agent does not start")
		}
		time.Sleep(20 * time.Millisecond)
	}
	add := exec.Command("ssh-add", "-q", carol.file)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
	ok(t, add)
	run := func(flag, command string) result {
		cmd := carol.ssh(w.login, command)
		cmd.Args = append([]string{"ssh", flag}, cmd.Args[1:]...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
		return runCmd(t, cmd)
	}
	got := run("-A", `ssh-add -l | wc -l; stat -c '%a %U' $SSH_AUTH_SOCK $(dirname $SSH_AUTH_SOCK); echo $SSH_AUTH_SOCK; for i in 1 2 3 4 5 6 7 8; do ssh-add -L >/dev/null & done; wait`)
	lines := strings.Split(got.out, "\n")
	if got.code != 0 || len(lines) < 4 || lines[0] == "0" || lines[1] != "600 "+w.login || lines[2] != "700 "+w.login {
		t.Fatalf("session with an agent = %+v", got)
	}
	if _, err := os.Stat(filepath.Dir(lines[3])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of the socket after the end: %v, want it gone", err)
	}
	w.events.wait(t, "T3013I", nil)
	if got := run("-a", "echo [$SSH_AUTH_SOCK]"); got.out != "[]\n" {
		t.Errorf("session without an agent = %+v", got)
	}
	w.carolMay(func(o *typesv1.RoleOptions) { o.ForwardAgent = nil })
	if got := run("-A", "echo [$SSH_AUTH_SOCK]"); got.out != "[]\n" || got.code != 0 {
		t.Errorf("session whose agent is refused = %+v, want it to run without", got)
	}
	w.events.wait(t, "T3013W", nil)
}

// An X client is not needed to see that the cookie arrives and the bytes flow.
func TestForwardX11(t *testing.T) {
	w := start(t, func(c *ssh.Config) { c.X11 = ssh.X11Config{Enabled: true, DisplayOffset: 10, MaxDisplay: 1000} })
	carol := w.carol(t, nil)
	c := carol.dial(t, w.login)
	channels := c.HandleChannelOpen("x11")
	go func() {
		for nc := range channels {
			ch, reqs, err := nc.Accept()
			if err != nil {
				continue
			}
			go gossh.DiscardRequests(reqs)
			b, _ := io.ReadAll(io.LimitReader(ch, 5))
			_, _ = ch.Write(bytes.ToUpper(b))
			_ = ch.Close()
		}
	}()
	cookie := hex.EncodeToString([]byte("sixteen bytes ok"))
	s := session(t, c)
	request := gossh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{false, "MIT-MAGIC-COOKIE-1", cookie, 0})
	if done, err := s.SendRequest("x11-req", true, request); !done || err != nil {
		t.Fatalf("x11-req = %t, %v", done, err)
	}
	in := must(s.StdinPipe())
	out := bufio.NewReader(must(s.StdoutPipe()))
	if err := s.Start("echo $DISPLAY; xauth list $DISPLAY; cat"); err != nil {
		t.Fatal(err)
	}
	display := strings.TrimSpace(must(out.ReadString('\n')))
	if line := must(out.ReadString('\n')); !strings.HasSuffix(strings.TrimSpace(line), cookie) {
		t.Errorf("xauth list = %q, want the cookie %s", line, cookie)
	}
	number := must(strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(display, "localhost:"), ".0")))
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", 6000+number))
	if err != nil {
		t.Fatalf("DISPLAY=%s: %v", display, err)
	}
	if got := talk(t, conn, "hello"); got != "HELLO" {
		t.Errorf("answer of the display = %q", got)
	}
	_ = in.Close()
	if err := s.Wait(); err != nil {
		t.Errorf("session = %v", err)
	}
	w.events.wait(t, "T3008I", nil)
	w.events.wait(t, "T2004I", nil)
	if left, err := session(t, c).Output("xauth list " + display); err != nil || len(left) != 0 {
		t.Errorf("xauth list after the end = %q, %v, want nothing", left, err)
	}
	for name, payload := range map[string][]byte{
		"protocol": gossh.Marshal(struct {
			Single           bool
			Protocol, Cookie string
			Screen           uint32
		}{false, "XDM-AUTHORIZATION-1", cookie, 0}),
		"command": gossh.Marshal(struct {
			Single           bool
			Protocol, Cookie string
			Screen           uint32
		}{false, "MIT-MAGIC-COOKIE-1", "00\nsource /etc/shadow", 0}),
		"short": binary.BigEndian.AppendUint32(nil, 7),
	} {
		if done, _ := session(t, c).SendRequest("x11-req", true, payload); done {
			t.Errorf("%s: a malformed request was accepted", name)
		}
	}
}

// TestPrivileges takes each privilege away, by the role and by the configuration of
// the host.
func TestPrivileges(t *testing.T) {
	no := false
	dial := func(c *gossh.Client) error {
		conn, err := c.Dial("tcp", "127.0.0.1:1")
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	bind := func(c *gossh.Client) error {
		ln, err := c.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			_ = ln.Close()
		}
		return err
	}
	run := func(command string) func(*gossh.Client) error {
		return func(c *gossh.Client) error {
			s, err := c.NewSession()
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			out, err := s.CombinedOutput(command)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
	}
	request := func(name string) func(*gossh.Client) error {
		return func(c *gossh.Client) error {
			s, err := c.NewSession()
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			payload := gossh.Marshal(struct {
				Single           bool
				Protocol, Cookie string
				Screen           uint32
			}{false, "MIT-MAGIC-COOKIE-1", "00", 0})
			if done, err := s.SendRequest(name, true, payload); !done || err != nil {
				return fmt.Errorf("refused: %w", err)
			}
			return nil
		}
	}
	tests := []struct {
		name   string
		role   func(*typesv1.RoleOptions)
		config func(*ssh.Config)
		do     func(*gossh.Client) error
		code   string
		want   string
	}{
		{"local", func(o *typesv1.RoleOptions) {
			o.SshPortForwarding = &typesv1.SSHPortForwarding{Local: &typesv1.SSHForwarding{Enabled: &no}}
		}, nil, dial, "T3003E", "your roles do not let you"},
		{"remote", func(o *typesv1.RoleOptions) {
			o.SshPortForwarding = &typesv1.SSHPortForwarding{Remote: &typesv1.SSHForwarding{Enabled: &no}}
		}, nil, bind, "T3003E", ""},
		{"ports", func(o *typesv1.RoleOptions) { o.PortForwarding = &no }, nil, dial, "T3003E", "your roles do not let you"},
		{"ports_of_host", nil, func(c *ssh.Config) { c.NoPortForwarding = true }, dial, "T3003E", "does not let anybody"},
		{"agent", func(o *typesv1.RoleOptions) { o.ForwardAgent = &no }, nil, request("auth-agent-req@openssh.com"), "T3013W", ""},
		{"x11", func(o *typesv1.RoleOptions) { o.PermitX11Forwarding = &no }, func(c *ssh.Config) { c.X11 = ssh.X11Config{Enabled: true} }, request("x11-req"), "T3008W", ""},
		{"x11_of_host", nil, nil, request("x11-req"), "T3008W", ""},
		{"scp", func(o *typesv1.RoleOptions) { o.SshFileCopy = &no }, nil, run("scp -t /tmp/x"), "T3010E", "your roles do not let you copy files"},
		{"rsync", func(o *typesv1.RoleOptions) { o.SshFileCopy = &no }, nil, run("rsync --server . /tmp"), "T3010E", "your roles do not let you copy files"},
		{"copy_of_host", nil, func(c *ssh.Config) { c.NoFileCopy = true }, run("scp -f /etc/hostname"), "T3010E", "does not let anybody"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, tt.config)
			c := w.carol(t, tt.role).dial(t, w.login)
			err := tt.do(c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want it refused with %q", err, tt.want)
			}
			if e := w.events.wait(t, tt.code, nil); field(e, "user") != "carol" || field(e, "success") != false {
				t.Errorf("event = %v", e)
			}
			if err := run("true")(c); err != nil {
				t.Errorf("a command afterwards = %v", err)
			}
		})
	}
}

// What cannot be recorded does not happen.
func TestNoEventNoForward(t *testing.T) {
	w := start(t, nil)
	c := w.carol(t, nil).dial(t, w.login)
	ln := listen(t, "tcp", "127.0.0.1:0")
	serve(t, ln, shout)
	w.events.refuse()
	if conn, err := c.Dial("tcp", ln.Addr().String()); err == nil || !strings.Contains(err.Error(), "audit log") {
		t.Errorf("forward with a broken audit log = %v, %v, want it refused", conn, err)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("a port was opened with a broken audit log")
	}
	if done, _ := session(t, c).SendRequest("auth-agent-req@openssh.com", true, nil); done {
		t.Error("an agent was forwarded with a broken audit log")
	}
}

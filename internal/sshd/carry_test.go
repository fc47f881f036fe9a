package sshd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/sshd"
)

// bridge is a Carrier that allows what is not named in refuse, and remembers what it
// was asked.
type bridge struct {
	dial   func() (net.Conn, error)
	key    ssh.Signer
	refuse map[string]error

	mu     sync.Mutex
	asked  []string
	exits  []sshd.Exit
	closed []sshd.Forwarded
	sizes  chan sshd.Size
	ended  chan struct{}
	// agents are the addresses of those that the server opened.
	agents chan string
}

func (b *bridge) ask(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, what)
	return b.refuse[strings.Fields(what)[0]]
}

func (b *bridge) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

func (b *bridge) carrier() *sshd.Carrier {
	return &sshd.Carrier{
		Upstream: func(*sshd.Conn) sshd.Upstream {
			nc, err := b.dial()
			if err != nil {
				panic(err)
			}
			c, chans, reqs, err := ssh.NewClientConn(nc, "", &ssh.ClientConfig{
				User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(b.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
			})
			if err != nil {
				panic(err)
			}
			return sshd.Upstream{Conn: c, Channels: chans, Requests: reqs}
		},
		Session: func(_ context.Context, s *sshd.Session) (func(sshd.Exit), error) {
			if err := b.ask(fmt.Sprintf("session %s %s", s.Kind(), s.Command())); err != nil {
				return nil, err
			}
			s.OnResize(func(size sshd.Size) { b.sizes <- size })
			return func(e sshd.Exit) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.exits = append(b.exits, e)
				b.ended <- struct{}{}
			}, nil
		},
		Dial: func(_ context.Context, _ *sshd.Conn, to sshd.Target, _ string) error {
			return b.ask("dial " + to.String())
		},
		Listen:    func(_ context.Context, _ *sshd.Conn, at sshd.Target) error { return b.ask("listen " + at.Host) },
		Listening: func(_ context.Context, _ *sshd.Conn, at sshd.Target) error { return b.ask("listening " + at.Host) },
		Agent:     func(context.Context, *sshd.Session) error { return b.ask("agent") },
		X11:       func(context.Context, *sshd.Session) error { return b.ask("x11") },
		Closed: func(_ *sshd.Conn, f sshd.Forwarded) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.closed = append(b.closed, f)
		},
	}
}

// startCarrying runs a server that carries to what dial reaches.
func startCarrying(t testing.TB, key ssh.Signer, dial func() (net.Conn, error), change func(*sshd.Config)) (*world, *bridge) {
	t.Helper()
	b := &bridge{dial: dial, key: key, refuse: map[string]error{}, sizes: make(chan sshd.Size, 10), ended: make(chan struct{}, 1000)}
	w := start(t, func(c *sshd.Config) {
		c.Session, c.Carrier = nil, b.carrier()
		if change != nil {
			change(c)
		}
	})
	return w, b
}

// carrying is startCarrying to a server that runs programs, and forwards.
func carrying(t testing.TB) (*world, *bridge) {
	t.Helper()
	agents := make(chan string, 10)
	far := start(t, func(c *sshd.Config) {
		c.Forwarding = sshd.Forwarding{
			Dial: func(_ context.Context, _ *sshd.Conn, to sshd.Target, _ string) (net.Conn, error) {
				return net.Dial("tcp", to.String())
			},
			Listen: func(_ context.Context, _ *sshd.Conn, at sshd.Target) (net.Listener, error) {
				return net.Listen("tcp", at.String())
			},
			Agent: func(context.Context, *sshd.Session) (net.Listener, []string, error) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return nil, nil, err
				}
				agents <- ln.Addr().String()
				return ln, nil, nil
			},
			Closed: func(*sshd.Conn, sshd.Forwarded) {},
		}
	})
	w, b := startCarrying(t, far.key, func() (net.Conn, error) { return net.Dial("tcp", far.addr) }, nil)
	b.agents = agents
	return w, b
}

func TestCarryPrograms(t *testing.T) {
	w, b := carrying(t)
	for _, tt := range []struct {
		name, command, stdin string
		stdout, stderr       string
		code                 int
		exit                 sshd.Exit
	}{
		{"output", "echo hello", "", "hello\n", "", 0, sshd.Exit{}},
		{"exit_status", "exit 42", "", "", "", 42, sshd.Exit{Code: 42}},
		{"separate_stderr", "echo out; echo err >&2", "", "out\n", "err\n", 0, sshd.Exit{}},
		{"input_until_eof", "cat; echo end", "some input", "some inputend\n", "", 0, sshd.Exit{}},
		{"shell_on_pipe", "", "echo from shell\nexit 3\n", "from shell\n", "", 3, sshd.Exit{Code: 3}},
		{"input_not_read", "exit 5", strings.Repeat("x", 1<<20), "", "", 5, sshd.Exit{Code: 5}},
		{"signal_is_255", "kill -TERM $$", "", "", "", 255, sshd.Exit{Code: 255, Signal: "TERM"}},
		{"large_input", "wc -c", strings.Repeat("x", 3_000_000), "3000000\n", "", 0, sshd.Exit{}},
		{"large_output", "head -c 3000000 /dev/zero | tr '\\0' a", "", strings.Repeat("a", 3000000), "", 0, sshd.Exit{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := w.openssh()
			if tt.command != "" {
				cmd = w.openssh(tt.command)
			}
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tt.stdin), &stdout, &stderr
			_ = cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("exit %d, want %d; stderr %q", got, tt.code, stderr.String())
			}
			if stdout.String() != tt.stdout || !strings.HasPrefix(stderr.String(), tt.stderr) {
				t.Errorf("output of %d bytes %.100q, stderr %q", stdout.Len(), stdout.String(), stderr.String())
			}
			<-b.ended
			b.mu.Lock()
			defer b.mu.Unlock()
			if got := b.exits[len(b.exits)-1]; got != tt.exit {
				t.Errorf("recorded %+v, want %+v", got, tt.exit)
			}
		})
	}
}

func TestCarryTerminal(t *testing.T) {
	w, b := carrying(t)
	s, err := w.dial(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := s.StdoutPipe()
	in, _ := s.StdinPipe()
	if err := errors.Join(s.RequestPty("vt220", 30, 90, ssh.TerminalModes{ssh.ECHO: 0}), s.Setenv("LC_TEST", "carried"), s.Start(
		"echo $TERM $LC_TEST; stty size; read x; while [ \"$(stty size)\" = '30 90' ]; do sleep 0.02; done; stty size; trap 'echo got it; exit 7' USR1; echo ready; while :; do read y; done")); err != nil {
		t.Fatal(err)
	}
	expectLines(t, out, "vt220 carried", "30 90")
	if err := s.WindowChange(40, 100); err != nil {
		t.Fatal(err)
	}
	if size := <-b.sizes; size.Columns != 100 || size.Rows != 40 {
		t.Errorf("the carrier was told %v", size)
	}
	_, _ = io.WriteString(in, "\n")
	expectLines(t, out, "40 100", "ready")
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	expectLines(t, out, "got it")
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("Wait = %v, want exit status 7", err)
	}
}

// expectLines reads lines.
func expectLines(t *testing.T, r io.Reader, want ...string) {
	t.Helper()
	for _, w := range want {
		var line []byte
		for b := make([]byte, 1); ; {
			if _, err := io.ReadFull(r, b); err != nil {
				t.Fatalf("after %q: %v, want a line %q", line, err, w)
			}
			if b[0] == '\n' {
				break
			}
			line = append(line, b[0])
		}
		if got := strings.TrimSuffix(string(line), "\r"); got != w {
			t.Fatalf("line %q, want %q", got, w)
		}
	}
}

// echo serves on a port and says everything back in capitals.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				all, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(all))
			}()
		}
	}()
	return ln.Addr().String()
}

func shout(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	_, err := io.WriteString(c, "hello")
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		err = errors.Join(err, cw.CloseWrite())
	}
	all, rerr := io.ReadAll(c)
	if err = errors.Join(err, rerr); err != nil || string(all) != "HELLO" {
		t.Errorf("got %q, %v, want HELLO", all, err)
	}
}

func TestCarryForwards(t *testing.T) {
	w, b := carrying(t)
	c := w.dial(t)
	addr := echo(t)
	conn, err := c.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	shout(t, conn)
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v, want what the server says", err)
	}
	ln, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		near, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer near.Close()
		all, _ := io.ReadAll(near)
		_, _ = near.Write(bytes.ToUpper(all))
	}()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	shout(t, far)
	<-done
	if err := ln.Close(); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if far, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		_ = far.Close()
		t.Error("the listener is still there")
	}
	if got, want := b.list(), []string{"dial " + addr, "dial 127.0.0.1:1", "listen 127.0.0.1", "listening 127.0.0.1"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	_ = c.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.closed {
		if f.Received != 5 || f.Sent != 5 {
			t.Errorf("moved %+v, want 5 bytes each way", f)
		}
	}
	if len(b.closed) != 2 {
		t.Errorf("%d connections were counted, want 2", len(b.closed))
	}
}

func TestCarryAgent(t *testing.T) {
	w, b := carrying(t)
	c := w.dial(t)
	chans := c.HandleChannelOpen("auth-agent@openssh.com")
	go func() {
		for nc := range chans {
			ch, reqs, err := nc.Accept()
			if err != nil {
				return
			}
			go ssh.DiscardRequests(reqs)
			all, _ := io.ReadAll(ch)
			_, _ = ch.Write(bytes.ToUpper(all))
			_ = ch.Close()
		}
	}()
	open := func() (*ssh.Session, bool) {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s, ok
	}
	s, ok := open()
	if !ok {
		t.Fatal("the agent was refused")
	}
	in, _ := s.StdinPipe()
	if err := s.Start("read x"); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", <-b.agents)
	if err != nil {
		t.Fatal(err)
	}
	shout(t, conn)
	_ = in.Close()
	_ = s.Wait()
	b.mu.Lock()
	b.refuse["agent"] = &sshd.Refusal{Text: "no agents here"}
	b.mu.Unlock()
	if _, ok := open(); ok {
		t.Error("a refused agent was granted")
	}
}

// What the carrier refuses does not reach the server.
func TestCarryRefuses(t *testing.T) {
	far := newHostile(t)
	w, b := startCarrying(t, far.key, far.dial, nil)
	for _, what := range []string{"session", "dial", "listen", "agent", "x11"} {
		b.refuse[what] = &sshd.Refusal{Text: "not for you:\n\x1b[31m " + what}
	}
	c := w.dial(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []string{"auth-agent-req@openssh.com", "x11-req", "made-up@example.com"} {
		payload := []byte(nil)
		if req == "x11-req" {
			payload = ssh.Marshal(struct {
				Single           bool
				Protocol, Cookie string
				Screen           uint32
			}{false, "MIT-MAGIC-COOKIE-1", "00ff", 0})
		}
		if ok, err := s.SendRequest(req, true, payload); ok || err != nil {
			t.Errorf("%s: %v, %v, want refused", req, ok, err)
		}
	}
	var stderr bytes.Buffer
	s.Stderr = &stderr
	err = s.Run("rm -rf /")
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 254 || stderr.String() != "not for you:??[31m session\n" {
		t.Errorf("session = %v, %q", err, stderr.String())
	}
	var open *ssh.OpenChannelError
	if _, err := c.Dial("tcp", "192.0.2.1:22"); !errors.As(err, &open) || open.Reason != ssh.Prohibited || !strings.Contains(open.Message, "not for you") {
		t.Errorf("dial = %v", err)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("a refused listener was opened")
	}
	if ok, _, err := c.SendRequest("made-up@example.com", true, nil); ok || err != nil {
		t.Errorf("unknown request: %v, %v", ok, err)
	}
	if _, _, err := c.OpenChannel("made-up@example.com", nil); err == nil {
		t.Error("an unknown channel was opened")
	}
	if got := far.seen(); !slices.Equal(got, []string{"channel session"}) {
		t.Errorf("the server saw %q, want one session channel and nothing on it", got)
	}
}

// hostile is an SSH server under the control of a test.
type hostile struct {
	key    ssh.Signer
	config *ssh.ServerConfig
	// serve is called for each connection.
	serve func(c *ssh.ServerConn, session ssh.Channel)

	mu     sync.Mutex
	events []string
}

func newHostile(t *testing.T) *hostile {
	t.Helper()
	host, _ := newSigner(t)
	user, _ := newSigner(t)
	h := &hostile{key: user, config: &ssh.ServerConfig{
		PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return &ssh.Permissions{}, nil },
	}}
	h.config.AddHostKey(host)
	return h
}

func (h *hostile) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, what)
}

func (h *hostile) seen() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

func (h *hostile) dial() (net.Conn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		nc, err := ln.Accept()
		_ = ln.Close()
		if err != nil {
			return
		}
		sc, chans, reqs, err := ssh.NewServerConn(nc, h.config)
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				if r.Type != "keepalive@openssh.com" {
					h.note("request " + r.Type)
				}
				_ = r.Reply(false, nil)
			}
		}()
		for nc := range chans {
			h.note("channel " + nc.ChannelType())
			ch, reqs, err := nc.Accept()
			if err != nil {
				return
			}
			go func() {
				for r := range reqs {
					h.note(r.Type)
					_ = r.Reply(true, nil)
					if r.Type == "exec" && h.serve != nil {
						go h.serve(sc, ch)
					}
				}
			}()
		}
	}()
	return net.Dial("tcp", ln.Addr().String())
}

// A server opens nothing at the client that the client did not ask for, and says
// nothing that the client could be misled by.
func TestCarryHostileServer(t *testing.T) {
	far := newHostile(t)
	refused := make(chan string, 20)
	far.serve = func(c *ssh.ServerConn, session ssh.Channel) {
		for _, kind := range []string{"auth-agent@openssh.com", "x11", "forwarded-tcpip", "forwarded-streamlocal@openssh.com", "session", "direct-tcpip", "tun@openssh.com"} {
			_, _, err := c.OpenChannel(kind, ssh.Marshal(struct {
				Host       string
				Port       uint32
				OriginHost string
				OriginPort uint32
			}{"127.0.0.1", 22, "127.0.0.1", 1}))
			if err == nil {
				kind += " was opened"
			}
			refused <- kind
		}
		_, _, _ = c.SendRequest("hostkeys-00@openssh.com", true, []byte("keys"))
		_, _ = session.SendRequest("x11-req", false, nil)
		_, _ = session.SendRequest("exit-status", false, []byte{1})
		_, _ = session.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{3}))
		_ = session.Close()
	}
	w, _ := startCarrying(t, far.key, far.dial, nil)
	c := w.dial(t)
	var opened []string
	for _, kind := range []string{"auth-agent@openssh.com", "x11", "forwarded-tcpip", "forwarded-streamlocal@openssh.com", "session"} {
		go func() {
			for nc := range c.HandleChannelOpen(kind) {
				opened = append(opened, kind)
				_ = nc.Reject(ssh.Prohibited, "")
			}
		}()
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run("true")
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 3 {
		t.Errorf("Run = %v, want exit status 3", err)
	}
	for range 7 {
		if what := <-refused; strings.Contains(what, "opened") {
			t.Error(what)
		}
	}
	_ = c.Close()
	if len(opened) > 0 {
		t.Errorf("the client was asked for %q", opened)
	}
}

// A server that goes away in the middle is no riddle.
func TestCarryLosesTheServer(t *testing.T) {
	far := newHostile(t)
	far.serve = func(c *ssh.ServerConn, _ ssh.Channel) { _ = c.Close() }
	w, b := startCarrying(t, far.key, far.dial, nil)
	c := w.dial(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Run("true"); err == nil || errors.As(err, &exit) {
		t.Errorf("Run = %v, want no exit status", err)
	}
	if err := c.Wait(); err == nil {
		t.Error("the connection goes on")
	}
	<-b.ended
	if b.exits[0].Code != 255 {
		t.Errorf("recorded %+v, want 255", b.exits[0])
	}
}

// A panic ends one connection.
func TestCarryPanic(t *testing.T) {
	far := newHostile(t)
	w, _ := startCarrying(t, far.key, far.dial, func(c *sshd.Config) {
		ask := c.Carrier.Dial
		c.Carrier.Dial = func(ctx context.Context, conn *sshd.Conn, to sshd.Target, origin string) error {
			if to.Port == 666 {
				panic("a fault of ours")
			}
			return ask(ctx, conn, to, origin)
		}
	})
	other, c := w.dial(t), w.dial(t)
	if _, err := c.Dial("tcp", "127.0.0.1:666"); err == nil {
		t.Error("dialled")
	}
	_ = c.Wait()
	if _, err := other.NewSession(); err != nil {
		t.Errorf("another connection: %v", err)
	}
}

func TestCarrySessionLimit(t *testing.T) {
	far := newHostile(t)
	w, _ := startCarrying(t, far.key, far.dial, func(c *sshd.Config) { c.MaxSessions, c.MaxForwards = 2, 1 })
	c := w.dial(t)
	for range 2 {
		if _, err := c.NewSession(); err != nil {
			t.Fatal(err)
		}
	}
	var open *ssh.OpenChannelError
	if _, err := c.NewSession(); !errors.As(err, &open) || open.Reason != ssh.ResourceShortage {
		t.Errorf("a third session: %v", err)
	}
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial("tcp", "127.0.0.1:1"); !errors.As(err, &open) || open.Reason != ssh.ResourceShortage {
		t.Errorf("a second forward: %v", err)
	}
}

// Sessions and connections that are over leave nothing behind.
func TestCarryLeavesNothing(t *testing.T) {
	w, b := carrying(t)
	count := func() (int, int) {
		fds, _ := os.ReadDir("/proc/self/fd")
		return runtime.NumGoroutine(), len(fds)
	}
	visit := func() {
		c := w.dial(t)
		for range 3 {
			if out, err := run(t, c, "echo x"); err != nil || out != "x\n" {
				t.Fatalf("echo = %q, %v", out, err)
			}
			<-b.ended
		}
		_ = c.Close()
	}
	visit()
	goroutines, files := count()
	for range 30 {
		visit()
	}
	for wait := time.Millisecond; ; wait *= 2 {
		g, f := count()
		if g <= goroutines+3 && f <= files+3 {
			return
		}
		if wait > 5*time.Second {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d files, were %d and %d\n%s", g, f, goroutines, files, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(wait)
	}
}

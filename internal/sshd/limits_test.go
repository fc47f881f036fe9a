package sshd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"

	"teleport/internal/sshd"
)

// closedWithin reports whether the server closes the connection in time.
func closedWithin(t *testing.T, nc net.Conn, limit time.Duration) bool {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, nc)
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

func silent(t *testing.T, w *world) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return nc
}

func TestHandshakeDeadline(t *testing.T) {
	w := start(t, func(c *sshd.Config) { c.HandshakeTimeout = 200 * time.Millisecond })
	for name, first := range map[string]string{"silent": "", "version_only": "SSH-2.0-Slow\r\n", "endless_version": strings.Repeat("x", 4000)} {
		nc := silent(t, w)
		if _, err := nc.Write([]byte(first)); err != nil {
			t.Fatal(err)
		}
		if !closedWithin(t, nc, 5*time.Second) {
			t.Errorf("%s: the connection is still open", name)
		}
	}
	// It does not end sessions.
	c := w.dial(t)
	<-time.After(300 * time.Millisecond)
	if out, err := run(t, c, "echo alive"); err != nil || out != "alive\n" {
		t.Errorf("session after the deadline = %q, %v", out, err)
	}
}

func run(t testing.TB, c *ssh.Client, command string) (string, error) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	out, err := s.Output(command)
	return string(out), err
}

func TestPendingConnectionsOfOneSource(t *testing.T) {
	w := start(t, func(c *sshd.Config) { c.MaxPending = 8 })
	for range 2 {
		nc := silent(t, w)
		// The version says that the connection was let in.
		if _, err := io.ReadFull(nc, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if nc := silent(t, w); !closedWithin(t, nc, 5*time.Second) {
		t.Error("one source may have more than a quarter of the places")
	}
}

func TestPanicEndsOneConnection(t *testing.T) {
	w := start(t, func(c *sshd.Config) {
		inner, auth := c.Session, c.Authenticate
		c.Session = func(ctx context.Context, s *sshd.Session) sshd.Exit {
			if s.Command() == "panic" {
				panic("in a session")
			}
			return inner(ctx, s)
		}
		c.Authenticate = func(ctx context.Context, meta ssh.ConnMetadata, key ssh.PublicKey) (*sshd.Login, error) {
			if meta.User() == "panic" {
				panic("while authenticating")
			}
			return auth(ctx, meta, key)
		}
	})
	bystander := w.dial(t)
	if _, err := run(t, w.dial(t), "panic"); err == nil {
		t.Error("a session that panicked succeeded")
	}
	if _, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{User: "panic", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
		t.Error("a login that panicked succeeded")
	}
	if out, err := run(t, bystander, "echo alive"); err != nil || out != "alive\n" {
		t.Errorf("another connection = %q, %v", out, err)
	}
}

func TestSessionsOfOneConnection(t *testing.T) {
	w := start(t, func(c *sshd.Config) { c.MaxSessions = 2 })
	c := w.dial(t)
	for range 2 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
	}
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "too many sessions") {
		t.Errorf("third session = %v, want it refused", err)
	}
}

func TestOneProgramASession(t *testing.T) {
	w := start(t, nil)
	s, err := w.dial(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Setenv("LC_ONE", "1"); err != nil {
		t.Errorf("Setenv of an accepted variable = %v", err)
	}
	if err := s.Setenv("LD_PRELOAD", "x"); err == nil {
		t.Error("LD_PRELOAD was accepted")
	}
	if err := s.RequestPty("xterm", 10, 10, nil); err != nil {
		t.Fatal(err)
	}
	if done, err := s.SendRequest("pty-req", true, ssh.Marshal(struct {
		Term       string
		A, B, C, D uint32
		Modes      string
	}{"xterm", 1, 1, 1, 1, ""})); done || err != nil {
		t.Errorf("second terminal = %t, %v, want it refused", done, err)
	}
	if err := s.Start("sleep 60"); err != nil {
		t.Fatal(err)
	}
	if done, err := s.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{"id"})); done || err != nil {
		t.Errorf("second command = %t, %v, want it refused", done, err)
	}
	if done, err := s.SendRequest("env", true, ssh.Marshal(struct{ A, B string }{"LC_TWO", "2"})); done || err != nil {
		t.Errorf("variable after the start = %t, %v, want it refused", done, err)
	}
	_ = s.Close()
}

// frozen stops reading when told to: a peer that has vanished.
type frozen struct {
	net.Conn
	stop atomic.Bool
	end  chan struct{}
}

func (f *frozen) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if f.stop.Load() {
		<-f.end
		return 0, io.EOF
	}
	return n, err
}

func TestKeepAlive(t *testing.T) {
	ended := make(chan struct{})
	w := start(t, func(c *sshd.Config) {
		c.KeepAlive, c.KeepAliveMax = 100*time.Millisecond, 3
		c.Session = func(ctx context.Context, s *sshd.Session) sshd.Exit {
			if s.Command() == "quick" {
				return sshd.Exit{}
			}
			<-ctx.Done()
			close(ended)
			return sshd.Exit{}
		}
	})
	nc := &frozen{Conn: silent(t, w), end: make(chan struct{})}
	defer close(nc.end)
	conn, chans, reqs, err := ssh.NewClientConn(nc, w.addr, &ssh.ClientConfig{
		User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(conn, chans, reqs)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("wait"); err != nil {
		t.Fatal(err)
	}
	// A client that answers stays.
	select {
	case <-ended:
		t.Fatal("the session of a client that answers was ended")
	case <-time.After(600 * time.Millisecond):
	}
	nc.stop.Store(true)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the session of a client that vanished goes on")
	}
}

func TestWeakAlgorithmsAreRefused(t *testing.T) {
	w := start(t, nil)
	insecure := ssh.InsecureAlgorithms()
	configs := map[string]ssh.Config{
		"no_etm":   {Ciphers: []string{ssh.CipherAES128CTR}, MACs: []string{ssh.HMACSHA256, ssh.HMACSHA1}},
		"dh_group": {KeyExchanges: []string{ssh.KeyExchangeDH14SHA256, ssh.KeyExchangeDHGEXSHA256}},
		"nist_kex": {KeyExchanges: []string{ssh.KeyExchangeECDHP256}},
		"insecure": {KeyExchanges: insecure.KeyExchanges, Ciphers: insecure.Ciphers, MACs: insecure.MACs},
	}
	for name, cfg := range configs {
		if _, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{Config: cfg, User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	for _, cipher := range []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES256CTR} {
		c, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{Config: ssh.Config{Ciphers: []string{cipher}}, User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
		if err != nil {
			t.Errorf("%s: %v", cipher, err)
			continue
		}
		_ = c.Close()
	}
}

// AES-GCM wins with a client that puts ChaCha20 first, and one that has only the
// latter gets it.
func TestCipherChoice(t *testing.T) {
	w := start(t, nil)
	fast := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
	for want, args := range map[string][]string{
		"aes128-gcm@openssh.com":        nil,
		"aes256-gcm@openssh.com":        {"-o", "Ciphers=chacha20-poly1305@openssh.com,aes256-gcm@openssh.com"},
		"chacha20-poly1305@openssh.com": {"-o", "Ciphers=chacha20-poly1305@openssh.com"},
		"aes256-ctr":                    {"-o", "Ciphers=aes256-ctr"},
	} {
		if !fast && strings.Contains(want, "gcm") {
			want = "chacha20-poly1305@openssh.com"
		}
		// The server waits a few milliseconds for the client's offer: on a busy
		// machine that may be too short once, but not every time.
		var out []byte
		var err error
		chosen := false
		for range 20 {
			cmd := w.openssh("true")
			cmd.Args = append(append([]string{"ssh", "-v"}, args...), cmd.Args[1:]...)
			out, err = cmd.CombinedOutput()
			if chosen = strings.Contains(string(out), "server->client cipher: "+want); chosen || err != nil {
				break
			}
		}
		if err != nil || !chosen {
			t.Errorf("ssh %v did not choose %s: %v: %s", args, want, err, out)
		}
	}
}

// A client whose offer comes late, in pieces or together with more is served too.
func TestSlowClient(t *testing.T) {
	w := start(t, nil)
	for name, pause := range map[string]time.Duration{"late": 30 * time.Millisecond, "in_pieces": time.Millisecond} {
		nc := &slow{Conn: silent(t, w), pause: pause, size: map[string]int{"late": 1 << 16, "in_pieces": 100}[name]}
		conn, chans, reqs, err := ssh.NewClientConn(nc, w.addr, &ssh.ClientConfig{
			User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if out, err := run(t, ssh.NewClient(conn, chans, reqs), "echo fine"); err != nil || out != "fine\n" {
			t.Errorf("%s: session = %q, %v", name, out, err)
		}
	}
}

// slow writes in pieces with a pause before each.
type slow struct {
	net.Conn
	pause time.Duration
	size  int
}

func (s *slow) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		<-time.After(s.pause)
		n, err := s.Conn.Write(p[done:min(len(p), done+s.size)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func TestUnknownCriticalOptionIsRefused(t *testing.T) {
	w := start(t, func(c *sshd.Config) {
		inner := c.Authenticate
		c.Authenticate = func(ctx context.Context, meta ssh.ConnMetadata, key ssh.PublicKey) (*sshd.Login, error) {
			l, err := inner(ctx, meta, key)
			if err == nil {
				l.CriticalOptions = map[string]string{meta.User(): "192.0.2.1/32"}
			}
			return l, err
		}
	})
	for _, option := range []string{"force-command", "source-address", "made-up"} {
		if _, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{User: option, Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
			t.Errorf("a login with the option %q from another address was let in", option)
		}
	}
}

func TestRefusalIsShownOnceProved(t *testing.T) {
	w := start(t, func(c *sshd.Config) {
		c.Authorize = func(context.Context, ssh.ConnMetadata, *sshd.Login) error {
			return errors.Join(&sshd.Refusal{Text: "go away\x1b[2J"}, errors.New("secret reason"))
		}
	})
	out, err := w.openssh("true").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "go away?[2J") || strings.Contains(string(out), "secret") {
		t.Errorf("ssh printed %q, %v, want the refusal's text and no more", out, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := sshd.New(sshd.Config{}); err == nil {
		t.Error("New accepted an empty configuration")
	}
}

func TestServeEndsSessions(t *testing.T) {
	w := start(t, nil)
	c := w.dial(t)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 10030"); err != nil {
		t.Fatal(err)
	}
	// The cleanup of start waits for Serve, which must end the session.
}

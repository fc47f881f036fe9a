package sshauth

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/client/transfer"
	"teleport/internal/keys"
)

// What somebody may ask of a connection.
const (
	terminal, command, file, oldCopy, rsync   = "terminal", "command", "sftp", "scp", "rsync"
	localPort, localSocket                    = "port", "socket"
	remotePort, remoteSocket                  = "listener", "listening socket"
	sshAgent, display, another, joinOfAnother = "agent", "display", "second session", "join"
)

// things are those, and what asking for them returns if it is refused.
func (s *site) things(t *testing.T, sid string) map[string]func(c *ssh.Client) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	socket, err := net.Listen("unix", s.path("socket-"+rand.Text()))
	must(t, err)
	t.Cleanup(func() { _, _ = listener.Close(), socket.Close() })
	request := func(c *ssh.Client, name string, payload any) error {
		sess, err := newSession(c)
		if err != nil {
			return err
		}
		defer func() { _ = sess.Close() }()
		var data []byte
		if payload != nil {
			data = ssh.Marshal(payload)
		}
		if granted, err := sess.SendRequest(name, true, data); err != nil || !granted {
			return fmt.Errorf("%s: not granted, %w", name, err)
		}
		return nil
	}
	prints := func(text, input string) func(c *ssh.Client) error {
		return func(c *ssh.Client) error {
			sess, err := newSession(c)
			if err != nil {
				return err
			}
			defer func() { _ = sess.Close() }()
			sess.Stdin = strings.NewReader(input)
			out, err := sess.Output(text)
			if len(out) > 0 {
				return nil
			}
			return fmt.Errorf("it says nothing: %w", err)
		}
	}
	reaches := func(network, addr string) func(c *ssh.Client) error {
		return func(c *ssh.Client) error {
			conn, err := c.Dial(network, addr)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}
	}
	listens := func(network, addr string) func(c *ssh.Client) error {
		return func(c *ssh.Client) error {
			at := addr
			if network == "unix" {
				at += rand.Text()
			}
			ln, err := c.Listen(network, at)
			if err == nil {
				_ = ln.Close()
			}
			return err
		}
	}
	return map[string]func(c *ssh.Client) error{
		terminal: func(c *ssh.Client) error {
			return request(c, "pty-req", struct {
				Term       string
				C, R, W, H uint32
				Modes      string
			}{"xterm", 80, 24, 0, 0, "\x00"})
		},
		command:      prints("echo in", ""),
		oldCopy:      prints("scp -f /etc/passwd", "\x00\x00\x00"),
		rsync:        prints("rsync --server --sender -e.LsfxCIvu . /etc/passwd", ""),
		localPort:    reaches("tcp", listener.Addr().String()),
		localSocket:  reaches("unix", socket.Addr().String()),
		remotePort:   listens("tcp", "127.0.0.1:0"),
		remoteSocket: listens("unix", s.path("listen-")),
		sshAgent:     func(c *ssh.Client) error { return request(c, "auth-agent-req@openssh.com", nil) },
		display: func(c *ssh.Client) error {
			return request(c, "x11-req", struct {
				Single           bool
				Protocol, Cookie string
				Screen           uint32
			}{false, "MIT-MAGIC-COOKIE-1", strings.Repeat("ab", 16), 0})
		},
		file: func(c *ssh.Client) error {
			side, err := transfer.Dial(c)
			if err != nil {
				return err
			}
			_, err = side.Stat("/etc/passwd")
			return errors.Join(err, side.Close())
		},
		another: func(c *ssh.Client) error {
			one, err := newSession(c)
			if err != nil {
				return err
			}
			defer func() { _ = one.Close() }()
			two, err := c.NewSession()
			if err == nil {
				_ = two.Close()
			}
			return err
		},
		joinOfAnother: func(c *ssh.Client) error { return join(t, c, sid) },
	}
}

func newSession(c *ssh.Client) (sess *ssh.Session, err error) {
	err = patiently(func() (err error) {
		sess, err = c.NewSession()
		return err
	})
	return sess, err
}

// patiently opens a session when the one before is gone: where only one may be open,
// its end counts.
func patiently(open func() error) (err error) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = open(); err == nil || !strings.Contains(err.Error(), "your roles allow") {
			break
		}
	}
	return err
}

// restrictions: what a certificate does not permit, and what roles refuse, is refused on
// every way; on one that was lost and resumed, after that.
func (s *site) restrictions(t *testing.T, w way, sid string) {
	users := authority(t, s.cas[ca.TypeUser])
	everything := []string{terminal, command, file, oldCopy, rsync, localPort, localSocket, remotePort, remoteSocket, sshAgent, display, another}
	who := []struct {
		name, role string
		change     func(*ssh.Certificate)
		may        []string
	}{
		{"everything", freeRole, nil, everything},
		{"bare_certificate", freeRole, func(c *ssh.Certificate) {
			for _, name := range []string{permitPTY, permitPorts, permitAgent, permitX11} {
				delete(c.Extensions, name)
			}
		}, []string{command, file, oldCopy, rsync, another}},
		{"no_terminal", freeRole, func(c *ssh.Certificate) { delete(c.Extensions, permitPTY) }, without(everything, terminal)},
		{"no_ports", freeRole, func(c *ssh.Certificate) { delete(c.Extensions, permitPorts) }, without(everything, localPort, localSocket, remotePort, remoteSocket)},
		{"no_agent", freeRole, func(c *ssh.Certificate) { delete(c.Extensions, permitAgent) }, without(everything, sshAgent)},
		{"no_display", freeRole, func(c *ssh.Certificate) { delete(c.Extensions, permitX11) }, without(everything, display)},
		{"strict_role", strictRole, nil, []string{terminal, command}},
	}
	for _, tt := range who {
		t.Run(tt.name, func(t *testing.T) {
			key, err := keys.Generate(keys.Ed25519)
			must(t, err)
			conn := w.in(t, s.forgeFor(t, key, s.person("alice", tt.role), users, tt.change))
			w.breakIt(t, conn)
			may := map[string]bool{}
			for _, name := range tt.may {
				may[name] = !w.joins || name == terminal || name == another // a place to see from, and nothing else
			}
			may[joinOfAnother] = w.host == tunnelNode // where the session is
			for name, try := range s.things(t, sid) {
				if err := try(conn); (err == nil) != may[name] {
					t.Errorf("%s: %v, want it granted: %t", name, err, may[name])
				}
			}
		})
	}
}

func without(list []string, names ...string) []string {
	var out []string
	for _, one := range list {
		keep := true
		for _, name := range names {
			keep = keep && one != name
		}
		if keep {
			out = append(out, one)
		}
	}
	return out
}

// expiry: a certificate that ends while somebody is in ends the connection where a role
// says so, and is good for nothing new in any case.
func (s *site) expiry(t *testing.T, w way, sid string) {
	const left = 4 * time.Second
	short := func(role string) credential {
		key, err := keys.Generate(keys.Ed25519)
		must(t, err)
		return s.forgeFor(t, key, s.person("alice", role), authority(t, s.cas[ca.TypeUser]), func(c *ssh.Certificate) {
			c.ValidBefore = uint64(time.Now().Add(left).Unix())
		})
	}
	fading := short(freeRole)
	closed, stays := w.in(t, short(strictRole)), w.in(t, fading)
	ended := make(chan error, 1)
	go func() { ended <- closed.Wait() }()
	w.breakIt(t, stays)
	select {
	case <-ended:
	case <-time.After(left + 3*time.Second):
		t.Error("the connection outlives its certificate, and a role says that it must not")
	}
	within(t, 10*time.Second, "the end of the certificate", func() error {
		if now := uint64(time.Now().Unix()); now <= fading.cert.ValidBefore {
			return fmt.Errorf("it is %d", now)
		}
		return nil
	})
	for _, name := range []string{command, file, localPort, remotePort, sshAgent, joinOfAnother} {
		if err := s.things(t, sid)[name](stays); err == nil {
			t.Errorf("%s: granted with a certificate that has expired", name)
		}
	}
}

// weak makes a certificate for a key that is too short.
func (s *site) weak(t testing.TB) credential {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	return s.forgeFor(t, crypto.Signer(key), s.person("alice", freeRole), authority(t, s.cas[ca.TypeUser]), nil)
}

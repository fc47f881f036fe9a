package sshd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/sshd"
)

// world is a running server with one user key that it accepts.
type world struct {
	addr string
	dir  string
	key  ssh.Signer
}

func newSigner(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s, priv
}

// start runs a server whose sessions are the shell of this machine, as this user.
func start(t testing.TB, change func(*sshd.Config)) *world {
	t.Helper()
	host, _ := newSigner(t)
	user, priv := newSigner(t)
	cfg := sshd.Config{
		HostSigners: func() []ssh.Signer { return []ssh.Signer{host} },
		Authenticate: func(_ context.Context, _ ssh.ConnMetadata, key ssh.PublicKey) (*sshd.Login, error) {
			if !bytes.Equal(key.Marshal(), user.PublicKey().Marshal()) {
				return nil, errors.New("unknown key")
			}
			return &sshd.Login{Value: "alice"}, nil
		},
		Session:   shell,
		AcceptEnv: func(name string) bool { return strings.HasPrefix(name, "LC_") },
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
		KillAfter: 500 * time.Millisecond,
		Drain:     500 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := sshd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, sshd.QuickAck(ln)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	w := &world{addr: ln.Addr().String(), dir: t.TempDir(), key: user}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(w.dir, "id"), pem.EncodeToMemory(block))
	known := fmt.Sprintf("* %s", ssh.MarshalAuthorizedKey(host.PublicKey()))
	write(t, filepath.Join(w.dir, "known_hosts"), []byte(known))
	return w
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// shell is the simplest useful session.
func shell(ctx context.Context, s *sshd.Session) sshd.Exit {
	args := []string{"-sh"}
	if s.Kind() == sshd.KindExec {
		args = []string{"sh", "-c", s.Command()}
	}
	env := append(os.Environ(), s.Env()...)
	if term := s.Term(); term != "" {
		env = append(env, "TERM="+term)
	}
	exit, err := s.Run(ctx, sshd.Command{Path: "/bin/sh", Args: args, Env: env, Dir: "/"})
	if err != nil {
		_, _ = fmt.Fprintln(s.Stderr(), err)
		return sshd.Exit{Code: 254}
	}
	return exit
}

// openssh returns the stock client's command against the server.
func (w *world) openssh(args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(w.addr)
	base := []string{
		"-F", "none", "-i", filepath.Join(w.dir, "id"), "-p", port, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "UserKnownHostsFile=" + filepath.Join(w.dir, "known_hosts"), "-o", "GlobalKnownHostsFile=none", "-l", "alice", host,
	}
	return exec.Command("ssh", append(base, args...)...)
}

func (w *world) dial(t testing.TB) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
		User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestOpenSSH(t *testing.T) {
	w := start(t, nil)
	tests := []struct {
		name, command, stdin string
		stdout, stderr       string
		code                 int
	}{
		{"output", "echo hello", "", "hello\n", "", 0},
		{"exit_status", "exit 42", "", "", "", 42},
		{"separate_stderr", "echo out; echo err >&2", "", "out\n", "err\n", 0},
		{"input_until_eof", "cat; echo end", "some input", "some inputend\n", "", 0},
		{"shell_on_pipe", "", "echo from shell\nexit 3\n", "from shell\n", "", 3},
		{"input_not_read", "exit 5", strings.Repeat("x", 1<<20), "", "", 5},
		{"signal_is_255", "kill -TERM $$", "", "", "", 255},
		{"background_child", "sleep 1000 & echo started", "", "started\n", "", 0},
		{"large_output", "head -c 3000000 /dev/zero | tr '\\0' a", "", strings.Repeat("a", 3000000), "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := w.openssh()
			if tt.command != "" {
				cmd = w.openssh(tt.command)
			}
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tt.stdin), &stdout, &stderr
			err := cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("ssh %q: exit %d (%v), want %d; stderr %q", tt.command, got, err, tt.code, stderr.String())
			}
			if stdout.String() != tt.stdout {
				t.Errorf("ssh %q: output of %d bytes %.100q, want %d bytes %.100q", tt.command, stdout.Len(), stdout.String(), len(tt.stdout), tt.stdout)
			}
			if !strings.HasPrefix(stderr.String(), tt.stderr) {
				t.Errorf("ssh %q: stderr %q, want %q", tt.command, stderr.String(), tt.stderr)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	w := start(t, nil)
	cmd := w.openssh("-tt", "tty; stty size; echo $TERM; stty -a | tr ';' '\\n' | grep -c iutf8; ps -o tpgid= -p $$ | tr -d ' '; echo $$")
	cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ssh -tt: %v: %s", err, out)
	}
	lines := strings.Split(strings.ReplaceAll(string(out), "\r\n", "\n"), "\n")
	if !strings.HasPrefix(lines[0], "/dev/pts/") || lines[2] != "xterm-256color" {
		t.Errorf("ssh -tt printed %q", lines)
	}
	if lines[4] != lines[5] {
		t.Errorf("the terminal's foreground group is %q, the shell %q", lines[4], lines[5])
	}
}

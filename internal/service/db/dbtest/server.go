package dbtest

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a database server that runs for a test.
type Server struct {
	// Dir is its folder, and Port where it listens on 127.0.0.1 (localhost).
	Dir  string
	Port string
	// account is the user that it runs as, if that is not ours.
	account *syscall.Credential
	cmd     *exec.Cmd
	exited  chan struct{}
	log     lockedBuffer
}

// lockedBuffer is a buffer that several goroutines use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// NewServer makes the folder and finds a port for a server, which runs as the account if
// the test runs as root: many servers refuse to run as root.
func NewServer(t testing.TB, account string) *Server {
	t.Helper()
	// Not t.TempDir: its path may be longer than a socket's may be, and is closed to others.
	dir, err := os.MkdirTemp("", "tlp-db-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{Dir: dir, Port: FreePort(t)}
	if os.Geteuid() == 0 && account != "" {
		u, err := user.Lookup(account)
		if err != nil {
			t.Fatalf("the server runs as %s, which its package makes: %v", account, err)
		}
		uid, gid := must(strconv.Atoi(u.Uid)), must(strconv.Atoi(u.Gid))
		s.account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// FreePort returns a port of 127.0.0.1 on which nobody listens now.
func FreePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// Path returns a path in the folder.
func (s *Server) Path(name string) string { return filepath.Join(s.Dir, name) }

// Files makes the server's certificate, for localhost and 127.0.0.1.
func (s *Server) Files(t testing.TB) Files {
	t.Helper()
	f := ServerFiles(t, s.Dir, "localhost", "127.0.0.1")
	for _, path := range []string{f.CA, f.Cert, f.Key} {
		s.own(t, path)
	}
	return f
}

// Write writes a file of the server's.
func (s *Server) Write(t testing.TB, name, data string) string {
	t.Helper()
	path := s.Path(name)
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	s.own(t, path)
	return path
}

func (s *Server) own(t testing.TB, path string) {
	t.Helper()
	if s.account == nil {
		return
	}
	if err := os.Chown(path, int(s.account.Uid), int(s.account.Gid)); err != nil {
		t.Fatal(err)
	}
}

// Command returns a command that runs as the server's account, in its folder.
func (s *Server) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.Dir
	// MariaDB clears the folder for temporary files, of other servers as well.
	cmd.Env = append(os.Environ(), "TMPDIR="+s.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	return cmd
}

// Setup runs a command as the server's account that must succeed.
func (s *Server) Setup(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := s.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// Start runs the server until the test ends, and returns when works says that it serves.
func (s *Server) Start(t testing.TB, works func() error, name string, args ...string) {
	t.Helper()
	cmd := s.Command(name, args...)
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() { s.Stop(syscall.SIGKILL) })
	limit := time.After(2 * patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := works()
		if err == nil {
			return
		}
		select {
		case <-exited:
			t.Fatalf("%s ended: %s", name, s.log.String())
		case <-limit:
			t.Fatalf("%s does not serve: %v; its output: %s", name, err, s.log.String())
		case <-tick.C:
		}
	}
}

// Stop ends the server by the signal, to all its processes if that is SIGKILL.
func (s *Server) Stop(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	pid := s.cmd.Process.Pid
	if sig == syscall.SIGKILL {
		pid = -pid
	}
	_ = syscall.Kill(pid, sig)
	<-s.exited
}

// PID is the server's process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log is what the server wrote.
func (s *Server) Log() string { return s.log.String() }

// Listens returns nil once something listens on the server's port.
func (s *Server) Listens() error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", s.Port), time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Output runs a client and returns what it printed, on both outputs.
func Output(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) || err == nil {
		return out.String(), err
	}
	return "", err
}

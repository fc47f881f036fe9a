package ssh_test

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	gossh "golang.org/x/crypto/ssh"

	"teleport/internal/service/ssh"
)

// sessions is how many TestNothingLeaks opens and closes; make soak has more.
var sessions = flag.Int("sessions", 300, "sessions that are opened and closed to look for leaks")

// usage is what a leak would make grow.
type usage struct{ goroutines, descriptors, children, threads, files int }

func use(t testing.TB) usage {
	t.Helper()
	fds := must(os.ReadDir("/proc/self/fd"))
	threads := must(os.ReadDir("/proc/self/task"))
	children := 0
	for _, task := range threads {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			children += len(strings.Fields(string(b)))
		}
	}
	files := must(filepath.Glob(filepath.Join(os.TempDir(), "ssh-*")))
	return usage{runtime.NumGoroutine(), len(fds), children, len(threads), len(files)}
}

func TestNothingLeaks(t *testing.T) {
	w := start(t, func(c *ssh.Config) { c.X11 = ssh.X11Config{Enabled: true, DisplayOffset: 10, MaxDisplay: 1000} })
	alice := w.carol(t, nil)
	echo := listen(t, "tcp", "127.0.0.1:0")
	serve(t, echo, shout)
	kinds := []func(t testing.TB, c *gossh.Client) error{
		func(t testing.TB, c *gossh.Client) error { return session(t, c).Run("true") },
		func(t testing.TB, c *gossh.Client) error {
			s := session(t, c)
			if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
				return err
			}
			return s.Run("true")
		},
		func(t testing.TB, c *gossh.Client) error {
			f, err := sftp.NewClient(c)
			if err != nil {
				return err
			}
			if _, err := f.ReadDir("/"); err != nil {
				return err
			}
			return f.Close()
		},
		// Ended by the client in the middle.
		func(t testing.TB, c *gossh.Client) error {
			s := session(t, c)
			if err := s.Start("cat"); err != nil {
				return err
			}
			return s.Close()
		},
		func(t testing.TB, c *gossh.Client) error {
			conn, err := c.Dial("tcp", echo.Addr().String())
			if err != nil {
				return err
			}
			if got := talk(t, conn, "x"); got != "X" {
				return fmt.Errorf("answer %q", got)
			}
			return nil
		},
		func(t testing.TB, c *gossh.Client) error {
			ln, err := c.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			return ln.Close()
		},
		func(t testing.TB, c *gossh.Client) error {
			s := session(t, c)
			if _, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); err != nil {
				return err
			}
			return s.Run("test -S $SSH_AUTH_SOCK")
		},
	}
	round := func(connections, each int) {
		for range connections {
			c, err := alice.tryDial(w.login)
			if err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for i := range each {
				all.Go(func() {
					if err := kinds[i%len(kinds)](t, c); err != nil {
						t.Errorf("session of kind %d: %v", i%len(kinds), err)
					}
				})
			}
			all.Wait()
			_ = c.Close()
		}
	}
	const each = 20
	round(2, each)
	before := settle(t, usage{})
	round(*sessions/each, each)
	after := settle(t, before)
	if after.goroutines > before.goroutines+2 || after.descriptors > before.descriptors+2 || after.children > before.children ||
		after.threads > before.threads+10 || after.files > before.files {
		t.Errorf("after %d sessions %+v, before %+v", *sessions, after, before)
	}
}

// settle waits until the usage is back at the wanted one, or stays as it is.
func settle(t testing.TB, want usage) usage {
	t.Helper()
	got, same := use(t), 0
	for same < 20 {
		if want.goroutines > 0 && got.goroutines <= want.goroutines && got.descriptors <= want.descriptors && got.children <= want.children {
			return got
		}
		<-time.After(50 * time.Millisecond)
		next := use(t)
		if next == got {
			same++
		} else {
			got, same = next, 0
		}
	}
	return got
}

// TestOrdinaryUser runs the tests that matter without root as somebody else.
func TestOrdinaryUser(t *testing.T) {
	if !root {
		return
	}
	var uid, gid int
	if _, err := fmt.Sscan(string(must(exec.Command("id", "-u", testUser).Output())), &uid); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(must(exec.Command("id", "-g", testUser).Output())), &gid); err != nil {
		t.Fatal(err)
	}
	//nolint:usetesting // the directories above t.TempDir are closed to that user
	dir := must(os.MkdirTemp("/tmp", "tlp-ordinary-"))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "ssh.test")
	copyFile(t, must(os.Executable()), binary)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run", "^(TestExec|TestAuditOfExec|TestCredentials|TestTerminal|TestEnvironment|TestCopy|TestSFTPCommands|TestSFTPFiles|TestLoginShell)$")
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + dir, "PATH=" + os.Getenv("PATH"), "USER=" + testUser}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("tests as an ordinary user: %v\n%s", err, out)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	in := must(os.Open(from))
	defer func() { _ = in.Close() }()
	out := must(os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755))
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkIdleSession is the memory that an idle interactive session costs the
// service, the user's shell apart.
func BenchmarkIdleSession(b *testing.B) {
	w := start(b, nil)
	alice := w.alice(b)
	const sessions = 100
	heap := func() (inUse, stacks, system uint64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse, m.StackInuse, m.Sys
	}
	for b.Loop() {
		heap0, stack0, _ := heap()
		clients := make([]*gossh.Client, 0, sessions)
		for range sessions {
			c := alice.dial(b, w.login)
			_, _, out := shellOn(b, c)
			_, _ = out.ReadByte()
			clients = append(clients, c)
		}
		heap1, stack1, _ := heap()
		// The client's half is in this process too.
		b.ReportMetric(float64(heap1+stack1-heap0-stack0)/sessions/1024, "KiB/session+client")
		b.ReportMetric(float64(use(b).threads), "threads")
		for _, c := range clients {
			_ = c.Close()
		}
	}
}

// BenchmarkTrue is the latency of `ssh node true` with the stock client.
func BenchmarkTrue(b *testing.B) {
	w := start(b, nil)
	alice := w.alice(b)
	for b.Loop() {
		if out, err := alice.ssh(w.login, "true").CombinedOutput(); err != nil {
			b.Fatalf("ssh true: %v: %s", err, out)
		}
	}
}

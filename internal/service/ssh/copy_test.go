package ssh_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	auditv1 "teleport/api/audit/v1"
)

// remoteDir makes a directory of the local user that the test logs in as.
func remoteDir(t testing.TB, w *world, p *person) string {
	t.Helper()
	dir := strings.TrimSpace(ok(t, p.ssh(w.login, "mktemp -d /tmp/tlp-test-XXXXXX")))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func randomFile(t testing.TB, path string, size int) [32]byte {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.Read(b)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func sum(t testing.TB, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func TestCopy(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	remote := remoteDir(t, w, alice)
	src, dst := t.TempDir(), t.TempDir()
	tree := filepath.Join(src, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	sums := map[string][32]byte{}
	for name, size := range map[string]int{"empty": 0, "small": 10, "a/odd": 32769, "a/b/large name": 40 << 20} {
		sums[name] = randomFile(t, filepath.Join(tree, name), size)
	}
	if err := os.Chmod(filepath.Join(tree, "small"), 0o751); err != nil {
		t.Fatal(err)
	}
	rsh := "ssh " + strings.Join(alice.options(), " ")
	at := w.login + "@127.0.0.1:"
	scp := func(args ...string) *exec.Cmd { return exec.Command("scp", slices.Concat(alice.options(), args)...) }
	for _, tt := range []struct {
		name     string
		up, down *exec.Cmd
		events   []string
	}{
		{"scp_sftp", scp("-q", "-r", "-p", tree, at+remote+"/1"), scp("-q", "-r", "-p", at+remote+"/1", dst+"/1"), []string{"T3001I", "T3005I", "T3004I"}},
		{"scp_legacy", scp("-O", "-q", "-r", "-p", tree, at+remote+"/2"), scp("-O", "-q", "-r", "-p", at+remote+"/2", dst+"/2"), []string{"T3005I", "T3004I", "T3002I"}},
		{"rsync", exec.Command("rsync", "-a", "-e", rsh, tree+"/", at+remote+"/3"), exec.Command("rsync", "-a", "-e", rsh, at+remote+"/3/", dst+"/3"), []string{"T3002I"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.events.reset()
			ok(t, tt.up)
			ok(t, tt.down)
			sub := map[string]string{"scp_sftp": "1", "scp_legacy": "2", "rsync": "3"}[tt.name]
			for name, want := range sums {
				if got := sum(t, filepath.Join(dst, sub, name)); got != want {
					t.Errorf("%s is not the same after going there and back", name)
				}
			}
			if info, err := os.Stat(filepath.Join(dst, sub, "small")); err != nil || info.Mode().Perm() != 0o751 {
				t.Errorf("mode of small = %v, %v, want 0751", info.Mode(), err)
			}
			for _, code := range tt.events {
				w.events.wait(t, code, nil)
			}
		})
	}
}

func TestSFTPCommands(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	remote := remoteDir(t, w, alice)
	local := t.TempDir()
	want := randomFile(t, filepath.Join(local, "f"), 100_000)
	whole, err := os.ReadFile(filepath.Join(local, "f"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(local, "half"), string(whole[:40_000]))
	batch := filepath.Join(local, "batch")
	write(t, batch, strings.Join([]string{
		"cd " + remote, "lcd " + local, "put half f", "put -a f", "ls -l", "mkdir d", "rename f d/g", "symlink d/g l", "get l back", "chmod 600 d/g", "df .", "pwd", "ln d/g hard", "rm hard", "rm l", "rm d/g", "rmdir d", "-rm nothing",
	}, "\n")+"\n")
	out := ok(t, exec.Command("sftp", append(alice.options(), "-b", batch, w.login+"@127.0.0.1")...))
	if sum(t, filepath.Join(local, "back")) != want {
		t.Error("the file is not the same")
	}
	if !strings.Contains(out, w.login) || !strings.Contains(out, "Remote working directory: "+remote) {
		t.Errorf("sftp printed %q", out)
	}
	if left := ok(t, alice.ssh(w.login, "ls -A "+remote)); left != "" {
		t.Errorf("left behind: %q", left)
	}
	e := w.events.wait(t, "T2004I", func(e *auditv1.Event) bool { return field(e, "transfers") != nil })
	if s, _ := field(e, "transfers").(map[string]any); s["bytes_written"] != 100_000.0 || s["bytes_read"] != 100_000.0 {
		t.Errorf("transfers = %v, want 100000 each way", field(e, "transfers"))
	}
}

// A path without a slash is the user's home, new files obey the umask, and what is
// no file is refused.
func TestSFTPFiles(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	remote := remoteDir(t, w, alice)
	local := t.TempDir()
	write(t, filepath.Join(local, "f"), "x")
	if err := os.Chmod(filepath.Join(local, "f"), 0o777); err != nil {
		t.Fatal(err)
	}
	sftp := func(line string) result {
		write(t, filepath.Join(local, "batch"), "lcd "+local+"\n"+line+"\n")
		return runCmd(t, exec.Command("sftp", append(alice.options(), "-b", filepath.Join(local, "batch"), w.login+"@127.0.0.1")...))
	}
	if got := sftp("pwd"); root && !strings.Contains(got.out, "/home/"+testUser) {
		t.Errorf("sftp starts in %q, want the home", got.out)
	}
	if got := sftp("put f " + remote + "/f"); got.code != 0 {
		t.Fatalf("put = %+v", got)
	}
	if got := ok(t, alice.ssh(w.login, "stat -c %a "+remote+"/f; mkfifo "+remote+"/fifo")); got != "755\n" {
		t.Errorf("mode of a new file = %q, want 755", got)
	}
	for _, path := range []string{remote + "/fifo", "/proc/self/maps", "/proc/self/fd/1", "/proc/self/environ", "/proc/thread-self/maps", "/proc/1/environ", "/proc/self/root/etc/hostname", remote} {
		if got := sftp("get " + path + " out"); got.code == 0 {
			t.Errorf("get %s succeeded", path)
		}
	}
	if got := sftp("ls /proc/self/fd/"); got.code == 0 {
		t.Errorf("ls /proc/self/fd = %+v, want it refused", got)
	}
	for _, line := range []string{"mkdir /proc/self/cwd/x", "put f /proc/self/cwd/x", "symlink y /proc/self/root/tmp/tlp-x", "ls /proc/self/cwd/", "rename " + remote + "/f /proc/self/root/tmp/tlp-y"} {
		if got := sftp(line); got.code == 0 {
			t.Errorf("%q went through a link of this process", line)
		}
	}
	if got := sftp("put f /dev/null"); got.code != 0 {
		t.Errorf("put to /dev/null = %+v", got)
	}
}

// The user's rights, and none of root's, count for every operation over sftp.
func TestSFTPHasTheUsersRights(t *testing.T) {
	if !root {
		return
	}
	w := start(t, nil)
	alice := w.alice(t)
	remote := remoteDir(t, w, alice)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root only"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(secret); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ok(t, alice.ssh(w.login, "ln -s "+secret+" "+remote+"/link; ln -s /etc "+remote+"/etc; ln -s /root "+remote+"/root; ln -s /proc/1/root "+remote+"/proc"))
	local := t.TempDir()
	write(t, filepath.Join(local, "f"), "mine")
	for _, line := range []string{
		"get " + secret + " out", "get " + remote + "/link out", "get " + remote + "/etc/shadow out", "get " + remote + "/root/.profile out", "ls /root",
		"put f " + secret, "put f " + remote + "/link", "put f /etc/new", "put f /root/new", "rm " + secret, "rm /etc/passwd", "mkdir /etc/new", "rmdir /root",
		"rename /etc/passwd " + remote + "/p", "chmod 777 " + secret, "chmod 777 " + remote + "/link", "chown 0 f", "chown 0 " + remote + "/own", "symlink x /etc/new",
		"ln " + secret + " " + remote + "/hard", "get " + remote + "/proc/root/.profile out", "get /proc/1/environ out",
	} {
		write(t, filepath.Join(local, "batch"), "lcd "+local+"\nput f "+remote+"/own\n"+line+"\n")
		got := runCmd(t, exec.Command("sftp", append(alice.options(), "-b", filepath.Join(local, "batch"), w.login+"@127.0.0.1")...))
		if got.code == 0 {
			t.Errorf("%q succeeded: %+v", line, got)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "root only" {
		t.Errorf("secret = %q, %v", b, err)
	}
	if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of secret = %v, %v", info, err)
	}
	// What root may is untouched: the thread was the user's alone.
	if err := os.WriteFile(filepath.Join("/root", ".tlp-test"), nil, 0o600); err != nil {
		t.Errorf("root's own rights: %v", err)
	}
	_ = os.Remove("/root/.tlp-test")
	if got := ok(t, alice.ssh(w.login, "stat -c '%U %G' "+remote+"/own")); got != testUser+" "+testUser+"\n" {
		t.Errorf("owner of an uploaded file = %q", got)
	}
	// Groups count too.
	group := filepath.Join(filepath.Dir(secret), "games")
	if err := os.WriteFile(group, []byte("for games"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chgrp", "games", group).CombinedOutput(); err != nil {
		t.Fatalf("chgrp: %v: %s", err, out)
	}
	ok(t, exec.Command("scp", append(alice.options(), "-q", w.login+"@127.0.0.1:"+group, local+"/g")...))
}

func TestControlMaster(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	socket := filepath.Join(t.TempDir(), "cm")
	via := func(args ...string) *exec.Cmd {
		cmd := alice.ssh(w.login, args...)
		cmd.Args = append([]string{"ssh", "-o", "ControlPath=" + socket, "-o", "ControlMaster=auto", "-o", "ControlPersist=60"}, cmd.Args[1:]...)
		return cmd
	}
	ok(t, via("true"))
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if out, err := via("echo shared").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("shared")) {
				t.Errorf("session over the master: %v: %s", err, out)
			}
		})
	}
	all.Wait()
	stop := via()
	stop.Args = append([]string{"ssh", "-O", "exit"}, stop.Args[1:]...)
	_ = stop.Run()
}

func TestFiftyAtOnce(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			cmd := alice.ssh(w.login, "cat; echo end")
			cmd.Stdin = strings.NewReader(strings.Repeat("line\n", 20_000))
			out, err := cmd.Output()
			if err != nil || len(out) != 100_004 {
				t.Errorf("session = %d bytes, %v, want 100004", len(out), err)
			}
		})
	}
	all.Wait()
}

// What the certificate does not permit, or nobody knows, is refused, and the session
// goes on.
func TestForwardingIsRefused(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	c := alice.dial(t, w.login)
	if _, err := c.Dial("tcp", "127.0.0.1:22"); err == nil || !strings.Contains(err.Error(), "your certificate does not let you") {
		t.Errorf("direct-tcpip = %v, want it refused with a reason", err)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("tcpip-forward was accepted")
	}
	if _, _, err := c.OpenChannel("x11", nil); err == nil {
		t.Error("a channel x11 was accepted")
	}
	s := session(t, c)
	for _, name := range []string{"auth-agent-req@openssh.com", "x11-req", "unknown@example.com"} {
		if done, err := s.SendRequest(name, true, nil); done || err != nil {
			t.Errorf("%s = %t, %v, want it refused", name, done, err)
		}
	}
	if out, err := s.Output("echo fine"); err != nil || string(out) != "fine\n" {
		t.Errorf("session afterwards = %q, %v", out, err)
	}
	if err := session(t, c).RequestSubsystem("netconf"); err == nil {
		t.Error("an unknown subsystem was accepted")
	}
	if accepted, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err != nil || !accepted {
		t.Errorf("keepalive = %t, %v", accepted, err)
	}
}

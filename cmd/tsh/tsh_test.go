package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/client/screen"
	"teleport/internal/types"
	"teleport/internal/version"
)

// tsh runs one command line.
func tsh(t *testing.T, stdin string, args ...string) (code int, out, talk string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(args, screen.Streams{In: strings.NewReader(stdin), Out: &stdout, Err: &stderr})
	return code, stdout.String(), stderr.String()
}

// ok runs one command line that has to succeed.
func ok(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	code, out, talk := tsh(t, stdin, args...)
	if code != 0 {
		t.Fatalf("tsh %q: exit code %d\n%s%s", args, code, out, talk)
	}
	return out
}

// fails runs one command line that has to fail with the code, saying the words.
func fails(t *testing.T, want int, words string, args ...string) {
	t.Helper()
	code, out, talk := tsh(t, "", args...)
	if code != want || !strings.Contains(talk, words) {
		t.Errorf("tsh %q: exit code %d, %q, %q; want %d and %q", args, code, out, talk, want, words)
	}
	if strings.Count(talk, "ERROR") > 1 {
		t.Errorf("tsh %q: more than one error: %q", args, talk)
	}
}

// setUp starts a cluster and an empty home.
func setUp(t *testing.T) *clienttest.Cluster {
	t.Helper()
	for _, name := range []string{"PROXY", "USER", "LOGIN", "IDENTITY_FILE"} {
		t.Setenv("TELEPORT_"+name, "")
	}
	t.Setenv("TELEPORT_HOME", filepath.Join(t.TempDir(), "tsh"))
	c := clienttest.Start(t)
	c.Login.Logins = []string{"root", "ubuntu"}
	return c
}

func signIn(t *testing.T, c *clienttest.Cluster) string {
	t.Helper()
	return ok(t, c.Login.Password+"\n"+c.Login.Code+"\n", "login", "--proxy="+c.Addr, "--user=alice", "--ca-pin="+c.Trust.Pins()[0])
}

// timeless replaces what differs from run to run.
func timeless(s string, c *clienttest.Cluster) string {
	s = strings.ReplaceAll(s, c.Addr, "PROXY")
	return regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC \[valid for [^]]*\]`).ReplaceAllString(s, "TIME")
}

func TestLoginStatusLogout(t *testing.T) {
	c := setUp(t)
	fails(t, 1, "not logged in: run tsh login", "status")
	want := `> Profile URL:   https://PROXY
  Logged in as:  alice
  Cluster:       test.example.com
  Roles:         access
  Logins:        root, ubuntu
  Kubernetes:    disabled
  Valid until:   TIME
  Extensions:    permit-pty
`
	if diff := cmp.Diff(want, timeless(signIn(t, c), c)); diff != "" {
		t.Error("login: ", diff)
	}
	if diff := cmp.Diff(want, timeless(ok(t, "", "status"), c)); diff != "" {
		t.Error("status: ", diff)
	}
	var status struct{ Active profileStatus }
	if err := json.Unmarshal([]byte(ok(t, "", "status", "--format=json")), &status); err != nil || status.Active.Username != "alice" {
		t.Errorf("status --format=json: %v, %v", status, err)
	}
	// The certificates are good: no password is asked for.
	if diff := cmp.Diff(want, timeless(ok(t, "", "login", "--proxy="+c.Addr), c)); diff != "" {
		t.Error("second login: ", diff)
	}
	if len(c.Login.TTLs) != 1 {
		t.Errorf("%d logins reached the cluster, want 1", len(c.Login.TTLs))
	}
	// Known from before: no pin needed.
	ok(t, c.Login.Password+"\n"+c.Login.Code+"\n", "login", "--force", "--ttl=60")
	if got := c.Login.TTLs[1]; got != time.Hour {
		t.Errorf("--ttl=60 asked for %s, want 1h", got)
	}
	if diff := cmp.Diff("Logged out alice from PROXY.\n", timeless(ok(t, "", "logout"), c)); diff != "" {
		t.Error(diff)
	}
	fails(t, 1, "not logged in", "status")
	if got := ok(t, "", "logout"); got != "You were not logged in.\n" {
		t.Errorf("second logout: %q", got)
	}
	// The authority is remembered.
	ok(t, c.Login.Password+"\n"+c.Login.Code+"\n", "login", "--proxy="+c.Addr, "--user=alice")
}

func TestLoginRefusals(t *testing.T) {
	c := setUp(t)
	fails(t, 1, "does not trust", "login", "--proxy="+c.Addr, "--user=alice")
	fails(t, 2, "no Proxy address given", "login")
	fails(t, 1, "standard input has ended", "login", "--proxy="+c.Addr, "--user=alice", "--insecure")
	fails(t, 2, "unknown format", "login", "--proxy="+c.Addr, "--format=x")
	fails(t, 2, "expected minutes", "login", "--proxy="+c.Addr, "--ttl=x")
	fails(t, 1, "ca_pin", "login", "--proxy="+c.Addr, "--ca-pin=x")
	fails(t, 1, "cannot reach the Proxy", "login", "--proxy=127.0.0.1:1", "--user=alice")
	code, _, talk := tsh(t, "wrong password\n123456\n", "login", "--proxy="+c.Addr, "--user=alice", "--insecure")
	if code != 1 || !strings.Contains(talk, "log in: wrong user, password or code") {
		t.Errorf("wrong password: %d, %q", code, talk)
	}
}

func TestLoginByEnvironment(t *testing.T) {
	c := setUp(t)
	t.Setenv("TELEPORT_PROXY", "https://"+c.Addr)
	t.Setenv("TELEPORT_USER", "alice")
	ok(t, c.Login.Password+"\n"+c.Login.Code+"\n", "login", "--insecure")
	if got := ok(t, "", "status"); !strings.Contains(got, "https://"+c.Addr) {
		t.Error(got)
	}
}

func TestInvite(t *testing.T) {
	c := setUp(t)
	link := "https://" + c.Addr + "/web/invite/s3cret#" + c.Trust.Pins()[0]
	const password = "a new password"
	answers := password + "\n" + password + "\n" + c.Login.Code + "\n"
	c.Login.Invite = "s3cret"
	for name, tt := range map[string]struct{ stdin, want string }{
		"short":     {"short\nshort\n", "too short"},
		"different": {password + "\nanother password\n", "not the same"},
		"code":      {password + "\n" + password + "\n000000\n", "the code is wrong"},
	} {
		code, _, talk := tsh(t, tt.stdin, "login", "--invite="+link)
		if code != 1 || !strings.Contains(talk, tt.want) {
			t.Errorf("%s: %d, %q, want %q", name, code, talk, tt.want)
		}
	}
	code, out, talk := tsh(t, answers, "login", "--invite="+link)
	if code != 0 || !strings.Contains(out, "Logged in as:  alice") {
		t.Fatalf("%d, %q, %q", code, out, talk)
	}
	for _, want := range []string{"user alice", clienttest.Name, "Secret key: JBSWY3DPEHPK3PXP"} {
		if !strings.Contains(talk, want) {
			t.Errorf("%q is not in %q", want, talk)
		}
	}
	if c.Login.Password != password {
		t.Errorf("the password is %q", c.Login.Password)
	}
	code, _, talk = tsh(t, answers, "login", "--invite="+link)
	if code != 1 || !strings.Contains(talk, "was used or has expired") {
		t.Errorf("second use: %d, %q", code, talk)
	}
	other := clienttest.Start(t)
	fails(t, 1, "does not trust", "login", "--invite=https://"+other.Addr+"/web/invite/s3cret#"+c.Trust.Pins()[0])
}

func node(name, id, addr string, tunnel bool, labels map[string]string) *typesv1.Server {
	return &typesv1.Server{
		Kind: types.KindNode, Version: "v2", Metadata: &typesv1.Metadata{Name: id, Labels: labels},
		Spec: &typesv1.ServerSpec{Hostname: name, Addr: addr, UseTunnel: tunnel, Version: "0.1.0"},
	}
}

func TestLs(t *testing.T) {
	c := setUp(t)
	c.Resources.Put(node("web-1", clienttest.NodeID, "", true, map[string]string{"env": "prod", "os": "linux"}))
	c.Resources.Put(node("db-1", "id-2", "10.0.0.1:3022", false, map[string]string{"env": "prod"}))
	c.Resources.Put(node("evil\x1b[2J", "id-3", "", true, nil))
	signIn(t, c)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"all": {nil, `Node Name   Address       Labels
----------- ------------- -----------------
db-1        10.0.0.1:3022 env=prod
evil\x1b[2J ⟵ Tunnel
web-1       ⟵ Tunnel      env=prod,os=linux
`},
		"labels": {[]string{"env=prod,os=linux"}, `Node Name Address  Labels
--------- -------- -----------------
web-1     ⟵ Tunnel env=prod,os=linux
`},
		"verbose": {[]string{"-v", "os=linux"}, `Node Name Node ID                              Address  Version Labels
--------- ------------------------------------ -------- ------- -----------------
web-1     6805dda3-779e-493b-a1c5-8d0bd3a0a2f1 ⟵ Tunnel 0.1.0   env=prod,os=linux
`},
		"names": {[]string{"--format=names", "env=prod"}, "db-1\nweb-1\n"},
		"none":  {[]string{"env=none"}, "Node Name Address Labels\n--------- ------- ------\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ok(t, "", append([]string{"ls"}, tt.args...)...)); diff != "" {
				t.Error(diff)
			}
		})
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(ok(t, "", "ls", "-f", "json")), &list); err != nil || len(list) != 3 {
		t.Errorf("ls -f json: %v, %v", list, err)
	}
	if got := ok(t, "", "ls", "--format=yaml", "os=linux"); !strings.Contains(got, "kind: node") {
		t.Errorf("ls --format=yaml: %q", got)
	}
	fails(t, 1, "label", "ls", "nonsense")
	fails(t, 2, "format", "ls", "--format=xml")
}

func TestSSH(t *testing.T) {
	c := setUp(t)
	signIn(t, c)
	for name, tt := range map[string]struct {
		args []string
		code int
		out  string
	}{
		"true":         {[]string{"root@web-1", "true"}, 0, ""},
		"code":         {[]string{"root@web-1", "exit", "42"}, 42, ""},
		"words":        {[]string{"root@web-1", "hello", "world"}, 0, "hello world\n"},
		"login_flag":   {[]string{"-l", "root", "web-1", "-x", "--long"}, 0, "-x --long\n"},
		"dashes_first": {[]string{"--", "root@web-1", "hello"}, 0, "hello\n"},
		"dashes_after": {[]string{"root@web-1", "--", "-v"}, 0, "-v\n"},
		"by_id":        {[]string{"-q", "-p", "3022", "root@" + clienttest.NodeID, "hi"}, 0, "hi\n"},
		"with_cluster": {[]string{"root@web-1." + clienttest.Name, "hi"}, 0, "hi\n"},
		"terminal":     {[]string{"-t", "root@web-1", "hi"}, 0, "hi\n"},
		"shell":        {[]string{"-T", "root@web-1"}, 0, "pty  0x0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, talk := tsh(t, "", append([]string{"ssh"}, tt.args...)...)
			if code != tt.code || out != tt.out || talk != "" {
				t.Errorf("exit code %d, %q, %q, want %d, %q", code, out, talk, tt.code, tt.out)
			}
		})
	}
	if code, out, _ := tsh(t, "piped", "ssh", "root@web-1", "cat"); code != 0 || out != "piped" {
		t.Errorf("standard input: %d, %q", code, out)
	}
	fails(t, 1, `your roles do not allow login "bob": use one of root, ubuntu`, "ssh", "bob@web-1", "true")
	fails(t, 1, `there is no node "web-9"`, "ssh", "root@web-9", "true")
	fails(t, 2, "no user before the @", "ssh", "@web-1")
	fails(t, 2, "argument is missing", "ssh")
	fails(t, 1, "the connection ended before the command did", "ssh", "root@web-1", "drop")
	t.Setenv("TELEPORT_LOGIN", "ubuntu")
	ok(t, "", "ssh", "web-1", "true")
	logins := c.Node.Logins()
	if got := logins[len(logins)-1]; got != "ubuntu" {
		t.Errorf("TELEPORT_LOGIN: logged in as %q", got)
	}
}

func TestProxySSH(t *testing.T) {
	c := setUp(t)
	signIn(t, c)
	// The other side is an SSH server: it says so first, and ends when we do.
	if got := ok(t, "", "proxy", "ssh", "--cluster="+clienttest.Name, "root@web-1."+clienttest.Name+":22"); !strings.HasPrefix(got, "SSH-2.0-") {
		t.Errorf("proxy ssh wrote %q", got)
	}
	requests := c.Node.Requests()
	if r := requests[len(requests)-1]; r.GetPort() != 0 || r.GetHost() != "web-1."+clienttest.Name {
		t.Errorf("asked for %v", r)
	}
	fails(t, 2, "not to", "proxy", "ssh", "--cluster=other", "root@web-1:22")
	fails(t, 2, "expected user@host:port", "proxy", "ssh", "root@web-1:x")
}

func TestIdentityFile(t *testing.T) {
	c := setUp(t)
	path := filepath.Join(t.TempDir(), "id")
	stdin := c.Login.Password + "\n" + c.Login.Code + "\n"
	ok(t, stdin, "login", "--proxy="+c.Addr, "--user=alice", "--insecure", "--out="+path)
	fails(t, 1, "not logged in", "status")
	if got := ok(t, "", "-i", path, "--proxy="+c.Addr, "ssh", "root@web-1", "hi"); got != "hi\n" {
		t.Errorf("ssh with an identity file: %q", got)
	}
	t.Setenv("TELEPORT_IDENTITY_FILE", path)
	fails(t, 2, "give --proxy", "ls")
	t.Setenv("TELEPORT_PROXY", c.Addr)
	ok(t, "", "ls")
	fails(t, 2, "needs no login", "login")
	if code, _, talk := tsh(t, stdin, "-i", "", "login"); code != 2 {
		t.Errorf("login: %d, %q", code, talk)
	}
}

func TestExpired(t *testing.T) {
	c := setUp(t)
	signIn(t, c)
	var out, talk bytes.Buffer
	a := &app{Streams: screen.Streams{In: strings.NewReader(""), Out: &out, Err: &talk}, now: func() time.Time { return time.Now().Add(48 * time.Hour) }}
	if code := screen.Execute(a.root(), []string{"ssh", "root@web-1", "true"}, a.Streams); code != 1 {
		t.Errorf("ssh: exit code %d", code)
	}
	if want := "run tsh login --proxy=" + c.Addr + " --user=alice"; !strings.Contains(talk.String(), "your certificate expired at ") || !strings.Contains(talk.String(), want) {
		t.Errorf("ssh said %q", talk.String())
	}
	if len(c.Node.Requests()) != 0 {
		t.Error("an expired certificate was tried")
	}
	if code := screen.Execute(a.root(), []string{"status"}, a.Streams); code != 1 || !strings.Contains(out.String(), "[EXPIRED]") {
		t.Errorf("status: exit code %d, %q", code, out.String())
	}
}

func TestVersion(t *testing.T) {
	c := setUp(t)
	line := "Teleport v" + version.Version + " " + runtime.Version() + "\n"
	for _, args := range [][]string{{"version"}, {"version", "--client"}, {"--version"}} {
		if got := ok(t, "", args...); got != line {
			t.Errorf("tsh %q: %q, want %q", args, got, line)
		}
	}
	signIn(t, c)
	want := line + "Proxy version: 0.1.0\nProxy: PROXY\n"
	if diff := cmp.Diff(want, timeless(ok(t, "", "version"), c)); diff != "" {
		t.Error(diff)
	}
	if got := ok(t, "", "version", "--client"); got != line {
		t.Errorf("version --client: %q", got)
	}
}

func TestConfig(t *testing.T) {
	c := setUp(t)
	fails(t, 1, "not logged in", "config")
	signIn(t, c)
	home := os.Getenv("TELEPORT_HOME")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := ok(t, "", "config")
	want := `# Begin Teleport configuration for 127.0.0.1, made by tsh config
Host *.test.example.com 127.0.0.1
    UserKnownHostsFile "HOME/known_hosts"
    IdentityFile "HOME/keys/127.0.0.1/alice"
    CertificateFile "HOME/keys/127.0.0.1/alice-ssh/test.example.com-cert.pub"
    IdentitiesOnly yes
    StrictHostKeyChecking yes
Host *.test.example.com !127.0.0.1
    ProxyCommand env TELEPORT_HOME=HOME SELF proxy ssh --cluster=test.example.com --proxy=PROXY '%r@%h:%p'
# End Teleport configuration for 127.0.0.1
`
	got = strings.ReplaceAll(strings.ReplaceAll(timeless(got, c), home, "HOME"), self, "SELF")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestConfigPaths(t *testing.T) {
	profile := client.Profile{Proxy: "proxy.example.com:443", User: "alice", Cluster: "example.com"}
	for dir, want := range map[string]string{
		"/home/a b/.tsh":  `ProxyCommand '/opt/my tools/tsh' proxy ssh --cluster=example.com --proxy=proxy.example.com:443 '%r@%h:%p'`,
		"/home/100%/.tsh": "", "/home/\"x/.tsh": "",
	} {
		home, err := client.OpenHome(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sshConfig(home, profile, "/opt/my tools/tsh", filepath.Dir(dir), 0)
		if (err == nil) != (want != "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, %v", dir, got, err)
		}
	}
}

func TestHelp(t *testing.T) {
	setUp(t)
	if got := ok(t, ""); !strings.Contains(got, "Available Commands") {
		t.Errorf("no arguments: %q", got)
	}
	fails(t, 2, `unknown command "loginn": did you mean login?`, "loginn")
	fails(t, 2, "unknown flag", "ls", "--nope")
	fails(t, 2, "unknown command", "proxy", "kube")
}

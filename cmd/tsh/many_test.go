package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/client/clienttest"
)

// fleet is a cluster with one server that answers and others that do not.
func fleet(t *testing.T) *clienttest.Cluster {
	t.Helper()
	c := setUp(t)
	c.Resources.Put(node(clienttest.NodeName, clienttest.NodeID, "", true, map[string]string{"env": "prod", "os": "linux"}))
	c.Resources.Put(node("db-1", "id-2", "", true, map[string]string{"env": "prod"}))
	c.Resources.Put(node("db-1", "id-3", "", true, map[string]string{"env": "test"}))
	c.Resources.Put(node("db-1", "id-4", "", true, map[string]string{"env": "test"}))
	signIn(t, c)
	return c
}

// Labels that mean one server are another name for it.
func TestSSHByLabelToOne(t *testing.T) {
	c := fleet(t)
	for _, target := range []string{"root@env=prod,os=linux", "root@os=linux"} {
		code, out, talk := tsh(t, "piped", "ssh", target, "cat")
		if code != 0 || out != "piped" || talk != "" {
			t.Errorf("%s: %d, %q, %q", target, code, out, talk)
		}
	}
	if code, _, _ := tsh(t, "", "ssh", "-l", "root", "os=linux", "exit", "42"); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	requests := c.Node.Requests()
	if r := requests[len(requests)-1]; r.GetHost() != clienttest.NodeID {
		t.Errorf("asked for %q, want the id", r.GetHost())
	}
	if !c.Resources.Usable() {
		t.Error("servers that may not be used were asked for")
	}
	fails(t, 1, "no server with env=none", "ssh", "root@env=none", "true")
	fails(t, 1, "label", "ssh", "root@=x", "true")
	fails(t, 1, `do not allow login "bob"`, "ssh", "bob@env=prod", "true")
}

func TestSSHOnMany(t *testing.T) {
	fleet(t)
	dir := filepath.Join(t.TempDir(), "logs")
	code, out, talk := tsh(t, "not for them", "ssh", "--log-dir="+dir, "root@env=prod", "echo", "hello")
	if code != 1 || out != "["+clienttest.NodeName+"] echo hello\n" {
		t.Errorf("%d, %q", code, out)
	}
	for _, want := range []string{"Failed:\n", "  db-1: there is no node", "1 of 2 servers failed\n"} {
		if !strings.Contains(talk, want) {
			t.Errorf("%q is not in %q", want, talk)
		}
	}
	for name, want := range map[string]string{"web-1.stdout": "echo hello\n", "web-1.stderr": "", "db-1.stdout": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
	_, _, talk = tsh(t, "", "ssh", "--log-dir="+dir, "root@env=test", "true")
	for _, want := range []string{"  db-1/id-3: ", "  db-1/id-4: ", "2 of 2"} {
		if !strings.Contains(talk, want) {
			t.Errorf("%q is not in %q", want, talk)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "db-1-id-4.stderr")); err != nil {
		t.Error(err)
	}
	fails(t, 2, "means 2 servers: a command is needed", "ssh", "root@env=prod")
	fails(t, 2, "work with one", "ssh", "-t", "root@env=prod", "true")
	fails(t, 2, "work with one", "ssh", "-L", "1234:localhost:80", "root@env=prod", "true")
	fails(t, 1, "--log-dir", "ssh", "--log-dir=/dev/null/x", "root@env=prod", "true")
	// One server and a directory: its output is there, and the code is its own.
	code, out, _ = tsh(t, "", "ssh", "--log-dir="+dir, "root@web-1", "exit", "7")
	if code != 7 || out != "" {
		t.Errorf("one server: %d, %q", code, out)
	}
	_, out, talk = tsh(t, "", "ssh", "--log-dir="+dir, "root@web-1", "errout", "oh")
	if got, err := os.ReadFile(filepath.Join(dir, "web-1.stderr")); err != nil || string(got) != "oh\n" || out != "" || talk != "[web-1] oh\n" {
		t.Errorf("standard error: %q, %v, %q, %q", got, err, out, talk)
	}
}

// Lines stay whole, whatever pieces they come in.
func TestLineWriter(t *testing.T) {
	var out bytes.Buffer
	var writing sync.Mutex
	w := &lineWriter{to: &out, prefix: "[a] ", writing: &writing}
	for _, piece := range []string{"on", "e\ntw", "o\n", "\n", "x\r\n", "last"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	w.flush()
	w.flush()
	if diff := cmp.Diff("[a] one\n[a] two\n[a] \n[a] x\r\n[a] last\n", out.String()); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if _, err := w.Write(bytes.Repeat([]byte("x"), maxLine)); err != nil || out.Len() == 0 {
		t.Errorf("a line without an end is held back: %d, %v", out.Len(), err)
	}
}

func TestLsChoices(t *testing.T) {
	c := fleet(t)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"query":            {[]string{"--query", `labels["env"] == "prod" && hasPrefix(name, "web")`}, "web-1\n"},
		"search":           {[]string{"--search", "DB,test"}, "db-1\ndb-1\n"},
		"search_phrase":    {[]string{"--search", `"env=prod" web`}, "web-1\n"},
		"labels_and_query": {[]string{"--query", `name == "db-1"`, "env=prod"}, "db-1\n"},
		"cluster":          {[]string{"-c", clienttest.Name, "os=linux"}, "web-1\n"},
	} {
		if got := ok(t, "", append([]string{"ls", "-f", "names"}, tt.args...)...); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if !c.Resources.Usable() {
		t.Error("servers that may not be used were asked for")
	}
	fails(t, 1, "query:", "ls", "--query", `name = "x"`)
	fails(t, 1, "quotation mark", "ls", "--search", `"x`)
	fails(t, 2, "not to", "ls", "--cluster", "other")
	t.Setenv("TELEPORT_CLUSTER", "other")
	fails(t, 2, "not to", "ls")
	fails(t, 2, "not to", "ssh", "root@web-1", "true")
}

func TestLsAll(t *testing.T) {
	c := fleet(t)
	want := `Proxy     Cluster          Node Name Address  Labels
--------- ---------------- --------- -------- -----------------
127.0.0.1 test.example.com web-1     ⟵ Tunnel env=prod,os=linux
`
	if diff := cmp.Diff(want, ok(t, "", "ls", "-R", "os=linux")); diff != "" {
		t.Error(diff)
	}
	// A login that cannot be used does not hide the others.
	home := os.Getenv("TELEPORT_HOME")
	profile := "web_proxy_addr: gone.example.com:443\nuser: alice\ncluster: gone\n"
	if err := os.WriteFile(filepath.Join(home, "gone.example.com.yaml"), []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, talk := tsh(t, "", "ls", "--all", "-f", "names", "os=linux")
	if code != 1 || out != "web-1\n" || !strings.Contains(talk, "gone: ") || !strings.Contains(talk, "1 of 2 clusters") {
		t.Errorf("%d, %q, %q", code, out, talk)
	}
	fails(t, 2, "does not go with an identity file", "-i", "x", "--proxy", c.Addr, "ls", "--all")
}

func TestResolve(t *testing.T) {
	fleet(t)
	for _, name := range []string{"web-1", "WEB-1", "root@web-1", "web-1." + clienttest.Name, clienttest.NodeID, "os=linux"} {
		if got := ok(t, "", "resolve", name); !strings.Contains(got, clienttest.NodeID) {
			t.Errorf("resolve %s: %q", name, got)
		}
		if got := ok(t, "", "resolve", "-q", name); got != "" {
			t.Errorf("resolve -q %s: %q", name, got)
		}
	}
	fails(t, 1, "id-2, id-3, id-4", "resolve", "db-1")
	fails(t, 1, "there is no server", "resolve", "nope")
	if code, out, talk := tsh(t, "", "resolve", "--quiet", "nope"); code != 1 || out+talk != "" {
		t.Errorf("resolve --quiet: %d, %q, %q", code, out, talk)
	}
}

func TestLatency(t *testing.T) {
	fleet(t)
	var got []trips
	if err := json.Unmarshal([]byte(ok(t, "", "latency", "ssh", "-n", "3", "--interval=1ms", "-f", "json", "root@web-1")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Count != 3 || got[1].Count != 3 || got[1].Min <= 0 || got[1].Min > got[1].P50 || got[1].P50 > got[1].Max {
		t.Errorf("latency = %+v", got)
	}
	if text := ok(t, "", "latency", "ssh", "-n", "1", "root@os=linux"); !strings.Contains(text, "client to Proxy") || !strings.Contains(text, "client to web-1") {
		t.Errorf("latency ssh: %q", text)
	}
	fails(t, 2, "name one", "latency", "ssh", "root@env=prod")
	fails(t, 2, "at least 1", "latency", "ssh", "-n", "0", "root@web-1")
	fails(t, 1, "there is no node", "latency", "ssh", "root@nope")
}

func TestClusters(t *testing.T) {
	c := setUp(t)
	fails(t, 1, "not logged in", "clusters")
	signIn(t, c)
	want := `Cluster Name     Status Cluster Type Labels Selected
---------------- ------ ------------ ------ --------
test.example.com online root                *
`
	if diff := cmp.Diff(want, ok(t, "", "clusters")); diff != "" {
		t.Error(diff)
	}
	var list []clusterInfo
	if err := json.Unmarshal([]byte(ok(t, "", "clusters", "-f", "json")), &list); err != nil || len(list) != 1 || list[0].Status != "online" {
		t.Errorf("clusters -f json: %v, %v", list, err)
	}
	if got := ok(t, "", "clusters", "-q"); got != "test.example.com online root  *\n" {
		t.Errorf("clusters -q: %q", got)
	}
}

func TestEnv(t *testing.T) {
	c := setUp(t)
	fails(t, 1, "not logged in", "env")
	signIn(t, c)
	if got, want := ok(t, "", "env"), "export TELEPORT_PROXY="+c.Addr+"\nexport TELEPORT_CLUSTER="+clienttest.Name+"\n"; got != want {
		t.Errorf("env: %q, want %q", got, want)
	}
	if got := ok(t, "", "env", "--unset"); got != "unset TELEPORT_PROXY\nunset TELEPORT_CLUSTER\n" {
		t.Errorf("env --unset: %q", got)
	}
	var values map[string]string
	if err := json.Unmarshal([]byte(ok(t, "", "env", "-f", "json")), &values); err != nil || values["TELEPORT_CLUSTER"] != clienttest.Name {
		t.Errorf("env -f json: %v, %v", values, err)
	}
}

// Flags that are known from elsewhere say that they are not there yet; harmless values
// pass.
func TestNotYet(t *testing.T) {
	c := setUp(t)
	signIn(t, c)
	ok(t, "", "--auth=local", "--mfa-mode=otp", "-k", "no", "--skip-version-check", "--browser=none", "--headless=false", "status")
	for _, args := range [][]string{
		{"--headless", "status"},
		{"--auth=github", "status"},
		{"-k", "yes", "status"},
		{"--piv-slot=9a", "status"},
		{"--browser=firefox", "login"},
		{"login", "--request-roles=admin"},
		{"login", "--request-nowait"},
		{"login", "--kube-cluster=x"},
		{"login", "--format=kubernetes"},
	} {
		fails(t, 2, "not supported yet", args...)
	}
	fails(t, 1, "not supported yet", "login", "leaf.example.com")
	ok(t, "", "login", clienttest.Name)
	if got := ok(t, "", "status", "-v", "--client"); !strings.Contains(got, "Trait logins:") || !strings.Contains(got, "CA pins:") || !strings.Contains(got, "-cert.pub") {
		t.Errorf("status -v: %q", got)
	}
	if got := ok(t, "", "config", "-p", "3022"); !strings.Contains(got, "    Port 3022\n") {
		t.Errorf("config -p: %q", got)
	}
}

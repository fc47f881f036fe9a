package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	statusv1 "teleport/api/status/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/client/screen"
	"teleport/internal/rpc"
	"teleport/internal/types"
	"teleport/internal/version"
)

// now is when the tests run, as far as the output is concerned.
func now() time.Time { return time.Date(2023, 3, 30, 18, 12, 52, 0, time.UTC) }

// tctl runs one command line.
func tctl(t *testing.T, stdin string, args ...string) (code int, out, talk string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	s := screen.Streams{In: strings.NewReader(stdin), Out: &stdout, Err: &stderr}
	code = run(args, s)
	return code, stdout.String(), stderr.String()
}

func ok(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	code, out, talk := tctl(t, stdin, args...)
	if code != 0 {
		t.Fatalf("tctl %q: exit code %d\n%s%s", args, code, out, talk)
	}
	return out
}

func fails(t *testing.T, want int, words string, args ...string) {
	t.Helper()
	code, out, talk := tctl(t, "", args...)
	if code != want || !strings.Contains(talk, words) {
		t.Errorf("tctl %q: exit code %d, %q, %q; want %d and %q", args, code, out, talk, want, words)
	}
}

// setUp starts a cluster that tctl reaches with an identity file.
func setUp(t *testing.T) *clienttest.Cluster {
	t.Helper()
	for _, name := range []string{"PROXY", "AUTH_SERVER", "CONFIG_FILE", "IDENTITY_FILE"} {
		t.Setenv("TELEPORT_"+name, "")
	}
	t.Setenv("TELEPORT_HOME", filepath.Join(t.TempDir(), "tsh"))
	c := clienttest.Start(t)
	path := filepath.Join(t.TempDir(), "id")
	if _, err := c.Credentials("admin", time.Hour).Export(path, client.FormatFile, false); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TELEPORT_IDENTITY_FILE", path)
	t.Setenv("TELEPORT_AUTH_SERVER", c.Addr)
	return c
}

const (
	secret = "0123456789abcdef0123456789abcdef"
	pin    = "sha256:abdc1245abdc1245abdc1245abdc1245abdc1245abdc1245abdc1245abdc1245"
)

func TestStatus(t *testing.T) {
	c := setUp(t)
	c.Status = &statusv1.GetStatusResponse{
		ClusterName: "teleport.example.com", SoftwareVersion: "12.1.1", CaPins: []string{pin, pin},
		Authorities: []*statusv1.AuthorityStatus{
			{Type: "host"}, {Type: "user", LastRotated: timestamppb.New(now())}, {Type: "db"}, {Type: "openssh"}, {Type: "jwt"},
		},
	}
	want := `Cluster     teleport.example.com
Version     12.1.1
host CA     never updated
user CA     updated 30 Mar 23 18:12 UTC
db CA       never updated
openssh CA  never updated
jwt CA      never updated
CA pin      ` + pin + `
CA pin      ` + pin + `
`
	if diff := cmp.Diff(want, ok(t, "", "status")); diff != "" {
		t.Error(diff)
	}
	var st clusterStatus
	if err := json.Unmarshal([]byte(ok(t, "", "status", "--format=json")), &st); err != nil || st.Cluster != "teleport.example.com" || len(st.CAPins) != 2 {
		t.Errorf("--format=json: %v, %v", st, err)
	}
}

func TestNodesLs(t *testing.T) {
	c := setUp(t)
	for _, n := range []*typesv1.Server{
		{Metadata: &typesv1.Metadata{Name: clienttest.NodeID}, Spec: &typesv1.ServerSpec{
			Hostname: "1f58429134c4", UseTunnel: true, Version: "14.0.1", Addr: "hidden:1",
			CmdLabels: map[string]*typesv1.CommandLabel{"hostname": {Result: "1f58429134c4"}},
		}},
		{Metadata: &typesv1.Metadata{Name: "short", Labels: map[string]string{"env": "prod"}}, Spec: &typesv1.ServerSpec{
			Hostname: "db-1", Version: "14.0.1", Addr: "10.0.0.1:3022",
		}},
	} {
		n.Kind, n.Version = types.KindNode, "v2"
		c.Resources.Put(n)
	}
	want := `Host         UUID                  Public Address Labels                Version
------------ --------------------- -------------- --------------------- -------
1f58429134c4 6805dda3-779e-493b...                hostname=1f58429134c4 14.0.1
db-1         short                 10.0.0.1:3022  env=prod              14.0.1
`
	if diff := cmp.Diff(want, ok(t, "", "nodes", "ls")); diff != "" {
		t.Error(diff)
	}
	if got := ok(t, "", "nodes", "ls", "-v"); !strings.Contains(got, clienttest.NodeID+" ") {
		t.Errorf("nodes ls -v: %s", got)
	}
	if got := ok(t, "", "nodes", "ls", "env=prod"); strings.Contains(got, "1f58429134c4") || !strings.Contains(got, "db-1") {
		t.Errorf("nodes ls env=prod: %s", got)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(ok(t, "", "nodes", "ls", "--format=json")), &list); err != nil || len(list) != 2 {
		t.Errorf("nodes ls --format=json: %v, %v", list, err)
	}
}

func TestAuthSign(t *testing.T) {
	c := setUp(t)
	path := filepath.Join(t.TempDir(), "bot")
	got := ok(t, "", "auth", "sign", "--user=bot", "--out="+path, "--ttl=2h")
	if !regexp.MustCompile(`^The credentials have been written to \S+/bot\nThey are good until \S+Z\n$`).MatchString(got) {
		t.Errorf("auth sign: %q", got)
	}
	creds, err := client.ReadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(creds.Expires()); left < time.Hour || left > 2*time.Hour {
		t.Errorf("good for %s, want 2h", left)
	}
	fails(t, 1, "use --overwrite", "auth", "sign", "--user=bot", "--out="+path)
	ok(t, "", "auth", "sign", "--user=bot", "--out="+path, "--overwrite")
	ok(t, "", "auth", "sign", "--user=bot", "--out="+path+"2", "--format=openssh")
	if _, err := os.Stat(path + "2-cert.pub"); err != nil {
		t.Error(err)
	}
	ok(t, "", "-i", path, "--auth-server="+c.Addr, "status")
	c.MaxTTL = 30 * time.Hour
	if _, _, talk := tctl(t, "", "auth", "sign", "--user=bot", "--out="+path, "--overwrite", "--ttl=30h"); talk != "" {
		t.Errorf("nothing was shortened, and it says %q", talk)
	}
	if _, out, talk := tctl(t, "", "auth", "sign", "--user=bot", "--out="+path, "--overwrite", "--ttl=100h"); !strings.Contains(talk, "--ttl=100h0m0s was shortened to 30h0m0s: neither a role of bot") || strings.Contains(out, "shortened") {
		t.Errorf("a life that was shortened: %q, %q", out, talk)
	}
	fails(t, 2, "--out and either --user or --host", "auth", "sign", "--user=bot")
	fails(t, 2, "--out and either --user or --host", "auth", "sign", "--user=bot", "--host=x", "--out=x")
	fails(t, 2, "--format=openssh is needed", "auth", "sign", "--host=x", "--out=x")
	fails(t, 2, "use one of user, host, openssh", "auth", "export", "--type=made-up")
	fails(t, 2, "unknown format", "auth", "sign", "--user=bot", "--out=x", "--format=pkcs12")
}

func TestAuditLs(t *testing.T) {
	c := setUp(t)
	event := func(typ, code string, age time.Duration, fields map[string]any) {
		packed, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		c.Events = append(c.Events, &auditv1.Event{
			Event: typ, Code: code, Time: timestamppb.New(now().Add(-age)), Uid: "u-" + code, ClusterName: clienttest.Name, Fields: packed,
		})
	}
	event("session.start", "T2000I", time.Minute, map[string]any{
		"user": "alice", "login": "root", "server_hostname": "web-1", "namespace": "default", "command": strings.Repeat("x", 200),
	})
	event("user.login", "T1000W", time.Hour, map[string]any{"user": "ev\x1bil", "success": false, "error": "wrong password"})
	event("instance.join", "TJ002I", 2*time.Hour, map[string]any{
		"host_id": "x", "rx": 20000021, "proto": "ssh", "roles": []any{"Node", "A\x1b"}, "attributes": map[string]any{"b": []any{"<2>"}, "a": nil},
	})
	want := `Time (UTC)          Type          Code   User     Details
------------------- ------------- ------ -------- ` + strings.Repeat("-", 123) + `
2023-03-30 18:11:52 session.start T2000I alice    command=` + strings.Repeat("x", 112) + `...
2023-03-30 17:12:52 user.login    T1000W ev\x1bil error="wrong password" success=false
2023-03-30 16:12:52 instance.join TJ002I          attributes={"a":null,"b":["<2>"]} host_id=x roles=["Node","A\u001b"] rx=20000021
`
	if diff := cmp.Diff(want, ok(t, "", "audit", "ls")); diff != "" {
		t.Error(diff)
	}
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"type":       {[]string{"--type=user.login,session.start"}, []string{"T2000I", "T1000W"}},
		"type_twice": {[]string{"--type=user.login", "--type=instance.join"}, []string{"T1000W", "TJ002I"}},
		"from":       {[]string{"--from=2023-03-30T17:00:00Z"}, []string{"T2000I", "T1000W"}},
		"to":         {[]string{"--to=2023-03-30T17:12:52Z"}, []string{"TJ002I"}},
		"duration":   {[]string{"--from=-1h"}, []string{}},
		"limit":      {[]string{"--limit=1"}, []string{"T2000I"}},
		"limit_page": {[]string{"--limit=3"}, []string{"T2000I", "T1000W", "TJ002I"}},
	} {
		t.Run(name, func(t *testing.T) {
			var list []struct{ Code string }
			out := ok(t, "", append([]string{"audit", "ls", "--format=json"}, tt.args...)...)
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			got := []string{}
			for _, e := range list {
				got = append(got, e.Code)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := ok(t, "", "audit", "ls", "--format=yaml"); !strings.Contains(got, "event: session.start") {
		t.Errorf("--format=yaml: %s", got)
	}
	fails(t, 2, "expected a time", "audit", "ls", "--from=yesterday")
	fails(t, 2, "expected 1 to", "audit", "ls", "--limit=0")
	fails(t, 1, "is not before", "audit", "ls", "--from=-1h", "--to=-2h")
}

// The ways to the cluster, in their order.
func TestConnect(t *testing.T) {
	c := setUp(t)
	dir := t.TempDir()
	identity := os.Getenv("TELEPORT_IDENTITY_FILE")
	t.Setenv("TELEPORT_IDENTITY_FILE", "")
	t.Setenv("TELEPORT_AUTH_SERVER", "")
	config := filepath.Join(dir, "teleport.yaml")
	write := func(enabled string) {
		text := "version: v3\nteleport:\n  data_dir: " + dir + "\nauth_service:\n  enabled: " + enabled + "\nproxy_service:\n  enabled: no\n"
		if enabled == "no" {
			text = strings.Replace(text, "teleport:", "teleport:\n  proxy_server: proxy.example.com:443", 1)
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TELEPORT_CONFIG_FILE", config)

	write("no")
	fails(t, 1, "no way to the cluster: run tsh login", "status")
	fails(t, 1, "does not run the Auth Service", "-c", config, "status")
	fails(t, 2, "give --auth-server", "-i", identity, "status")

	write("yes")
	fails(t, 1, "the Auth Service is not running on this host", "status")
	serveLocal(t, filepath.Join(dir, "auth.sock"), "local.example.com")
	if got := ok(t, "", "status"); !strings.HasPrefix(got, "Cluster  local.example.com\n") {
		t.Errorf("on the Auth Service's host: %s", got)
	}
	if got := ok(t, "", "-i", identity, "--auth-server="+c.Addr, "status"); !strings.Contains(got, clienttest.Name) {
		t.Errorf("an identity file comes first: %s", got)
	}

	write("no")
	home, err := client.OpenHome(os.Getenv("TELEPORT_HOME"))
	if err != nil {
		t.Fatal(err)
	}
	profile := client.Profile{Proxy: c.Addr, User: "admin", Cluster: clienttest.Name}
	if err := home.Save(t.Context(), profile, c.Credentials("admin", time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := ok(t, "", "status"); !strings.Contains(got, clienttest.Name) {
		t.Errorf("with tsh's credentials: %s", got)
	}
	if got := ok(t, "", "--auth-server="+c.Addr, "status"); !strings.Contains(got, clienttest.Name) {
		t.Errorf("with tsh's credentials and an address: %s", got)
	}
	write("maybe")
	ok(t, "", "status") // a damaged file does not stop who is logged in
	fails(t, 1, "teleport.yaml", "-c", config, "status")
}

// serveLocal is an Auth Service with nothing but a status.
func serveLocal(t *testing.T, socket, name string) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerConfig{Authorize: func(_ context.Context, c rpc.Caller, _ string) error {
		if !c.Local {
			return errors.New("not local")
		}
		return nil
	}})
	statusv1.RegisterStatusServiceServer(s.Registrar(), localStatus{name: name})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeLocal(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type localStatus struct {
	statusv1.UnimplementedStatusServiceServer
	name string
}

func (s localStatus) GetStatus(context.Context, *statusv1.GetStatusRequest) (*statusv1.GetStatusResponse, error) {
	return &statusv1.GetStatusResponse{ClusterName: s.name, SoftwareVersion: "1"}, nil
}

func TestVersionAndHelp(t *testing.T) {
	setUp(t)
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if got := ok(t, "", args...); got != version.Line()+"\n" {
			t.Errorf("tctl %q: %q", args, got)
		}
	}
	if got := ok(t, ""); !strings.Contains(got, "Available Commands") {
		t.Errorf("no arguments: %q", got)
	}
	fails(t, 2, `unknown command "tokns": did you mean tokens?`, "tokns")
	fails(t, 2, `tctl tokens: unknown command "bogus"`, "tokens", "bogus")
	fails(t, 2, "unknown flag", "status", "--nope")
}

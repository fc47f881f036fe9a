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
	tokenv1 "teleport/api/token/v1"
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

func TestTokensAdd(t *testing.T) {
	c := setUp(t)
	c.Tokens.Secret = secret
	c.Status = &statusv1.GetStatusResponse{CaPins: []string{pin}, AuthAddrs: []string{"192.0.2.0:3025"}}
	want := `The invite token: ` + secret + `
This token will expire in 5 minutes.

Run this on the new node to join the cluster:

> teleport start \
   --roles=node \
   --token=` + secret + ` \
   --ca-pin=` + pin + ` \
   --auth-server=192.0.2.0:3025

Please note:

  - This invitation token will expire in 5 minutes
  - 192.0.2.0:3025 must be reachable from the new node
`
	if diff := cmp.Diff(want, ok(t, "", "tokens", "add", "--ttl=5m", "--type=node")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, ok(t, "", "nodes", "add", "--ttl=5m")); diff != "" {
		t.Error("nodes add: ", diff)
	}
	c.Status.ProxyAddrs = []string{"proxy.example.com:443"}
	c.Status.CaPins = append(c.Status.CaPins, pin)
	got := ok(t, "", "nodes", "add", "--ttl=90m", "--roles=Proxy,DB", "--token=my-own-secret-token", "--max-uses=2")
	for _, part := range []string{
		"expire in 90 minutes.", "--roles=db,proxy \\\n", "--token=my-own-secret-token", "--auth-server=proxy.example.com:443\n",
		"- proxy.example.com:443 must be reachable",
	} {
		if !strings.Contains(got, part) {
			t.Errorf("%q is not in %s", part, got)
		}
	}
	if strings.Count(got, "--ca-pin=") != 2 {
		t.Errorf("two pins are not both there: %s", got)
	}
	if req := c.Tokens.Requests[2]; req.GetMaxUses() != 2 || req.GetTtl().AsDuration() != 90*time.Minute {
		t.Errorf("asked for %v", req)
	}
	if got := ok(t, "", "tokens", "add", "--type=bot"); got != "The invite token: "+secret+"\nThis token will expire in 30 minutes.\n" {
		t.Errorf("bot token: %q", got)
	}
	if got := ok(t, "", "tokens", "add", "--type=node", "--format=text"); got != secret+"\n" {
		t.Errorf("--format=text: %q", got)
	}
	var made newToken
	out := ok(t, "", "tokens", "add", "--type=app,kube", "--labels=env=prod", "--format=json")
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Token != secret || made.ID != clienttest.Derive(secret) || made.Labels["env"] != "prod" {
		t.Errorf("--format=json: %s, %v", out, err)
	}
	fails(t, 2, "--type is missing", "tokens", "add")
	fails(t, 1, `unknown service type "nodes": use app, auth, bot, db, discovery, kube, node, proxy, windowsdesktop`, "tokens", "add", "--type=nodes")
	fails(t, 1, "for a second at least", "tokens", "add", "--type=node", "--ttl=0s")
	for _, typ := range []string{"app", "auth", "bot", "db", "discovery", "kube", "node", "proxy", "windowsdesktop"} {
		ok(t, "", "tokens", "add", "--type="+typ)
	}
}

func TestTokensLs(t *testing.T) {
	c := setUp(t)
	c.Tokens.List = []*tokenv1.ListedToken{
		{Id: "static-1", Roles: []string{"Node", "Proxy"}, Static: true},
		{Id: "efgh456", Roles: []string{"Proxy"}, Expires: timestamppb.New(now().Add(11 * time.Minute)), Labels: map[string]string{"env": "prod", "a": "b"}},
		{Id: "abcd123-insecure-do-not-use-this", Roles: []string{"Node"}, Expires: timestamppb.New(now().Add(128 * time.Second))},
		{Id: "user-1", User: "alice", Usage: "invite", Expires: timestamppb.New(now().Add(time.Hour))},
		{Id: "user-2", User: "bob", Usage: "reset", Expires: timestamppb.New(now().Add(2 * time.Hour))},
	}
	want := `Token                            Type        Labels       Expiry Time (UTC)
-------------------------------- ----------- ------------ --------------------------
abcd123-insecure-do-not-use-this Node                     30 Mar 23 18:15 UTC (2m8s)
efgh456                          Proxy       a=b,env=prod 30 Mar 23 18:23 UTC (11m)
user-1                           User signup user=alice   30 Mar 23 19:12 UTC (1h)
user-2                           User reset  user=bob     30 Mar 23 20:12 UTC (2h)
static-1                         Node,Proxy               never
`
	var out bytes.Buffer
	if err := tokenTable(tokenRows(c.Tokens.List), now()).Write(&out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	if got := ok(t, "", "tokens", "ls"); !strings.Contains(got, "User signup user=alice   30 Mar 23 19:12 UTC (expired)\n") {
		t.Errorf("tokens ls: %s", got)
	}
	if got := ok(t, "", "tokens", "ls", "--labels=env=prod"); strings.Count(got, "\n") != 3 || !strings.Contains(got, "efgh456") {
		t.Errorf("tokens ls --labels: %s", got)
	}
	var list []listedToken
	if err := json.Unmarshal([]byte(ok(t, "", "tokens", "ls", "--format=json")), &list); err != nil || len(list) != 5 || list[4].Expires != nil || !list[4].Static {
		t.Errorf("tokens ls --format=json: %v, %v", list, err)
	}
	c.Tokens.List = nil
	if got := ok(t, "", "tokens", "ls", "--format=json"); got != "[]\n" {
		t.Errorf("no tokens: %q", got)
	}
}

func TestTokensRm(t *testing.T) {
	c := setUp(t)
	id := clienttest.Derive(secret)
	list := func() {
		c.Tokens.List = []*tokenv1.ListedToken{{Id: id, Roles: []string{"Node"}}, {Id: "user-1", User: "alice", Usage: "invite"}}
		c.Tokens.Deleted = nil
	}
	for given, want := range map[string]string{id: id, secret: id, "user-1": "user-1"} {
		list()
		if got := ok(t, "", "tokens", "rm", given); got != "Token "+want+" has been deleted\n" {
			t.Errorf("tokens rm %s: %q", given, got)
		}
		if diff := cmp.Diff([]string{want}, c.Tokens.Deleted); diff != "" {
			t.Errorf("tokens rm %s sent %s", given, diff)
		}
	}
	list()
	if got := ok(t, "", "rm", "token/"+secret); strings.Contains(got, secret) {
		t.Errorf("the secret was shown: %q", got)
	}
	// What is not a token of the cluster is not sent to it: it may be a secret.
	const unknown = "another-secret-of-another-cluster"
	code, out, talk := tctl(t, "", "tokens", "rm", unknown)
	if code != 1 || strings.Contains(out+talk, unknown) || len(c.Tokens.Deleted) != 1 {
		t.Errorf("unknown token: %d, %q, %q, sent %v", code, out, talk, c.Tokens.Deleted)
	}
}

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

func TestUsers(t *testing.T) {
	c := setUp(t)
	url := "https://" + c.Addr + "/web/invite/inv1te#" + c.Trust.Pins()[0]
	want := `User "alice" has been created but has no password yet. Send the user this link, which works once and for 1h:
` + url + `

It is redeemed with: tsh login --invite='` + url + `'
`
	if diff := cmp.Diff(want, ok(t, "", "users", "add", "alice", "--roles=access,editor", "--logins=root, ubuntu", "--db-users=reader")); diff != "" {
		t.Error(diff)
	}
	user := func() *typesv1.UserSpec { return c.Resources.Get(types.KindUser, "alice").(*typesv1.User).GetSpec() }
	if diff := cmp.Diff([]string{"access", "editor"}, user().GetRoles()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"root", "ubuntu"}, user().GetTraits()["logins"].GetValues()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"reader"}, user().GetTraits()["db_users"].GetValues()); diff != "" {
		t.Error(diff)
	}
	ok(t, "", "users", "add", "bob", "--roles=access", "--ttl=48h")
	if diff := cmp.Diff("User  Roles\n----- -------------\nalice access,editor\nbob   access\n", ok(t, "", "users", "ls")); diff != "" {
		t.Error(diff)
	}
	ok(t, "", "users", "update", "alice", "--set-roles=auditor", "--set-logins=")
	if diff := cmp.Diff([]string{"auditor"}, user().GetRoles()); diff != "" {
		t.Error(diff)
	}
	if user().GetTraits()["logins"] != nil || user().GetTraits()["db_users"] == nil {
		t.Errorf("traits after the update: %v", user().GetTraits())
	}
	if got := ok(t, "", "users", "reset", "alice"); !strings.Contains(got, "works once and for 8h") || !strings.Contains(got, url) {
		t.Errorf("users reset: %s", got)
	}
	if got := ok(t, "", "users", "rm", "alice,bob"); got != "User \"alice\" has been deleted\nUser \"bob\" has been deleted\n" {
		t.Errorf("users rm: %s", got)
	}
	fails(t, 1, `there is no user "alice"`, "users", "rm", "alice")
	fails(t, 1, `there is no user "alice"`, "users", "reset", "alice")
	fails(t, 2, "--roles is missing", "users", "add", "carol")
	fails(t, 1, "from 1m to 48h", "users", "add", "carol", "--roles=access", "--ttl=49h")
	fails(t, 1, "from 1m to 24h", "users", "reset", "carol", "--ttl=25h")
	ok(t, "", "users", "add", "carol", "--roles=access")
	fails(t, 2, "nothing to change", "users", "update", "carol")
}

const roleYAML = `kind: role
version: v7
metadata:
  name: dev
spec:
  allow:
    logins: [ubuntu]
    node_labels:
      env: dev
`

func TestCreateGetRm(t *testing.T) {
	c := setUp(t)
	path := filepath.Join(t.TempDir(), "role.yaml")
	if err := os.WriteFile(path, []byte(roleYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ok(t, "", "create", path); got != "role \"dev\" has been created\n" {
		t.Errorf("create: %q", got)
	}
	fails(t, 1, `role "dev" exists already: use tctl create -f`, "create", path)
	if got := ok(t, "", "create", "-f", path); got != "role \"dev\" has been updated\n" {
		t.Errorf("create -f: %q", got)
	}
	two := roleYAML + "---\n" + strings.ReplaceAll(roleYAML, "dev", "ops")
	if got := ok(t, two, "create", "-f"); got != "role \"dev\" has been updated\nrole \"ops\" has been created\n" {
		t.Errorf("create from standard input: %q", got)
	}
	token := "kind: token\nversion: v2\nmetadata:\n  name: " + secret + "\nspec:\n  roles: [Node]\n  join_method: token\n"
	for _, flag := range []string{"-", "-f"} {
		if got := ok(t, token, "create", flag); strings.Contains(got, secret) || !strings.Contains(got, clienttest.Derive(secret)) {
			t.Errorf("create %s of a token: %q", flag, got)
		}
	}
	code, out, talk := tctl(t, token, "create")
	if code != 1 || strings.Contains(out+talk, secret) {
		t.Errorf("second creation of a token: %d, %q, %q", code, out, talk)
	}
	got := ok(t, "", "get", "role/dev")
	if !strings.Contains(got, "kind: role") || !strings.Contains(got, "name: dev") || strings.Contains(got, "name: ops") {
		t.Errorf("get role/dev: %s", got)
	}
	// What get prints, create takes.
	if got := ok(t, got, "create", "-f"); !strings.Contains(got, "has been updated") {
		t.Errorf("create of what get printed: %s", got)
	}
	if got := ok(t, "", "get", "roles,tokens"); strings.Count(got, "\n---\n")+1 != 3 && strings.Count(got, "kind: ") != 3 {
		t.Errorf("get roles,tokens: %s", got)
	}
	if got := ok(t, "", "get", "roles", "--format=text"); !strings.Contains(got, "----") || !strings.Contains(got, "ops") {
		t.Errorf("get roles --format=text: %s", got)
	}
	if got := ok(t, "", "rm", "role/dev"); got != "role \"dev\" has been deleted\n" {
		t.Errorf("rm: %q", got)
	}
	if c.Resources.Get(types.KindRole, "dev") != nil {
		t.Error("the role is still there")
	}
	fails(t, 1, `there is no role "dev"`, "get", "role/dev")
	fails(t, 2, `unknown kind "rolle"`, "get", "rolle")
	fails(t, 2, `unknown kind "credential"`, "get", "credential")
	fails(t, 2, "expected role/NAME", "rm", "role")
	fails(t, 1, "no such file", "create", filepath.Join(t.TempDir(), "none"))
	fails(t, 1, "no resource", "create")
	code, _, talk = tctl(t, strings.Replace(roleYAML, "logins", "lgoins", 1), "create")
	if code != 1 || !strings.Contains(talk, "standard input:7:") || !strings.Contains(talk, "lgoins") {
		t.Errorf("a misspelt field: %d, %q", code, talk)
	}
	code, _, talk = tctl(t, "kind: node\nversion: v2\nmetadata:\n  name: 1f58429134c4\nspec:\n  hostname: x\n", "create")
	if code != 1 || !strings.Contains(talk, "made by the cluster itself") {
		t.Errorf("creating a node: %d, %q", code, talk)
	}
}

func TestEdit(t *testing.T) {
	c := setUp(t)
	ok(t, roleYAML, "create")
	dir := t.TempDir()
	editor := func(script string) {
		path := filepath.Join(dir, "editor")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TELEPORT_EDITOR", path+" --wait")
	}
	t.Setenv("TMPDIR", dir)
	kept := func() int {
		list, _ := filepath.Glob(filepath.Join(dir, "tctl-edit-*"))
		return len(list)
	}
	editor(`[ "$1" = --wait ] && sed -i s/ubuntu/debian/ "$2"`)
	if got := ok(t, "", "edit", "role/dev"); got != "role \"dev\" has been updated\n" {
		t.Errorf("edit: %q", got)
	}
	if got := c.Resources.Get(types.KindRole, "dev").(*typesv1.Role).GetSpec().GetAllow().GetLogins(); len(got) != 1 || got[0] != "debian" {
		t.Errorf("logins are %v", got)
	}
	editor("true")
	if got := ok(t, "", "edit", "role/dev"); got != "Nothing was changed\n" {
		t.Errorf("edit without a change: %q", got)
	}
	editor("exit 3")
	fails(t, 1, "exit status 3", "edit", "role/dev")
	if n := kept(); n != 0 {
		t.Errorf("%d files were left behind", n)
	}
	editor(`sed -i "s/name: dev/name: ops/" "$2"`)
	fails(t, 1, "cannot be renamed", "edit", "role/dev")
	if n := kept(); n != 1 {
		t.Errorf("%d files with the user's text, want 1", n)
	}
	editor("echo kind: rolle > $2")
	fails(t, 1, "What you wrote is in ", "edit", "role/dev")
	fails(t, 2, "cannot be edited", "edit", "node/x")
}

func TestListKinds(t *testing.T) {
	setUp(t)
	got := ok(t, "", "list-kinds")
	for _, want := range []string{"role ", "token ", "node ", "create, get, edit, rm"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	if strings.Contains(got, "credential") {
		t.Errorf("a kind that is not served: %s", got)
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
	fails(t, 2, "--user and --out", "auth", "sign", "--user=bot")
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
	event("session.start", "T2000I", time.Minute, map[string]any{"user": "alice", "login": "root", "server_hostname": "web-1"})
	event("user.login", "T1000W", time.Hour, map[string]any{"user": "ev\x1bil", "success": false, "error": "wrong password"})
	event("instance.join", "TJ002I", 2*time.Hour, map[string]any{"host_id": "x"})
	want := `Time (UTC)          Type          Code   User     Details
------------------- ------------- ------ -------- ------------------------------------
2023-03-30 18:11:52 session.start T2000I alice    login=root server_hostname=web-1
2023-03-30 17:12:52 user.login    T1000W ev\x1bil error="wrong password" success=false
2023-03-30 16:12:52 instance.join TJ002I          host_id=x
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

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	"teleport/internal/client/clienttest"
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

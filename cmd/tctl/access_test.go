package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/clienttest"
	"teleport/internal/types"
)

// putWorld adds two users, two roles and some nodes.
func putWorld(t *testing.T, c *clienttest.Cluster, nodes int) {
	t.Helper()
	values := func(v ...string) *typesv1.Strings { return &typesv1.Strings{Values: v} }
	role := func(name string, allow, deny *typesv1.RoleConditions) {
		r := types.New(types.KindRole, name).(*typesv1.Role)
		r.Spec = &typesv1.RoleSpec{Allow: allow, Deny: deny}
		c.Resources.Put(r)
	}
	role("dev", &typesv1.RoleConditions{Logins: []string{"{{internal.logins}}"}, NodeLabels: map[string]*typesv1.Strings{"env": values("dev")}}, nil)
	role("no-db", nil, &typesv1.RoleConditions{NodeLabels: map[string]*typesv1.Strings{"team": values("db")}})
	user := func(name string, roles ...string) {
		u := types.New(types.KindUser, name).(*typesv1.User)
		u.Spec = &typesv1.UserSpec{Roles: roles, Traits: map[string]*typesv1.Strings{"logins": values("root")}}
		c.Resources.Put(u)
	}
	user("alice", "dev", "no-db", "gone")
	user("bob", "dev")
	for i := range nodes {
		n := types.New(types.KindNode, fmt.Sprintf("id-%d", i)).(*typesv1.Server)
		n.Metadata.Labels = map[string]string{"env": []string{"dev", "prod"}[i%2], "team": []string{"db", "web"}[i/2%2]}
		n.Spec = &typesv1.ServerSpec{Hostname: fmt.Sprintf("web-%d", i)}
		c.Resources.Put(n)
	}
}

func TestAccessExplain(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 3)
	want := `User   alice
Login  root
Node   web-0 id-0
Now    REFUSED: role "no-db" refuses login "root" on this node by deny.node_labels

Role   Verdict       Rule              Why
-----  ------------  ----------------  -----------------------------------------------------------
dev    allows        allow.logins      login "root" is among its logins, and its node_labels match
no-db  refuses       deny.node_labels  the node has team=db, and it denies team=db
gone   says nothing                    there is no role of this name, or you may not read it
`
	if diff := cmp.Diff(want, ok(t, "", "access", "explain", "alice", "root@web-0")); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct{ user, target, says string }{
		{"bob", "root@web-0", `allowed: role "dev" allows login "root" on this node by allow.logins`},
		{"bob", "root@id-2", "allowed"},
		{"bob", "root@web-1", `its allow.node_labels does not match`},
		{"bob", "root@web-1", `the node has env=prod, and it wants env=dev`},
		{"bob", "eve@web-0", `login "eve" is not among its logins: root`},
	} {
		if out := ok(t, "", "access", "explain", tt.user, tt.target); !strings.Contains(out, tt.says) {
			t.Errorf("explain %s %s: %q is not in\n%s", tt.user, tt.target, tt.says, out)
		}
	}
	fails(t, 1, `there is no user "eve"`, "access", "explain", "eve", "root@web-0")
	fails(t, 1, `there is no node "web-9"`, "access", "explain", "bob", "root@web-9")
	fails(t, 2, "expected LOGIN@NODE", "access", "explain", "bob", "web-0")
	fails(t, 2, "an argument is missing", "access", "explain")
	twin := types.New(types.KindNode, "id-9").(*typesv1.Server)
	twin.Spec = &typesv1.ServerSpec{Hostname: "web-0"}
	c.Resources.Put(twin)
	fails(t, 1, `2 nodes are named "web-0": use one of the ids id-0, id-9`, "access", "explain", "bob", "root@web-0")
}

func TestAccessExplainLock(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 1)
	lock := types.New(types.KindLock, "lock-1").(*typesv1.Lock)
	lock.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "bob"}, Message: "lost laptop"}
	c.Resources.Put(lock)
	old := types.New(types.KindLock, "lock-0").(*typesv1.Lock)
	old.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{ServerId: "id-0"}, Expires: timestamppb.New(now())}
	c.Resources.Put(old)
	var x explanation
	if err := json.Unmarshal([]byte(ok(t, "", "access", "explain", "bob", "root@web-0", "--format=json")), &x); err != nil {
		t.Fatal(err)
	}
	if x.Allowed || x.Lock != "lock-1" || x.Rule != "lock" || !strings.Contains(x.Reason, "lost laptop") {
		t.Errorf("explain = %+v, want refused by lock-1", x)
	}
}

func TestAccessExplainEvent(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 1)
	event := func(uid string, fields map[string]any) {
		s, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		c.Events = append(c.Events, &auditv1.Event{Event: "auth", Code: "T3007W", Uid: uid, Time: timestamppb.New(now()), Fields: s})
	}
	event("e-1", map[string]any{"user": "alice", "login": "root", "server_id": "id-0", "role": "no-web", "rule": "deny.logins", "reason": "role \"no-web\" refuses"})
	event("e-2", map[string]any{"user": "alice", "target": "web-0", "error": "no tunnel", "proxy_id": "p-1"})
	out := ok(t, "", "access", "explain", "e-1")
	for _, says := range []string{
		`Now    REFUSED: role "no-db" refuses`, `Then   REFUSED: role "no-web" refuses (2023-03-30 18:12:52 UTC)`, "the node has team=db",
	} {
		if !strings.Contains(out, says) {
			t.Errorf("%q is not in\n%s", says, out)
		}
	}
	fails(t, 1, "refused before a login was known, by p-1: no tunnel", "access", "explain", "e-2")
	fails(t, 1, `no event "e-9" of type auth or session.rejected`, "access", "explain", "e-9")
}

// roleFile writes a role that allows root and deploy on dev and prod, and tokens of nodes.
func roleFile(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "role.yaml")
	text := `kind: role
version: v8
metadata: {name: ` + name + `}
spec:
  allow:
    logins: [deploy, "{{internal.logins}}"]
    node_labels: {env: [prod]}
    rules:
    - resources: [token]
      verbs: [create]
      where: contains_all(set("Node"), resource.spec.roles)
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAccessSimulate(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 4)
	want := `Roles: dev. Users who hold them: 2. Nodes: 4. Logins gained: 6, lost: 3.

   User   Login   Node   Because
-  -----  ------  -----  ---------------------------------------------------------------------------------------------------------
-  alice  root    web-2  no role allows login "root" on this node: role "dev" comes near, but its allow.node_labels does not match
+  alice  deploy  web-3  role "dev" allows login "deploy" on this node by allow.logins
+  alice  root    web-3  role "dev" allows login "root" on this node by allow.logins
-  bob    root    web-0  no role allows login "root" on this node: role "dev" comes near, but its allow.node_labels does not match
+  bob    deploy  web-1  role "dev" allows login "deploy" on this node by allow.logins
+  bob    root    web-1  role "dev" allows login "root" on this node by allow.logins
-  bob    root    web-2  no role allows login "root" on this node: role "dev" comes near, but its allow.node_labels does not match
+  bob    deploy  web-3  role "dev" allows login "deploy" on this node by allow.logins
+  bob    root    web-3  role "dev" allows login "root" on this node by allow.logins

User   Verb    Kind   Before  After
-----  ------  -----  ------  -----
alice  create  token  none    some
bob    create  token  none    some
`
	got := ok(t, "", "access", "simulate", "-f", roleFile(t, "dev"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	summed := ok(t, "", "access", "simulate", "-f", roleFile(t, "dev"), "--limit=3")
	for _, says := range []string{"-  bob    root    2      web-0, web-2", "+  bob    deploy  2      web-1, web-3"} {
		if !strings.Contains(summed, says) {
			t.Errorf("%q is not in\n%s", says, summed)
		}
	}
	var result simulation
	if err := json.Unmarshal([]byte(ok(t, "", "access", "simulate", "-f", roleFile(t, "dev"), "--limit=3", "--format=json")), &result); err != nil ||
		result.Gained != 6 || result.Lost != 3 || len(result.Logins) != 3 || len(result.Summary) != 6 || !result.Complete {
		t.Errorf("--format=json: %+v, %v", result, err)
	}
}

// TestAccessSimulateNewRole: a role that nobody has changes nothing, but for those
// that it is given to.
func TestAccessSimulateNewRole(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 4)
	file := roleFile(t, "ops")
	if out := ok(t, "", "access", "simulate", "-f", file); !strings.Contains(out, "Users who hold them: 0.") || !strings.Contains(out, "--user=NAME") {
		t.Errorf("a role of nobody: %s", out)
	}
	out := ok(t, "", "access", "simulate", "-f", file, "--user=bob")
	if !strings.Contains(out, "Users who hold them: 1. Nodes: 4. Logins gained: 4, lost: 0.") || strings.Contains(out, "alice") {
		t.Errorf("a role for bob: %s", out)
	}
	if r := c.Resources.Get(types.KindRole, "ops"); r != nil {
		t.Error("a simulation stored the role")
	}
	fails(t, 1, `there is no user "eve"`, "access", "simulate", "-f", file, "--user=eve")
	fails(t, 2, "-f is missing", "access", "simulate")
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("kind: role\nversion: v8\nmetadata: {name: x}\nspec: {allow: {rules: [{resources: [token], verbs: [list], where: nonsense}]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, `spec.allow.rules[0].where: unknown name "nonsense"`, "access", "simulate", "-f", broken)
}

// TestAccessExplainBeyondRoles: what a node refuses although the roles allow the login.
func TestAccessExplainBeyondRoles(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 1)
	watched := types.New(types.KindRole, "watched").(*typesv1.Role)
	watched.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{RequireSessionJoin: []*typesv1.SessionRequirePolicy{{
		Name: "eyes", Filter: `contains(user.spec.roles, "dev")`, Kinds: []string{types.KindSSH}, Modes: []string{types.ModeModerator}, Count: 1,
	}}}}
	c.Resources.Put(watched)
	carl := types.New(types.KindUser, "carl").(*typesv1.User)
	carl.Spec = &typesv1.UserSpec{Roles: []string{"dev", "watched"}, Traits: map[string]*typesv1.Strings{"logins": {Values: []string{"root"}}}}
	c.Resources.Put(carl)
	stock := types.New(types.KindNode, "id-stock").(*typesv1.Server)
	stock.SubKind, stock.Metadata.Labels = types.SubKindOpenSSH, map[string]string{"env": "dev"}
	stock.Spec = &typesv1.ServerSpec{Hostname: "stock", Addr: "192.0.2.1:22"}
	c.Resources.Put(stock)
	explain := func(user, target, says string) {
		t.Helper()
		if out := ok(t, "", "access", "explain", user, target); !strings.Contains(out, says) {
			t.Errorf("explain %s %s: %q is not in\n%s", user, target, says, out)
		}
	}
	explain("carl", "root@web-0", "Now    allowed") // where others can join
	explain("carl", "root@stock", `REFUSED: role "watched" asks for company`)
	explain("bob", "root@stock", "Now    allowed")

	host := types.New(types.KindInstance, "id-stock").(*typesv1.Instance)
	host.Spec = &typesv1.InstanceSpec{Hostname: "stock", Token: "leaked"}
	c.Resources.Put(host)
	lock := types.New(types.KindLock, "token").(*typesv1.Lock)
	lock.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{JoinToken: "leaked"}}
	c.Resources.Put(lock)
	explain("bob", "root@stock", `REFUSED: lock targeting JoinToken:"leaked" is in force`)
	explain("bob", "root@web-0", "Now    allowed")
}

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

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

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/clienttest"
	"teleport/internal/types"
)

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
	code, _, talk = tctl(t, "kind: instance\nversion: v1\nmetadata:\n  name: 1f58429134c4\nspec:\n  hostname: x\n  roles: [Node]\n", "create")
	if code != 1 || !strings.Contains(talk, "made by the cluster itself") {
		t.Errorf("creating an instance: %d, %q", code, talk)
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
	fails(t, 2, "cannot be edited", "edit", "instance/x")
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

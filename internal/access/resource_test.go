package access_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/types"
)

func strs(values ...string) *typesv1.Strings { return &typesv1.Strings{Values: values} }

func TestApp(t *testing.T) {
	yes := role("yes", &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{"env": strs("dev")}}, nil)
	no := role("no", nil, &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{"tier": strs("secret")}})
	broken := role("broken", nil, &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{"env": strs("{{nothing}}")}})
	for _, c := range []struct {
		name   string
		roles  []*typesv1.Role
		labels map[string]string
		want   string
	}{
		{"nothing by default", nil, map[string]string{"env": "dev"}, ""},
		{"labels match", []*typesv1.Role{yes}, map[string]string{"env": "dev"}, "yes"},
		{"others do not", []*typesv1.Role{yes}, map[string]string{"env": "prod"}, ""},
		{"a denial wins", []*typesv1.Role{yes, no}, map[string]string{"env": "dev", "tier": "secret"}, ""},
		{"what denies and cannot be read denies", []*typesv1.Role{yes, broken}, map[string]string{"env": "dev"}, ""},
		{"labels of nodes say nothing", []*typesv1.Role{role("n", &typesv1.RoleConditions{NodeLabels: labels("*", "*")}, nil)}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := access.NewChecker(access.Subject{User: "u", Roles: c.roles}).App(c.labels)
			if d.Allowed != (c.want != "") || d.Allowed && d.Role != c.want || d.Reason == "" {
				t.Errorf("App = %+v, want role %q", d, c.want)
			}
			explained, verdicts := access.ExplainApp(access.Subject{User: "u", Roles: c.roles}, c.labels)
			if explained != d || len(verdicts) != len(c.roles) {
				t.Errorf("ExplainApp = %+v with %+v, decided %+v", explained, verdicts, d)
			}
		})
	}
}

// TestDatabaseAlgebra holds the decision against the words of the rule: no denial of any
// part by any role, and one role that allows all parts.
func TestDatabaseAlgebra(t *testing.T) {
	values := []string{"", "reader", "writer", "*", "{{external.team}}"}
	drawCondition := func(t *rapid.T, name string) *typesv1.RoleConditions {
		list := func(what string) []string {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(values[1:]), 0, 2, rapid.ID[string]).Draw(t, name+what)
		}
		c := &typesv1.RoleConditions{DbUsers: list("users"), DbNames: list("names")}
		switch rapid.IntRange(0, 2).Draw(t, name+"labels") {
		case 1:
			c.DbLabels = map[string]*typesv1.Strings{"env": strs("dev")}
		case 2:
			c.DbLabels = map[string]*typesv1.Strings{"*": strs("*")}
		}
		return c
	}
	rapid.Check(t, func(t *rapid.T) {
		traits := map[string][]string{"team": rapid.SliceOfN(rapid.SampledFrom([]string{"red", "*", "writer"}), 0, 2).Draw(t, "team")}
		var roles []*typesv1.Role
		for i := range rapid.IntRange(0, 3).Draw(t, "roles") {
			r := role(string(rune('a'+i)), drawCondition(t, "allow"), nil)
			if rapid.Bool().Draw(t, "denies") {
				r.Spec.Deny = drawCondition(t, "deny")
			}
			roles = append(roles, r)
		}
		env := rapid.SampledFrom([]string{"dev", "prod"}).Draw(t, "env")
		who := access.DatabaseLogin{
			User:    rapid.SampledFrom([]string{"", "reader", "writer", "red", "*"}).Draw(t, "user"),
			Name:    rapid.SampledFrom([]string{"", "reader", "red"}).Draw(t, "name"),
			AnyUser: rapid.IntRange(0, 3).Draw(t, "any user") == 0, AnyName: rapid.IntRange(0, 3).Draw(t, "any name") == 0,
		}
		has := func(list []string, s string, deny bool) bool {
			for _, v := range list {
				switch v {
				case "*":
					if s != "" || deny {
						return true
					}
				case "{{external.team}}":
					if s != "*" && s != "" && slices.Contains(traits["team"], s) {
						return true
					}
				case s:
					return true
				}
			}
			return false
		}
		match := func(sel map[string]*typesv1.Strings) bool {
			_, every := sel["*"]
			return every || len(sel) > 0 && env == "dev"
		}
		allowed, denied := false, false
		for _, r := range roles {
			a, d := r.GetSpec().GetAllow(), r.GetSpec().GetDeny()
			allowed = allowed || match(a.GetDbLabels()) && (who.AnyUser || has(a.GetDbUsers(), who.User, false)) && (who.AnyName || has(a.GetDbNames(), who.Name, false))
			denied = denied || match(d.GetDbLabels()) || !who.AnyUser && has(d.GetDbUsers(), who.User, true) || !who.AnyName && has(d.GetDbNames(), who.Name, true)
		}
		s := access.Subject{User: "u", Roles: roles, Traits: traits}
		c := access.NewChecker(s)
		labels := map[string]string{"env": env}
		got := c.Database(labels, who)
		if got.Allowed != (allowed && !denied) || got.Reason == "" {
			t.Fatalf("Database(%+v) = %+v, allowed %v, denied %v", who, got, allowed, denied)
		}
		explained, verdicts := access.ExplainDatabase(s, labels, who)
		allows, refuses := false, false
		for _, v := range verdicts {
			allows = allows || v.Verdict == access.VerdictAllows
			refuses = refuses || v.Verdict == access.VerdictRefuses
			if v.Why == "" || v.Rule == "" || v.Role == "" {
				t.Fatalf("verdict %+v says nothing", v)
			}
		}
		if explained != got || got.Allowed != (allows && !refuses) {
			t.Fatalf("explained %+v by %+v, decided %+v", explained, verdicts, got)
		}
		if got.Allowed && !c.SeesDatabase(labels).Allowed {
			t.Fatal("may log in to what it does not see")
		}
		users, _ := c.DatabaseUsers(labels)
		for _, u := range users {
			if !c.Database(labels, access.DatabaseLogin{User: u, AnyName: true}).Allowed {
				t.Fatalf("%q is listed and refused", u)
			}
		}
	})
}

func TestDatabaseUserOf(t *testing.T) {
	dev := map[string]*typesv1.Strings{"env": strs("dev")}
	with := func(name, mode string, allow, deny *typesv1.RoleConditions) *typesv1.Role {
		r := role(name, allow, deny)
		r.Spec.Options = &typesv1.RoleOptions{CreateDbUserMode: mode}
		return r
	}
	keep := with("keep", types.DatabaseUserKeep, &typesv1.RoleConditions{DbLabels: dev, DbRoles: []string{"reader", "{{external.team}}"}}, nil)
	drop := with("drop", types.DatabaseUserBestEffortDrop, &typesv1.RoleConditions{DbLabels: dev, DbRoles: []string{"writer"}}, nil)
	off := with("off", "", &typesv1.RoleConditions{DbLabels: dev, DbRoles: []string{"admin"}}, nil)
	noWriter := role("no", nil, &typesv1.RoleConditions{DbRoles: []string{"writer"}})
	for _, c := range []struct {
		name  string
		roles []*typesv1.Role
		env   string
		mode  string
		want  []string
	}{
		{"nobody asks", []*typesv1.Role{off}, "dev", types.DatabaseUserOff, nil},
		{"another database", []*typesv1.Role{keep}, "prod", types.DatabaseUserOff, nil},
		{"one asks", []*typesv1.Role{keep, off}, "dev", types.DatabaseUserKeep, []string{"reader", "red"}},
		{"kept if one says so", []*typesv1.Role{drop, keep}, "dev", types.DatabaseUserKeep, []string{"reader", "red", "writer"}},
		{"a role denied", []*typesv1.Role{drop, keep, noWriter}, "dev", types.DatabaseUserKeep, []string{"reader", "red"}},
		{"dropped", []*typesv1.Role{drop}, "dev", types.DatabaseUserBestEffortDrop, []string{"writer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := access.DatabaseUserOf(access.Subject{User: "u", Roles: c.roles, Traits: map[string][]string{"team": {"red"}}}, map[string]string{"env": c.env})
			if got.Mode != c.mode || !slices.Equal(got.Roles, c.want) {
				t.Errorf("DatabaseUserOf = %+v, want %s %v", got, c.mode, c.want)
			}
		})
	}
}

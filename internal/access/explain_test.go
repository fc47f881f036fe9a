package access_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
)

func TestExplainLogin(t *testing.T) {
	prod := map[string]string{"env": "prod", "team": "db"}
	everywhere := labels("*", "*")
	s := access.Subject{User: "bob", Traits: map[string][]string{"logins": {"root"}}, Roles: []*typesv1.Role{
		nil,
		role("all", conditions([]string{"{{internal.logins}}"}, everywhere), nil),
		role("dev", conditions([]string{"root"}, labels("env", "dev", "env", "test", "zone", "a", "team", "*")), nil),
		role("other-login", conditions([]string{"bob", "eve"}, everywhere), nil),
		role("no-login", conditions([]string{"{{external.none}}"}, everywhere), nil),
		role("no-labels", conditions([]string{"root"}, nil), nil),
		role("broken", conditions([]string{"{{x}}"}, labels("a", "^($")), nil),
		role("no-prod", nil, conditions(nil, labels("env", "prod-*", "env", "prod"))),
		role("no-root", nil, conditions([]string{"root"}, nil)),
		role("nobody", nil, conditions([]string{"*"}, nil)),
		role("nowhere", nil, conditions(nil, everywhere)),
	}}
	d, verdicts := access.ExplainLogin(s, "root", prod)
	if d.Allowed || d.Role != "no-prod" || d.Rule != "deny.node_labels" {
		t.Errorf("decision = %+v, want refused by no-prod", d)
	}
	var got []string
	for _, v := range verdicts {
		got = append(got, strings.Join([]string{v.Role, v.Verdict, v.Rule, v.Why}, " | "))
	}
	want := []string{
		`all | allows | allow.logins | login "root" is among its logins, and its node_labels match`,
		`dev | says nothing | allow.node_labels | the node has env=prod, and it wants env=dev|test; the node has no label zone, and it wants zone=a`,
		`other-login | says nothing | allow.logins | login "root" is not among its logins: bob, eve`,
		`no-login | says nothing | allow.logins | it gives this user no logins`,
		`no-labels | says nothing | allow.node_labels | it has no node_labels, so it is about no node`,
		`broken | says nothing | allow.logins | one of its logins cannot be understood: unknown template "{{x}}": use {{internal.logins}}, {{external.name}} or {{external["name"]}}`,
		`no-prod | refuses | deny.node_labels | the node has env=prod, and it denies env=prod-*|prod`,
		`no-root | refuses | deny.logins | it denies login "root"`,
		`nobody | refuses | deny.logins | it denies every login`,
		`nowhere | refuses | deny.node_labels | it denies every node`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestExplainAgrees: the verdicts of the roles add up to the decision.
func TestExplainAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		s := access.Subject{User: "u", Roles: drawRoles(t, "base", rapid.IntRange(0, 4).Draw(t, "n"), true), Traits: traits}
		d, verdicts := access.ExplainLogin(s, a.login, a.labels)
		allows, refuses := false, false
		for _, v := range verdicts {
			allows = allows || v.Verdict == access.VerdictAllows
			refuses = refuses || v.Verdict == access.VerdictRefuses
			if v.Why == "" || v.Rule == "" {
				t.Fatalf("verdict %+v says nothing", v)
			}
		}
		if want := access.Login(s, a.login, a.labels); want != d {
			t.Fatalf("explained %+v, decided %+v", d, want)
		}
		if d.Allowed != (allows && !refuses) {
			t.Fatalf("decision %+v does not follow from %+v", d, verdicts)
		}
	})
}

func TestDifferences(t *testing.T) {
	nodes := []*typesv1.Server{
		{Metadata: &typesv1.Metadata{Name: "a", Labels: map[string]string{"env": "dev"}}, Spec: &typesv1.ServerSpec{}},
		{Metadata: &typesv1.Metadata{Name: "b", Labels: map[string]string{"env": "prod"}}, Spec: &typesv1.ServerSpec{}},
	}
	before := access.Subject{User: "u", Roles: []*typesv1.Role{role("r", conditions([]string{"root", "bob"}, labels("env", "dev")), nil)}}
	after := access.Subject{User: "u", Roles: []*typesv1.Role{role("r", conditions([]string{"bob", "eve"}, labels("*", "*")), nil)}}
	var got []string
	access.Differences(before, after, nodes, func(d access.Difference) bool {
		sign := "-"
		if d.Gained {
			sign = "+"
		}
		if d.Gained != d.Decision.Allowed || d.Decision.Reason == "" {
			t.Errorf("difference %+v", d)
		}
		got = append(got, sign+d.Login+"@"+d.Server.GetMetadata().GetName())
		return true
	})
	if diff := cmp.Diff([]string{"+eve@a", "-root@a", "+bob@b", "+eve@b"}, got); diff != "" {
		t.Error(diff)
	}
	n := 0
	access.Differences(before, after, nodes, func(access.Difference) bool { n++; return false })
	if n != 1 {
		t.Errorf("%d differences after the end was asked for", n)
	}
}

func TestReach(t *testing.T) {
	c := access.NewChecker(access.Subject{Roles: []*typesv1.Role{
		role("a", where("token", `resource.metadata.name == "x"`), nil), role("b", rules("role", "list"), nil),
	}})
	for kind, want := range map[string]string{"token": access.ReachSome, "role": access.ReachAll, "user": access.ReachNone} {
		if got := c.Reach(kind, "list"); got != want {
			t.Errorf("Reach(%q) = %q, want %q", kind, got, want)
		}
	}
}

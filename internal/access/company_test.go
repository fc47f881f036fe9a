package access_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
)

func asks(name, filter string, modes []string, count int32, leave string) *typesv1.SessionRequirePolicy {
	return &typesv1.SessionRequirePolicy{Name: name, Filter: filter, Kinds: []string{"ssh"}, Modes: modes, Count: count, OnLeave: leave}
}

func asking(name string, policies ...*typesv1.SessionRequirePolicy) *typesv1.Role {
	return role(name, &typesv1.RoleConditions{RequireSessionJoin: policies}, nil)
}

func attendee(name, mode string, roles ...string) access.Attendee {
	a := access.Attendee{Subject: access.Subject{User: name, Traits: map[string][]string{"team": {"ops"}}}, Mode: mode}
	for _, r := range roles {
		a.Roles = append(a.Roles, role(r, nil, nil))
	}
	return a
}

const isAuditor = `contains(user.spec.roles, "auditor")`

func TestRequirements(t *testing.T) {
	moderator, peer := []string{"moderator"}, []string{"peer", "moderator"}
	oneAuditor := asks("one", isAuditor, moderator, 1, "")
	twoAuditors := asks("two", isAuditor, moderator, 2, "")
	ops := asks("ops", `contains(user.spec.traits["team"], "ops") && user.metadata.name != "mallory"`, peer, 1, "")
	mia, max := attendee("mia", "moderator", "auditor"), attendee("max", "moderator", "auditor", "dev")
	for _, tt := range []struct {
		name    string
		roles   []*typesv1.Role
		company []access.Attendee
		met     bool
		needs   string
	}{
		{"nothing_asked", []*typesv1.Role{role("plain", nil, nil)}, nil, true, ""},
		{"alone", []*typesv1.Role{asking("r", oneAuditor)}, nil, false, `[1 more moderator ("one")]`},
		{"auditor", []*typesv1.Role{asking("r", oneAuditor)}, []access.Attendee{mia}, true, ""},
		{"wrong_role", []*typesv1.Role{asking("r", oneAuditor)}, []access.Attendee{attendee("mia", "moderator", "dev")}, false, `[1 more moderator ("one")]`},
		{"wrong_mode", []*typesv1.Role{asking("r", oneAuditor)}, []access.Attendee{attendee("mia", "observer", "auditor")}, false, `[1 more moderator ("one")]`},
		{"owner_does_not_count", []*typesv1.Role{asking("r", oneAuditor)}, []access.Attendee{attendee("owner", "moderator", "auditor")}, false, `[1 more moderator ("one")]`},
		{"one_of_two", []*typesv1.Role{asking("r", twoAuditors)}, []access.Attendee{mia}, false, `[1 more moderator ("two")]`},
		{"same_twice", []*typesv1.Role{asking("r", twoAuditors)}, []access.Attendee{mia, mia}, false, `[1 more moderator ("two")]`},
		{"two", []*typesv1.Role{asking("r", twoAuditors)}, []access.Attendee{mia, max}, true, ""},
		{"or_inside_a_role", []*typesv1.Role{asking("r", twoAuditors, ops)}, []access.Attendee{attendee("eve", "peer")}, true, ""},
		{"or_inside_a_role_none", []*typesv1.Role{asking("r", twoAuditors, ops)}, nil, false, `[2 more moderators ("two"), or 1 more peer or moderator ("ops")]`},
		{"and_across_roles", []*typesv1.Role{asking("a", oneAuditor), asking("b", ops)}, []access.Attendee{attendee("eve", "peer")}, false, `[1 more moderator ("one")]`},
		{"and_across_roles_one_person", []*typesv1.Role{asking("a", oneAuditor), asking("b", ops)}, []access.Attendee{mia}, true, ""},
		{"by_name", []*typesv1.Role{asking("r", ops)}, []access.Attendee{attendee("mallory", "peer")}, false, `[1 more peer or moderator ("ops")]`},
		{"other_kind", []*typesv1.Role{asking("r", &typesv1.SessionRequirePolicy{Name: "k", Filter: isAuditor, Kinds: []string{"k8s"}, Modes: moderator, Count: 1})}, nil, true, ""},
		{"every_kind", []*typesv1.Role{asking("r", &typesv1.SessionRequirePolicy{Name: "k", Filter: isAuditor, Kinds: []string{"*"}, Modes: moderator, Count: 1})}, nil, false, `[1 more moderator ("k")]`},
		{"older_spelling", []*typesv1.Role{asking("r", asks("old", `contains(user.roles, "auditor") && user.name == "mia"`, moderator, 1, ""))}, []access.Attendee{mia}, true, ""},
		{"broken_counts_nobody", []*typesv1.Role{asking("r", asks("bad", `contains(user.spec.roles`, moderator, 1, ""))}, []access.Attendee{mia}, false, `[1 more moderator ("bad")]`},
		{"zero_is_one", []*typesv1.Role{asking("r", asks("zero", isAuditor, moderator, 0, ""))}, nil, false, `[1 more moderator ("zero")]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := access.RequirementsOf(access.Subject{User: "owner", Roles: tt.roles}, "ssh")
			got := r.Check(tt.company)
			needs := ""
			if len(got.Needs) > 0 {
				needs = fmt.Sprint(got.Needs)
			}
			if got.Met != tt.met || needs != tt.needs {
				t.Errorf("Check = %v %s, want %v %s", got.Met, needs, tt.met, tt.needs)
			}
		})
	}
	r := access.RequirementsOf(access.Subject{User: "owner", Roles: []*typesv1.Role{asking("prod", oneAuditor)}}, "ssh")
	if got, want := r.Check(nil).Needs[0].Verbose(), `1 more moderator of whom `+isAuditor+` is true ("one"), as role "prod" asks`; got != want {
		t.Errorf("Verbose = %s, want %s", got, want)
	}
}

func TestAlone(t *testing.T) {
	watched := access.Subject{User: "bob", Roles: []*typesv1.Role{role("plain", nil, nil), asking("watched", asks("one", isAuditor, []string{"peer"}, 1, ""))}}
	if d := access.Alone(watched, "ssh"); d.Allowed || d.Role != "watched" || d.Rule != access.RuleCompany {
		t.Errorf("Alone = %+v, want a refusal by role watched", d)
	}
	if d := access.Alone(watched, "db"); !d.Allowed {
		t.Errorf("Alone in another kind of session = %+v", d)
	}
	if d := access.Alone(access.Subject{User: "bob"}, "ssh"); !d.Allowed {
		t.Errorf("Alone without roles = %+v", d)
	}
}

func TestPauses(t *testing.T) {
	moderator := []string{"moderator"}
	pause, end := asks("pause", isAuditor, moderator, 1, "pause"), asks("end", `contains(user.spec.roles, "lead")`, moderator, 1, "terminate")
	mia, lea := attendee("mia", "moderator", "auditor"), attendee("lea", "moderator", "lead")
	for _, tt := range []struct {
		name          string
		roles         []*typesv1.Role
		before, after []access.Attendee
		want          bool
	}{
		{"pause", []*typesv1.Role{asking("r", pause)}, []access.Attendee{mia}, nil, true},
		{"terminate", []*typesv1.Role{asking("r", end)}, []access.Attendee{lea}, nil, false},
		{"default_is_terminate", []*typesv1.Role{asking("r", asks("d", isAuditor, moderator, 1, ""))}, []access.Attendee{mia}, nil, false},
		{"by_the_policy_that_was_met", []*typesv1.Role{asking("r", pause, end)}, []access.Attendee{mia}, nil, true},
		{"by_the_other_policy_that_was_met", []*typesv1.Role{asking("r", pause, end)}, []access.Attendee{lea}, nil, false},
		{"both_were_met", []*typesv1.Role{asking("r", pause, end)}, []access.Attendee{mia, lea}, nil, false},
		{"the_stricter_of_two_roles", []*typesv1.Role{asking("a", pause), asking("b", end)}, []access.Attendee{mia, lea}, nil, false},
		{"the_other_role_is_content", []*typesv1.Role{asking("a", pause), asking("b", end)}, []access.Attendee{mia, lea}, []access.Attendee{lea}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := access.RequirementsOf(access.Subject{User: "owner", Roles: tt.roles}, "ssh")
			before, after := r.Check(tt.before), r.Check(tt.after)
			if !before.Met || after.Met {
				t.Fatalf("met before %v, after %v", before.Met, after.Met)
			}
			if got := r.Pauses(before, after); got != tt.want {
				t.Errorf("Pauses = %v, want %v", got, tt.want)
			}
		})
	}
}

func lets(name string, roles, kinds, modes []string) *typesv1.SessionJoinPolicy {
	return &typesv1.SessionJoinPolicy{Name: name, Roles: roles, Kinds: kinds, Modes: modes}
}

func TestMayJoin(t *testing.T) {
	ssh, all := []string{"ssh"}, []string{"observer", "peer", "moderator"}
	joins := func(name string, allow, deny *typesv1.SessionJoinPolicy) *typesv1.Role {
		r := role(name, &typesv1.RoleConditions{}, &typesv1.RoleConditions{})
		if allow != nil {
			r.Spec.Allow.JoinSessions = []*typesv1.SessionJoinPolicy{allow}
		}
		if deny != nil {
			r.Spec.Deny.JoinSessions = []*typesv1.SessionJoinPolicy{deny}
		}
		return r
	}
	prod := joins("auditor", lets("prod", []string{"prod-*"}, ssh, []string{"observer", "moderator"}), nil)
	for _, tt := range []struct {
		name    string
		subject access.Subject
		owner   access.Gathering
		mode    string
		allowed bool
		role    string
		rule    string
	}{
		{"moderator", access.Subject{User: "mia", Roles: []*typesv1.Role{prod}}, access.Gathering{"ssh", "bob", []string{"dev", "prod-db"}}, "moderator", true, "auditor", "allow.join_sessions"},
		{"other_mode", access.Subject{User: "mia", Roles: []*typesv1.Role{prod}}, access.Gathering{"ssh", "bob", []string{"prod-db"}}, "peer", false, "", "allow.join_sessions"},
		{"other_role", access.Subject{User: "mia", Roles: []*typesv1.Role{prod}}, access.Gathering{"ssh", "bob", []string{"dev"}}, "moderator", false, "", "allow.join_sessions"},
		{"other_kind", access.Subject{User: "mia", Roles: []*typesv1.Role{prod}}, access.Gathering{"db", "bob", []string{"prod-db"}}, "moderator", false, "", "allow.join_sessions"},
		{"no_owner_roles", access.Subject{User: "mia", Roles: []*typesv1.Role{joins("r", lets("x", []string{"*"}, ssh, all), nil)}}, access.Gathering{"ssh", "bob", nil}, "observer", false, "", "allow.join_sessions"},
		{"no_roles", access.Subject{User: "mia"}, access.Gathering{"ssh", "bob", []string{"dev"}}, "observer", false, "", "allow.join_sessions"},
		{"denied", access.Subject{User: "mia", Roles: []*typesv1.Role{prod, joins("no", nil, lets("x", []string{"prod-db"}, []string{"*"}, []string{"moderator"}))}}, access.Gathering{"ssh", "bob", []string{"prod-db"}}, "moderator", false, "no", "deny.join_sessions"},
		{"own_as_peer", access.Subject{User: "bob"}, access.Gathering{"ssh", "bob", []string{"dev"}}, "peer", true, "", "owner"},
		{"own_as_moderator", access.Subject{User: "bob"}, access.Gathering{"ssh", "bob", []string{"dev"}}, "moderator", false, "", "allow.join_sessions"},
		{"own_denied", access.Subject{User: "bob", Roles: []*typesv1.Role{joins("no", nil, lets("x", []string{"*"}, ssh, all))}}, access.Gathering{"ssh", "bob", []string{"dev"}}, "peer", false, "no", "deny.join_sessions"},
		{"locked", access.Subject{User: "bob", Locks: []*typesv1.Lock{{Spec: &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "bob"}}}}}, access.Gathering{"ssh", "bob", []string{"dev"}}, "peer", false, "", "lock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := access.NewChecker(tt.subject).MayJoin(tt.owner, tt.mode)
			if d.Allowed != tt.allowed || d.Role != tt.role || d.Rule != tt.rule || d.Reason == "" {
				t.Errorf("MayJoin = %+v, want %v by %q %q", d, tt.allowed, tt.role, tt.rule)
			}
		})
	}
	mia := access.NewChecker(access.Subject{User: "mia", Roles: []*typesv1.Role{prod}})
	if d := mia.SeesSession(access.Gathering{"ssh", "bob", []string{"prod-db"}}); !d.Allowed {
		t.Errorf("a session that may be joined is not listed: %+v", d)
	}
	if d := mia.SeesSession(access.Gathering{"ssh", "bob", []string{"dev"}}); d.Allowed {
		t.Errorf("a session that may not be joined is listed: %+v", d)
	}
	if d := mia.SeesSession(access.Gathering{"ssh", "mia", nil}); !d.Allowed || d.Rule != access.RuleOwner {
		t.Errorf("an own session is not listed: %+v", d)
	}
	if !mia.JoinsSome("ssh").Allowed || mia.JoinsSome("db").Allowed || access.NewChecker(access.Subject{User: "bob"}).JoinsSome("ssh").Allowed {
		t.Error("JoinsSome is wrong about who joins sessions at all")
	}
}

func TestFiltersAreCheckedWhenWritten(t *testing.T) {
	for filter, says := range map[string]string{
		isAuditor:                                "",
		`contains(user.traits["team"], "ops")`:   "",
		`resource.spec.roles == user.spec.roles`: "only the participant is known",
		`contains(user.spec.roles, `:             "is not a condition",
		`user.spec.roles`:                        "expected true or false",
		`user.status.x == "y"`:                   "unknown field",
		`contains(session.participants, "x")`:    "unknown name",
		strings.Repeat("!", 300) + `(1 == 1)`:    "too large",
	} {
		err := access.Check(asking("r", asks("p", filter, []string{"peer"}, 1, "")))
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "spec.allow.require_session_join[0].filter")) {
			t.Errorf("Check of %s = %v, want %q", filter, err, says)
		}
	}
}

func drawPolicies(t *rapid.T, name string) []*typesv1.SessionRequirePolicy {
	var out []*typesv1.SessionRequirePolicy
	for i := range rapid.IntRange(0, 2).Draw(t, name+".n") {
		out = append(out, asks(
			fmt.Sprint("p", i), fmt.Sprintf(`contains(user.spec.roles, %q)`, rapid.SampledFrom([]string{"a", "b"}).Draw(t, name+".role")),
			rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"observer", "peer", "moderator"}), 1, 2, rapid.ID[string]).Draw(t, name+".modes"),
			rapid.Int32Range(1, 3).Draw(t, name+".count"), rapid.SampledFrom([]string{"", "pause", "terminate"}).Draw(t, name+".leave")))
	}
	return out
}

func drawCompany(t *rapid.T, name string) []access.Attendee {
	var out []access.Attendee
	for range rapid.IntRange(0, 5).Draw(t, name+".n") {
		out = append(out, attendee(
			rapid.SampledFrom([]string{"owner", "x", "y", "z"}).Draw(t, name+".user"), rapid.SampledFrom([]string{"observer", "peer", "moderator"}).Draw(t, name+".mode"),
			rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, name+".roles")...))
	}
	return out
}

// More company never makes things worse, more policies in one role neither, and more
// roles never better; order and repetition do not matter; the owner alone is nobody.
func TestRequirementsAreMonotonous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var roles []*typesv1.Role
		for i := range rapid.IntRange(0, 3).Draw(t, "roles") {
			roles = append(roles, asking(fmt.Sprint("r", i), drawPolicies(t, fmt.Sprint("r", i))...))
		}
		check := func(roles []*typesv1.Role, company []access.Attendee) bool {
			return access.RequirementsOf(access.Subject{User: "owner", Roles: roles}, "ssh").Check(company).Met
		}
		company, more := drawCompany(t, "company"), drawCompany(t, "more")
		met := check(roles, company)
		if met && !check(roles, append(slices.Clone(company), more...)) {
			t.Fatal("more company made it worse")
		}
		twice := append(slices.Clone(company), company...)
		slices.Reverse(twice)
		if met != check(roles, twice) {
			t.Fatal("order or repetition matters")
		}
		alone := slices.DeleteFunc(slices.Clone(company), func(a access.Attendee) bool { return a.User == "owner" })
		if met != check(roles, alone) {
			t.Fatal("the owner counts")
		}
		if !met && check(append(slices.Clone(roles), asking("another", drawPolicies(t, "another")...)), company) {
			t.Fatal("one more role made it better")
		}
		// Each role by itself decides, and all must.
		each := true
		for _, r := range roles {
			each = each && check([]*typesv1.Role{r}, company)
			single := len(r.GetSpec().GetAllow().GetRequireSessionJoin()) == 0
			for _, p := range r.GetSpec().GetAllow().GetRequireSessionJoin() {
				single = single || check([]*typesv1.Role{asking("single", p)}, company)
			}
			if single != check([]*typesv1.Role{r}, company) {
				t.Fatal("a role is not content with one of its policies")
			}
		}
		if met != each {
			t.Fatal("roles do not add up")
		}
	})
}

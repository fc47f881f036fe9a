package access_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/types"
)

func labels(kv ...string) map[string]*typesv1.Strings {
	out := map[string]*typesv1.Strings{}
	for i := 0; i+1 < len(kv); i += 2 {
		s := out[kv[i]]
		if s == nil {
			s = &typesv1.Strings{}
			out[kv[i]] = s
		}
		s.Values = append(s.Values, kv[i+1])
	}
	return out
}

func role(name string, allow, deny *typesv1.RoleConditions) *typesv1.Role {
	return &typesv1.Role{
		Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: name},
		Spec: &typesv1.RoleSpec{Allow: allow, Deny: deny},
	}
}

func conditions(logins []string, l map[string]*typesv1.Strings) *typesv1.RoleConditions {
	return &typesv1.RoleConditions{Logins: logins, NodeLabels: l}
}

func TestLogin(t *testing.T) {
	prod := map[string]string{"env": "prod", "team": "db"}
	everywhere := labels("*", "*")
	tests := []struct {
		name   string
		roles  []*typesv1.Role
		traits map[string][]string
		login  string
		labels map[string]string
		want   bool
		role   string
		rule   string
	}{
		{name: "no_roles", login: "root", labels: prod, rule: "allow.logins"},
		{name: "empty_role", roles: []*typesv1.Role{role("r", nil, nil)}, login: "root", labels: prod, rule: "allow.logins"},
		{name: "nil_role", roles: []*typesv1.Role{nil}, login: "root", rule: "allow.logins"},
		{name: "login_without_labels", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, nil), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "labels_without_login", roles: []*typesv1.Role{role("r", conditions(nil, everywhere), nil)}, login: "root", labels: prod, rule: "allow.logins"},
		{name: "allowed", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, everywhere), nil)}, login: "root", want: true, role: "r", rule: "allow.logins"},
		{name: "same_role_must_allow_both", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, labels("env", "dev")), nil), role("b", conditions([]string{"bob"}, everywhere), nil),
		}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "all_keys", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, labels("env", "prod", "team", "web")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "list_is_or", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, labels("env", "dev", "env", "prod", "team", "db")), nil)}, login: "root", labels: prod, want: true, role: "r", rule: "allow.logins"},
		{name: "key_must_exist", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, labels("zone", "*")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "wildcard_key_and_other", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, labels("*", "*", "env", "dev")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "wildcard_key_with_value_allows_nothing", roles: []*typesv1.Role{role("r", conditions([]string{"root"}, labels("*", "prod")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "deny_login_wins", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), nil), role("d", nil, conditions([]string{"root"}, nil)),
		}, login: "root", role: "d", rule: "deny.logins"},
		{name: "deny_every_login", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), conditions([]string{"*"}, nil)),
		}, login: "root", role: "a", rule: "deny.logins"},
		{name: "deny_any_label", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), nil), role("d", nil, conditions(nil, labels("env", "dev", "team", "db"))),
		}, login: "root", labels: prod, role: "d", rule: "deny.node_labels"},
		{name: "deny_all_labels_without_labels", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), conditions(nil, everywhere)),
		}, login: "root", role: "a", rule: "deny.node_labels"},
		{name: "broken_deny_pattern_denies", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), conditions(nil, labels("x", "^($"))),
		}, login: "root", role: "a", rule: "deny.node_labels"},
		{name: "broken_deny_template_denies", roles: []*typesv1.Role{
			role("a", conditions([]string{"root"}, everywhere), conditions([]string{"{{future.thing}}"}, nil)),
		}, login: "root", role: "a", rule: "deny.logins"},
		{name: "broken_allow_pattern_allows_nothing", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, labels("env", "prod", "team", "^($")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "unknown_template_has_no_value", roles: []*typesv1.Role{role("a", conditions([]string{"{{internal.nothing}}", "{{x}}"}, everywhere), nil)}, traits: map[string][]string{"nothing": {"root"}, "x": {"root"}}, login: "root", rule: "allow.logins"},
		{name: "star_is_no_login", roles: []*typesv1.Role{role("a", conditions([]string{"*"}, everywhere), nil)}, login: "*", rule: "allow.logins"},
		{name: "star_allows_no_login", roles: []*typesv1.Role{role("a", conditions([]string{"*"}, everywhere), nil)}, login: "root", rule: "allow.logins"},
		{name: "comma_is_no_login", roles: []*typesv1.Role{role("a", conditions([]string{"bob,root"}, everywhere), nil)}, login: "bob,root", rule: "allow.logins"},
		{name: "empty_login", roles: []*typesv1.Role{role("a", conditions([]string{""}, everywhere), nil)}, login: "", rule: "allow.logins"},
		{name: "trait", roles: []*typesv1.Role{role("a", conditions([]string{"{{internal.logins}}"}, everywhere), nil)}, traits: map[string][]string{"logins": {"bob", "root"}}, login: "root", want: true, role: "a", rule: "allow.logins"},
		{name: "trait_with_text", roles: []*typesv1.Role{role("a", conditions([]string{`svc-{{external["my team"]}}`}, everywhere), nil)}, traits: map[string][]string{"my team": {"db"}}, login: "svc-db", want: true, role: "a", rule: "allow.logins"},
		{name: "trait_in_label", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, labels("team", "{{external.team}}")), nil)}, traits: map[string][]string{"team": {"web", "db"}}, login: "root", labels: prod, want: true, role: "a", rule: "allow.logins"},
		{name: "trait_brings_no_glob", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, labels("team", "{{external.team}}")), nil)}, traits: map[string][]string{"team": {"*", "^.*$"}}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "trait_without_value", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, labels("team", "{{external.team}}*")), nil)}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "empty_trait_is_no_value", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, labels("team", "{{external.team}}*")), nil)}, traits: map[string][]string{"team": {""}}, login: "root", labels: prod, rule: "allow.node_labels"},
		{name: "trait_denies", roles: []*typesv1.Role{role("a", conditions([]string{"root"}, everywhere), conditions(nil, labels("team", "{{external.not}}")))}, traits: map[string][]string{"not": {"db"}}, login: "root", labels: prod, role: "a", rule: "deny.node_labels"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := access.Login(access.Subject{User: "u", Roles: tt.roles, Traits: tt.traits}, tt.login, tt.labels)
			if d.Allowed != tt.want || d.Role != tt.role || d.Rule != tt.rule || d.Reason == "" {
				t.Errorf("Login(%q) = %+v, want allowed %v by role %q, rule %q", tt.login, d, tt.want, tt.role, tt.rule)
			}
		})
	}
}

func TestLabelValues(t *testing.T) {
	tests := []struct {
		name, pattern, value string
		want                 bool
	}{
		{"literal", "prod", "prod", true},
		{"literal_is_whole", "prod", "prod-1", false},
		{"case_counts", "prod", "Prod", false},
		{"star", "*", "", true},
		{"prefix", "prod-*", "prod-eu", true},
		{"prefix_of_other", "prod-*", "xprod-eu", false},
		{"suffix", "*-eu", "prod-eu", true},
		{"middle", "a*b*c", "aXbYc", true},
		{"middle_order", "a*c*b", "aXbYc", false},
		{"ends_may_not_overlap", "aba*aba", "aba", false},
		{"ends_touch", "ab*ba", "abba", true},
		{"double_star", "a**b", "ab", true},
		{"dot_is_literal", "a.c", "abc", false},
		{"question_is_literal", "a?c", "abc", false},
		{"regexp", "^prod-[0-9]+$", "prod-12", true},
		{"regexp_whole", "^prod$", "prod\n", false},
		{"regexp_alternative_is_anchored", "^a|b$", "axx", false},
		{"regexp_alternative", "^a|b$", "b", true},
		{"regexp_empty", "^$", "", true},
		{"regexp_flag", "^(?i)prod$", "PROD", true},
		{"regexp_multiline_flag", "^(?m)a$", "a\nb", false},
		{"half_regexp_is_literal", "^prod", "^prod", true},
		{"regexp_with_glob_is_regexp", "^a*$", "aaa", true},
		{"escaped_end_matches_nothing", `^a\$`, "a$", false},
		{"quote_over_end_matches_nothing", `^\Qa$`, "a$", false},
		{"repeat_bomb_matches_nothing", "^((a{1000}){1000}){1000}$", "a", false},
		{"repeats_matches_nothing", "^(a{0,1000}){5}$", "a", false},
		{"many_repeats_match_nothing", "^" + strings.Repeat("a{1000}?", 100) + "$", "a", false},
		{"some_repeats", "^[a-z]{1,63}([.][a-z]{1,63}){0,3}$", "www.example.com", true},
		{"long_regexp_matches_nothing", "^" + strings.Repeat("a", 2000) + "$", strings.Repeat("a", 2000), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := access.Subject{Roles: []*typesv1.Role{role("r", conditions(nil, labels("k", tt.pattern)), nil)}}
			if got := access.Sees(s, map[string]string{"k": tt.value}).Allowed; got != tt.want {
				t.Errorf("pattern %q on %q = %v, want %v", tt.pattern, tt.value, got, tt.want)
			}
		})
	}
}

func TestSees(t *testing.T) {
	s := access.Subject{User: "u", Roles: []*typesv1.Role{
		role("web", conditions(nil, labels("team", "web")), nil),
		role("no-prod", nil, conditions(nil, labels("env", "prod"))),
	}}
	for _, tt := range []struct {
		name   string
		labels map[string]string
		want   access.Decision
	}{
		{"allowed", map[string]string{"team": "web"}, access.Decision{Allowed: true, Role: "web", Rule: "allow.node_labels", Reason: `role "web" allows this node by allow.node_labels`}},
		{"denied", map[string]string{"team": "web", "env": "prod"}, access.Decision{Role: "no-prod", Rule: "deny.node_labels", Reason: `role "no-prod" refuses this node by deny.node_labels`}},
		{"other", map[string]string{"team": "db"}, access.Decision{Rule: "allow.node_labels", Reason: `no role of user "u" allows this node by allow.node_labels`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, access.Sees(s, tt.labels)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func rules(kind, verb string) *typesv1.RoleConditions {
	return &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: []string{kind}, Verbs: []string{verb}}}}
}

func TestVerb(t *testing.T) {
	tests := []struct {
		name       string
		roles      []*typesv1.Role
		kind, verb string
		want       bool
	}{
		{"nothing", nil, "user", "list", false},
		{"exact", []*typesv1.Role{role("r", rules("user", "list"), nil)}, "user", "list", true},
		{"other_verb", []*typesv1.Role{role("r", rules("user", "list"), nil)}, "user", "create", false},
		{"other_kind", []*typesv1.Role{role("r", rules("user", "list"), nil)}, "role", "list", false},
		{"any_verb", []*typesv1.Role{role("r", rules("user", "*"), nil)}, "user", "delete", true},
		{"any_kind", []*typesv1.Role{role("r", rules("*", "read"), nil)}, "token", "read", true},
		{"empty_verb", []*typesv1.Role{role("r", rules("*", "*"), nil)}, "token", "", false},
		{"no_verbs", []*typesv1.Role{role("r", &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: []string{"user"}}}}, nil)}, "user", "list", false},
		{"deny_wins", []*typesv1.Role{role("a", rules("*", "*"), nil), role("d", nil, rules("token", "create"))}, "token", "create", false},
		{"deny_leaves_rest", []*typesv1.Role{role("a", rules("*", "*"), nil), role("d", nil, rules("token", "create"))}, "token", "list", true},
		{"deny_everything", []*typesv1.Role{role("a", rules("*", "*"), rules("*", "*"))}, "token", "list", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := access.Verb(access.Subject{Roles: tt.roles}, tt.kind, tt.verb); d.Allowed != tt.want {
				t.Errorf("Verb(%q, %q) = %+v, want %v", tt.kind, tt.verb, d, tt.want)
			}
		})
	}
}

func TestLogins(t *testing.T) {
	s := access.Subject{
		Roles: []*typesv1.Role{
			role("a", conditions([]string{"root", "{{internal.logins}}", "x-{{external.team}}"}, nil), nil),
			role("b", conditions([]string{"bob", "{{internal.logins}}"}, nil), conditions([]string{"root", "{{external.never}}"}, nil)),
		},
		Traits: map[string][]string{"logins": {"eve", "a b", "bob,root", "", "-oProxyCommand"}, "team": {"db", "we\nb"}, "never": {"mallory"}},
	}
	if diff := cmp.Diff([]string{"bob", "eve", "x-db"}, access.Logins(s)); diff != "" {
		t.Errorf("Logins: %s", diff)
	}
	s.Roles = append(s.Roles, role("c", nil, conditions([]string{"*"}, nil)))
	if got := access.Logins(s); len(got) != 0 {
		t.Errorf("Logins with deny '*' = %q, want none", got)
	}
}

func TestSessionTTL(t *testing.T) {
	ttl := func(s string) *typesv1.Role {
		r := role("ttl", nil, nil)
		r.Spec.Options = &typesv1.RoleOptions{MaxSessionTtl: s}
		return r
	}
	tests := []struct {
		name         string
		roles        []*typesv1.Role
		asked, limit time.Duration
		want         time.Duration
	}{
		{"default", nil, 0, 0, 12 * time.Hour},
		{"asked", nil, time.Hour, 0, time.Hour},
		{"asked_too_long", nil, 100 * time.Hour, 0, 30 * time.Hour},
		{"negative", nil, -time.Hour, 0, 12 * time.Hour},
		{"limit", nil, 0, time.Hour, time.Hour},
		{"shortest_role_wins", []*typesv1.Role{ttl("8h"), ttl("2h30m"), ttl("")}, 0, 0, 150 * time.Minute},
		{"role_longer_than_asked", []*typesv1.Role{ttl("8h")}, time.Hour, 0, time.Hour},
		{"role_may_lift_default_when_asked", []*typesv1.Role{ttl("1d")}, 20 * time.Hour, 0, 20 * time.Hour},
		{"role_does_not_lift_default", []*typesv1.Role{ttl("24h")}, 0, 0, 12 * time.Hour},
		{"broken_role", []*typesv1.Role{ttl("soon")}, 0, 0, 0},
		{"negative_role", []*typesv1.Role{ttl("-1h")}, 0, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := access.SessionTTL(access.Subject{Roles: tt.roles}, tt.asked, tt.limit); got != tt.want {
				t.Errorf("SessionTTL = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		role *typesv1.Role
		want string
	}{
		{"empty", role("r", nil, nil), ""},
		{"good", role("r", conditions([]string{"root", "{{internal.logins}}", `{{ external["a b"] }}`}, labels("*", "*", "env", "^a|b$", "t", "x-{{external.y}}-*")), conditions([]string{"*"}, nil)), ""},
		{"star_login", role("r", conditions([]string{"*"}, nil), nil), "spec.allow.logins"},
		{"unknown_template", role("r", conditions([]string{"{{internal.shell}}"}, nil), nil), "unknown template"},
		{"function_template", role("r", nil, conditions([]string{"{{email.local(external.mail)}}"}, nil)), "spec.deny.logins"},
		{"unclosed_template", role("r", conditions([]string{"{{internal.logins"}, nil), nil), "no closing braces"},
		{"unopened_template", role("r", conditions([]string{"internal.logins}}"}, nil), nil), "no opening braces"},
		{"two_templates", role("r", conditions([]string{"{{internal.logins}}{{internal.logins}}"}, nil), nil), "more than one template"},
		{"bad_regexp", role("r", conditions(nil, labels("env", "^[$")), nil), "spec.allow.node_labels"},
		{"template_in_regexp", role("r", conditions(nil, labels("env", "^{{external.x}}$")), nil), "has a template"},
		{"wildcard_key", role("r", nil, conditions(nil, labels("*", "x"))), "spec.deny.node_labels"},
		{"long_value", role("r", conditions(nil, labels("env", strings.Repeat("x", 2000))), nil), "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := access.Check(tt.role)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Check = %v, want %q", err, tt.want)
			}
		})
	}
	r := role("r", nil, nil)
	r.Spec.Options = &typesv1.RoleOptions{MaxSessionTtl: "soon"}
	if err := access.Check(r); err == nil || !strings.Contains(err.Error(), "spec.options.max_session_ttl") {
		t.Errorf("Check of a bad max_session_ttl = %v", err)
	}
}

// TestPresets shows that the preset roles pass and do what their names say.
func TestPresets(t *testing.T) {
	presets := map[string]*typesv1.Role{}
	for _, r := range types.PresetRoles() {
		if err := access.Check(r); err != nil {
			t.Errorf("Check(%s) = %v", r.GetMetadata().GetName(), err)
		}
		presets[r.GetMetadata().GetName()] = r
	}
	with := func(name string) access.Subject {
		return access.Subject{User: "u", Roles: []*typesv1.Role{presets[name]}, Traits: map[string][]string{"logins": {"root"}}}
	}
	if d := access.Login(with("access"), "root", nil); !d.Allowed {
		t.Errorf("access may not log in: %+v", d)
	}
	if d := access.Verb(with("access"), types.KindUser, types.VerbList); d.Allowed {
		t.Errorf("access may list users: %+v", d)
	}
	if d := access.Verb(with("editor"), types.KindUser, types.VerbCreate); !d.Allowed {
		t.Errorf("editor may not create users: %+v", d)
	}
	if got := access.Logins(with("editor")); len(got) != 0 {
		t.Errorf("editor has the logins %q", got)
	}
	if d := access.Verb(with("auditor"), types.KindEvent, types.VerbList); !d.Allowed {
		t.Errorf("auditor may not list events: %+v", d)
	}
	if d := access.Verb(with("auditor"), types.KindUser, types.VerbCreate); d.Allowed {
		t.Errorf("auditor may create users: %+v", d)
	}
}

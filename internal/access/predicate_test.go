package access_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/types"
)

// where makes the conditions of a role that may do everything to tokens if the
// predicate holds.
func where(kind, text string) *typesv1.RoleConditions {
	return &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: []string{kind}, Verbs: []string{"*"}, Where: text}}}
}

func someToken(roles ...string) *typesv1.Token {
	return &typesv1.Token{
		Kind: types.KindToken, Metadata: &typesv1.Metadata{Name: "t-1", Labels: map[string]string{"env": "prod", "team": "web"}},
		Spec: &typesv1.TokenSpec{
			Roles: roles, JoinMethod: "iam", MaxUses: 3, Labels: map[string]string{"zone": "a"},
			SuggestedLabels: map[string]*typesv1.Strings{"os": {Values: []string{"linux", "bsd"}}},
		},
		Status: &typesv1.TokenStatus{CreatedBy: "bob", Static: true},
	}
}

func TestWhere(t *testing.T) {
	nodes := someToken("Node")
	tests := []struct {
		name  string
		where string
		r     types.Resource
		// Whether it holds; broken ones hold under deny only.
		want, broken bool
	}{
		{name: "subset", where: `contains_all(set("Node", "App"), resource.spec.roles)`, r: nodes, want: true},
		{name: "not_subset", where: `contains_all(set("Node", "App"), resource.spec.roles)`, r: someToken("Node", "Proxy")},
		{name: "case_counts", where: `contains_all(set("node"), resource.spec.roles)`, r: nodes},
		{name: "empty_list_is_in_nothing", where: `contains_all(set("Node", "App"), resource.spec.roles)`, r: someToken()},
		{name: "any", where: `contains_any(resource.spec.roles, set("Proxy", "Node"))`, r: nodes, want: true},
		{name: "any_of_none", where: `contains_any(resource.spec.roles, user.spec.traits["none"])`, r: nodes},
		{name: "contains", where: `contains(resource.spec.roles, "Node")`, r: nodes, want: true},
		{name: "not_contains", where: `!contains(resource.spec.roles, "Proxy")`, r: nodes, want: true},
		{name: "all_equal", where: `all_equal(resource.spec.roles, "Node")`, r: nodes, want: true},
		{name: "all_equal_not", where: `all_equal(resource.spec.roles, "Node")`, r: someToken("Node", "App")},
		{name: "all_equal_of_none", where: `all_equal(resource.spec.roles, "Node")`, r: someToken()},
		{name: "prefix", where: `has_prefix(resource.metadata.name, "t-")`, r: nodes, want: true},
		{name: "prefix_not", where: `has_prefix(resource.metadata.name, "x")`, r: nodes},
		{name: "equals", where: `equals(resource.metadata.labels["env"], "prod")`, r: nodes, want: true},
		{name: "equal_sign", where: `resource.metadata.labels["env"] == "prod"`, r: nodes, want: true},
		{name: "unequal_sign", where: `resource.metadata.labels["env"] != "prod"`, r: nodes},
		{name: "unset_label_is_empty", where: `resource.metadata.labels["nothing"] == ""`, r: nodes, want: true},
		{name: "lists_are_sets", where: `resource.spec.roles == set("App", "Node", "App")`, r: someToken("Node", "App"), want: true},
		{name: "lists_differ", where: `resource.spec.roles == set("App")`, r: someToken("Node", "App")},
		{name: "number", where: `resource.spec.max_uses == 3`, r: nodes, want: true},
		{name: "flag", where: `resource.status.static`, r: nodes, want: true},
		{name: "flag_compared", where: `resource.status.static == false`, r: nodes},
		{name: "map_of_texts", where: `resource.spec.labels["zone"] == "a"`, r: nodes, want: true},
		{name: "map_of_lists", where: `contains(resource.spec.suggested_labels["os"], "bsd")`, r: nodes, want: true},
		{name: "trait", where: `contains(user.spec.traits["teams"], resource.metadata.labels["team"])`, r: nodes, want: true},
		{name: "no_trait", where: `contains(user.spec.traits["x"], resource.metadata.labels["team"])`, r: nodes},
		{name: "own", where: `resource.status.created_by == user.metadata.name`, r: nodes, want: true},
		{name: "role", where: `contains(user.spec.roles, "r")`, r: nodes, want: true},
		{name: "and", where: `contains(user.spec.roles, "r") && resource.spec.join_method == "iam"`, r: nodes, want: true},
		{name: "and_not", where: `contains(user.spec.roles, "r") && resource.spec.join_method == "token"`, r: nodes},
		{name: "or", where: `resource.spec.join_method == "token" || resource.spec.join_method == "iam"`, r: nodes, want: true},
		{name: "and_binds_closer", where: `true || false && false`, r: nodes, want: true},
		{name: "parentheses", where: `(true || false) && false`, r: nodes},
		{name: "lines", where: "contains(user.spec.roles, \"r\")\n  && contains(\n\tresource.spec.roles,\n\t\"Node\")\n", r: nodes, want: true},
		{name: "text_with_escape", where: `resource.metadata.name != "a\"b"`, r: nodes, want: true},
		{name: "unset_message_is_empty", where: `resource.spec.join_method == ""`, r: &typesv1.Token{Metadata: &typesv1.Metadata{Name: "bare"}}, want: true},
		{name: "user_only_needs_no_resource", where: `contains(user.spec.roles, "r")`, want: true},
		{name: "left_decides", where: `contains(user.spec.roles, "x") && contains(resource.spec.roles, "Node")`},

		{name: "no_resource", where: `contains(resource.spec.roles, "Node")`, broken: true},
		{name: "negated_without_resource", where: `!contains(resource.spec.roles, "Node")`, broken: true},
		{name: "another_message", where: `contains_all(set("Node"), resource.spec.roles)`, r: &typesv1.UserToken{Metadata: &typesv1.Metadata{Name: "u"}}, broken: true},
		{name: "negated_about_another_message", where: `!contains(resource.spec.roles, "Proxy")`, r: &typesv1.UserToken{Metadata: &typesv1.Metadata{Name: "u"}}, broken: true},
		{name: "right_side_broken", where: `contains(user.spec.roles, "r") && resource.spec.nothing == "x"`, r: nodes, broken: true},
		{name: "unknown_field", where: `resource.spec.nothing == "x"`, r: nodes, broken: true},
		{name: "unknown_function", where: `contain(user.spec.roles, "r")`, r: nodes, broken: true},
		{name: "unknown_name", where: `users.spec.roles == set("r")`, r: nodes, broken: true},
		{name: "unknown_user_field", where: `user.spec.password == "x"`, r: nodes, broken: true},
		{name: "nonsense", where: `)(`, r: nodes, broken: true},
		{name: "text_only", where: `"yes"`, r: nodes, broken: true},
		{name: "types_differ", where: `resource.spec.roles == "Node"`, r: nodes, broken: true},
		{name: "comment", where: `contains(user.spec.roles, "r") // && false`, r: nodes, broken: true},
		{name: "comment_inside", where: `true /* no */`, r: nodes, broken: true},
		{name: "raw_text", where: "resource.metadata.name == `t-1`", r: nodes, broken: true},
		{name: "function_literal", where: `func() bool { return true }()`, r: nodes, broken: true},
		{name: "method", where: `resource.String() == ""`, r: nodes, broken: true},
		{name: "arithmetic", where: `resource.spec.max_uses + 1 == 4`, r: nodes, broken: true},
		{name: "less", where: `resource.spec.max_uses < 4`, r: nodes, broken: true},
		{name: "secret_bytes", where: `resource.status.verifier == ""`, r: nodes, broken: true},
		{name: "list_of_messages", where: `resource.spec.allow == set("x")`, r: nodes, broken: true},
		{name: "map_without_key", where: `resource.metadata.labels == set("x")`, r: nodes, broken: true},
		{name: "key_of_text", where: `resource.metadata.name["x"] == ""`, r: nodes, broken: true},
		{name: "key_from_field", where: `resource.metadata.labels[user.metadata.name] == ""`, r: nodes, broken: true},
		{name: "empty_set", where: `contains(set(), "x")`, r: nodes, broken: true},
		{name: "too_few_values", where: `contains(user.spec.roles)`, r: nodes, broken: true},
		{name: "two_conditions", where: `true; false`, r: nodes, broken: true},
		{name: "too_long", where: strings.Repeat(" ", 2048) + "true", r: nodes, broken: true},
		{name: "too_deep", where: strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100), r: nodes, broken: true},
		{name: "too_many_nots", where: strings.Repeat("!", 200) + "true", r: nodes, broken: true},
		{name: "too_many_parts", where: strings.Repeat("true||", 340) + "true", r: nodes, broken: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kind := types.KindToken
			s := access.Subject{User: "bob", Traits: map[string][]string{"teams": {"db", "web"}}, Roles: []*typesv1.Role{role("r", where(kind, tt.where), nil)}}
			d := access.VerbOn(s, kind, "create", tt.r)
			if d.Allowed != tt.want || d.Reason == "" || tt.where != "" && d.Rule != "allow.rules.where" {
				t.Errorf("under allow: %+v, want allowed %v by allow.rules.where", d, tt.want)
			}
			s.Roles = []*typesv1.Role{role("all", rules("*", "*"), nil), role("r", nil, where(kind, tt.where))}
			d = access.VerbOn(s, kind, "create", tt.r)
			if refused := tt.want || tt.broken; d.Allowed == refused {
				t.Errorf("under deny: %+v, want allowed %v", d, !refused)
			}
			if tt.r == nil {
				if got := access.Verb(s, kind, "create"); got.Allowed != d.Allowed {
					t.Errorf("Verb = %+v, VerbOn nothing = %+v", got, d)
				}
			}
		})
	}
}

func TestVerbSome(t *testing.T) {
	const never = `resource.metadata.name == "x" && resource.metadata.name == "y"`
	for _, tt := range []struct {
		name  string
		roles []*typesv1.Role
		want  bool
	}{
		{"nothing", nil, false},
		{"no_condition", []*typesv1.Role{role("r", rules("token", "list"), nil)}, true},
		{"condition", []*typesv1.Role{role("r", where("token", never), nil)}, true},
		{"condition_of_another_kind", []*typesv1.Role{role("r", where("user", never), nil)}, false},
		{"broken_condition", []*typesv1.Role{role("r", where("token", "?"), nil)}, false},
		{"denied_always", []*typesv1.Role{role("r", rules("*", "*"), rules("token", "list"))}, false},
		{"denied_sometimes", []*typesv1.Role{role("r", rules("*", "*"), where("token", never))}, true},
		{"denied_by_a_broken_condition", []*typesv1.Role{role("r", rules("*", "*"), where("token", "?"))}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := access.NewChecker(access.Subject{Roles: tt.roles})
			if d := c.VerbSome("token", "list"); d.Allowed != tt.want {
				t.Errorf("VerbSome = %+v, want %v", d, tt.want)
			}
		})
	}
}

func TestCheckWhere(t *testing.T) {
	for _, tt := range []struct {
		name, where string
		resources   []string
		// problem is in the text of the error; empty for none.
		problem string
	}{
		{"good", `contains_all(set("Node"), resource.spec.roles)`, []string{"token"}, ""},
		{"of_each_kind", `contains(resource.spec.roles, "x")`, []string{"token", "user"}, ""},
		{"every_kind_has_metadata", `resource.metadata.labels["env"] == "dev"`, []string{"*"}, ""},
		{"user_for_events", `contains(user.spec.traits["a"], "b")`, []string{"event"}, ""},
		{"both_kinds_need_it", `contains(resource.spec.roles, "x")`, []string{"token", "role"}, `kind role has no field "roles"`},
		{"every_kind_needs_it", `contains(resource.spec.roles, "x")`, []string{"*"}, `has no field "roles"`},
		{"events_are_no_resources", `resource.metadata.name == "x"`, []string{"event", "token"}, "use those of user only"},
		{"misspelt", `contains(resource.spec.role, "x")`, []string{"token"}, `kind token has no field "role"`},
		{"through_a_text", `resource.metadata.name.first == "x"`, []string{"token"}, "name has no fields of its own"},
		{"condition", `resource.metadata.name`, []string{"token"}, "expected true or false"},
		{"comparison", `resource.metadata.name == 3`, []string{"token"}, "a comparison needs a text, and was given a number"},
		{"argument", `contains("a", "b")`, []string{"token"}, "contains needs a list, and was given a text"},
		{"set_of_lists", `contains_any(resource.spec.roles, set(user.spec.roles))`, []string{"token"}, "set needs a text"},
		{"not_a_text", `!resource.metadata.name`, []string{"token"}, "! needs a condition"},
		{"and_text", `true && resource.metadata.name`, []string{"token"}, "&& needs a condition"},
		{"syntax", `contains(user.spec.roles, "a"`, []string{"token"}, "is not a condition: at character"},
		{"operator", `user.metadata.name < "x"`, []string{"token"}, `"<" has no place in a condition`},
		{"function", `regexp(user.metadata.name, "x")`, []string{"token"}, "use all_equal, contains, contains_all, contains_any, equals, has_prefix, set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rc := &typesv1.RoleConditions{Rules: []*typesv1.Rule{
				{Resources: []string{"token"}, Verbs: []string{"list"}}, {Resources: tt.resources, Verbs: []string{"*"}, Where: tt.where},
			}}
			for path, r := range map[string]*typesv1.Role{"spec.allow.rules[1].where": role("r", rc, nil), "spec.deny.rules[1].where": role("r", nil, rc)} {
				err := access.Check(r)
				switch {
				case tt.problem == "" && err != nil:
					t.Errorf("Check(%q) = %v, want none", tt.where, err)
				case tt.problem != "" && (err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tt.problem)):
					t.Errorf("Check(%q) = %v, want %q at %s", tt.where, err, tt.problem, path)
				}
			}
		})
	}
}

// FuzzWhere: whatever a condition says, what Check accepts can be decided, and what
// cannot be decided allows nothing.
func FuzzWhere(f *testing.F) {
	for _, seed := range []string{
		`contains_all(set("Node", "App"), resource.spec.roles)`, `!contains(user.spec.traits["a"], resource.metadata.labels["b"])`,
		`resource.spec.max_uses == 3 || resource.status.static`, "((((", `"\x00`, `a.b[c]`, `set("a")[0]`, `user.spec.roles == set("r") // x`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		allow, deny := role("r", where("token", text), nil), role("r", rules("*", "*"), where("token", text))
		allowed := access.VerbOn(access.Subject{User: "u", Roles: []*typesv1.Role{allow}}, "token", "create", someToken("Node")).Allowed
		refused := !access.VerbOn(access.Subject{User: "u", Roles: []*typesv1.Role{deny}}, "token", "create", someToken("Node")).Allowed
		if access.Check(allow) == nil && allowed != refused {
			t.Fatalf("%q: allows %v, refuses %v", text, allowed, refused)
		}
		if allowed && !refused {
			t.Fatalf("%q allows, but does not refuse", text)
		}
	})
}

func BenchmarkWhere(b *testing.B) {
	c := access.NewChecker(access.Subject{Roles: []*typesv1.Role{role("r", where("token", `contains_all(set("Node", "App"), resource.spec.roles)`), nil)}})
	token := someToken("Node", "App")
	for b.Loop() {
		if !c.VerbOn("token", "create", token).Allowed {
			b.Fatal("refused")
		}
	}
}

package access_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
)

// The generated roles and questions draw from few values, so that they meet.
var (
	someLogins = []string{"root", "bob", "{{internal.logins}}", "x-{{external.team}}", "{{unknown.x}}"}
	someKeys   = []string{"env", "team", "zone"}
	someValues = []string{"prod", "dev", "*", "pr*", "^(prod|db)$", "{{external.team}}", "^[$"}
	someKinds  = []string{"user", "role", "token", "*"}
	someVerbs  = []string{"list", "create", "*"}
	plainValue = []string{"prod", "dev", "db", "web"}
)

func drawConditions(t *rapid.T, name string) *typesv1.RoleConditions {
	c := &typesv1.RoleConditions{
		Logins:     rapid.SliceOfN(rapid.SampledFrom(someLogins), 0, 2).Draw(t, name+".logins"),
		NodeLabels: map[string]*typesv1.Strings{},
	}
	if rapid.IntRange(0, 3).Draw(t, name+".everything") == 0 {
		c.NodeLabels["*"] = &typesv1.Strings{Values: []string{"*"}}
	}
	for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(someKeys), 0, 2, rapid.ID[string]).Draw(t, name+".keys") {
		c.NodeLabels[k] = &typesv1.Strings{Values: rapid.SliceOfN(rapid.SampledFrom(someValues), 0, 2).Draw(t, name+".values")}
	}
	if rapid.Bool().Draw(t, name+".rules") {
		c.Rules = []*typesv1.Rule{{
			Resources: rapid.SliceOfN(rapid.SampledFrom(someKinds), 0, 2).Draw(t, name+".resources"),
			Verbs:     rapid.SliceOfN(rapid.SampledFrom(someVerbs), 0, 2).Draw(t, name+".verbs"),
		}}
	}
	return c
}

func drawRoles(t *rapid.T, name string, n int, deny bool) []*typesv1.Role {
	var out []*typesv1.Role
	for range n {
		r := role(name, drawConditions(t, name+".allow"), nil)
		if deny && rapid.Bool().Draw(t, name+".denies") {
			r.Spec.Deny = drawConditions(t, name+".deny")
		}
		out = append(out, r)
	}
	return out
}

// ask is one question to each of the deciding functions.
type ask struct {
	login      string
	labels     map[string]string
	kind, verb string
}

func drawAsk(t *rapid.T) (ask, map[string][]string) {
	a := ask{
		login: rapid.SampledFrom([]string{"root", "bob", "x-db", "eve"}).Draw(t, "login"), labels: map[string]string{},
		kind: rapid.SampledFrom([]string{"user", "role", "token"}).Draw(t, "kind"), verb: rapid.SampledFrom([]string{"list", "create"}).Draw(t, "verb"),
	}
	for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(someKeys), 0, 3, rapid.ID[string]).Draw(t, "labels") {
		a.labels[k] = rapid.SampledFrom(plainValue).Draw(t, "label")
	}
	traits := map[string][]string{
		"logins": rapid.SliceOfN(rapid.SampledFrom([]string{"root", "eve", "*"}), 0, 2).Draw(t, "trait logins"),
		"team":   rapid.SliceOfN(rapid.SampledFrom([]string{"db", "prod", "*"}), 0, 2).Draw(t, "trait team"),
	}
	return a, traits
}

// decisions asks every function the question: the same properties hold for each.
func decisions(s access.Subject, a ask) map[string]access.Decision {
	return map[string]access.Decision{
		"Login": access.Login(s, a.login, a.labels), "Sees": access.Sees(s, a.labels), "Verb": access.Verb(s, a.kind, a.verb),
	}
}

func TestAddingAllowNeverRemovesAccess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		s := access.Subject{User: "u", Roles: drawRoles(t, "base", rapid.IntRange(0, 3).Draw(t, "n"), true), Traits: traits}
		before := decisions(s, a)
		more := s
		at := rapid.IntRange(0, len(s.Roles)).Draw(t, "at")
		more.Roles = slices.Insert(slices.Clone(s.Roles), at, drawRoles(t, "added", 1, false)...)
		for name, after := range decisions(more, a) {
			if before[name].Allowed && !after.Allowed {
				t.Fatalf("%s: allowed %+v, refused after a role that only allows was added: %+v", name, before[name], after)
			}
		}
		for _, login := range access.Logins(s) {
			if !slices.Contains(access.Logins(more), login) {
				t.Fatalf("Logins lost %q after a role that only allows was added", login)
			}
		}
	})
}

func TestAddingDenyNeverGivesAccess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		s := access.Subject{User: "u", Roles: drawRoles(t, "base", rapid.IntRange(0, 3).Draw(t, "n"), true), Traits: traits}
		before := decisions(s, a)
		s.Roles = append(slices.Clone(s.Roles), role("denies", nil, drawConditions(t, "deny")))
		for name, after := range decisions(s, a) {
			if after.Allowed && !before[name].Allowed {
				t.Fatalf("%s: a role that only denies gave access: %+v", name, after)
			}
		}
	})
}

// TestDenyWins turns what a role allows into what another denies: whatever the
// roles are, nothing of it is left.
func TestDenyWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		roles := drawRoles(t, "base", rapid.IntRange(1, 3).Draw(t, "n"), true)
		s := access.Subject{User: "u", Traits: traits}
		for _, r := range roles {
			s.Roles = append(s.Roles, r, role("mirror", nil, r.Spec.Allow))
		}
		at := rapid.Permutation(s.Roles).Draw(t, "order")
		s.Roles = at
		for name, d := range decisions(s, a) {
			if d.Allowed {
				t.Fatalf("%s: allowed although all that is allowed is denied: %+v", name, d)
			}
			if strings.HasPrefix(d.Rule, "deny.") && d.Role == "" {
				t.Fatalf("%s: a denial without a role: %+v", name, d)
			}
		}
		if got := access.Logins(s); len(got) != 0 {
			t.Fatalf("Logins = %q although all that is allowed is denied", got)
		}
	})
}

func TestEmptyMeansNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		var roles []*typesv1.Role
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			roles = append(roles, role("empty", &typesv1.RoleConditions{}, drawConditions(t, "deny")))
		}
		for name, d := range decisions(access.Subject{User: "u", Roles: roles, Traits: traits}, a) {
			if d.Allowed {
				t.Fatalf("%s: allowed by nothing: %+v", name, d)
			}
		}
	})
}

func TestOrderOfRolesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		s := access.Subject{User: "u", Roles: drawRoles(t, "base", rapid.IntRange(0, 4).Draw(t, "n"), true), Traits: traits}
		before := decisions(s, a)
		s.Roles = rapid.Permutation(s.Roles).Draw(t, "order")
		for name, after := range decisions(s, a) {
			if after.Allowed != before[name].Allowed {
				t.Fatalf("%s: %+v in one order, %+v in another", name, before[name], after)
			}
		}
	})
}

// TestLoginImpliesSees: nobody logs in to what does not exist for them.
func TestLoginImpliesSees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, traits := drawAsk(t)
		s := access.Subject{User: "u", Roles: drawRoles(t, "base", rapid.IntRange(0, 4).Draw(t, "n"), true), Traits: traits}
		d := decisions(s, a)
		if d["Login"].Allowed && (!d["Sees"].Allowed || !slices.Contains(access.Logins(s), a.login)) {
			t.Fatalf("login allowed, but Sees is %+v and Logins %q", d["Sees"], access.Logins(s))
		}
	})
}

func FuzzLabelValue(f *testing.F) {
	for _, seed := range someValues {
		f.Add(seed, "prod", "db")
	}
	f.Add("a*b*", "axb", "")
	f.Add(`^\Q$`, "$", "")
	f.Fuzz(func(t *testing.T, pattern, value, trait string) {
		allow := role("a", conditions([]string{"root"}, labels("k", pattern)), nil)
		deny := role("d", conditions([]string{"root"}, labels("*", "*")), conditions(nil, labels("k", pattern)))
		traits := map[string][]string{"team": {trait}}
		have := map[string]string{"k": value}
		allowed := access.Login(access.Subject{Roles: []*typesv1.Role{allow}, Traits: traits}, "root", have).Allowed
		refused := !access.Login(access.Subject{Roles: []*typesv1.Role{deny}, Traits: traits}, "root", have).Allowed
		if access.Check(allow) == nil {
			if allowed != refused {
				t.Fatalf("pattern %q on %q: matches under allow %v, under deny %v", pattern, value, allowed, refused)
			}
			if !strings.ContainsAny(pattern, "*^{}") && allowed != (pattern == value) {
				t.Fatalf("literal %q on %q = %v", pattern, value, allowed)
			}
		} else if allowed || !refused {
			t.Fatalf("undecidable pattern %q on %q: matches under allow %v, under deny %v", pattern, value, allowed, refused)
		}
	})
}

func FuzzLogin(f *testing.F) {
	for _, seed := range someLogins {
		f.Add(seed, "eve")
	}
	f.Add(`{{external["logins"]}}`, "a,b")
	f.Fuzz(func(t *testing.T, login, trait string) {
		s := access.Subject{Roles: []*typesv1.Role{role("r", conditions([]string{login}, labels("*", "*")), nil)}, Traits: map[string][]string{"logins": {trait}}}
		for _, got := range access.Logins(s) {
			if strings.ContainsAny(got, ", \t\n*{}") || got == "" || got[0] == '-' {
				t.Fatalf("login %q with trait %q gives the principal %q", login, trait, got)
			}
			if !access.Login(s, got, nil).Allowed {
				t.Fatalf("principal %q is in the certificate, but may not log in", got)
			}
		}
	})
}

func BenchmarkSees(b *testing.B) {
	s := access.Subject{Roles: []*typesv1.Role{
		role("a", conditions(nil, labels("env", "dev", "team", "^(db|web)-[0-9]+$")), nil),
		role("b", conditions(nil, labels("env", "prod-*")), conditions(nil, labels("secret", "yes"))),
	}}
	c := access.NewChecker(s)
	have := map[string]string{"env": "prod-eu", "team": "db-1", "zone": "a"}
	for b.Loop() {
		if !c.Sees(have).Allowed {
			b.Fatal("not seen")
		}
	}
}

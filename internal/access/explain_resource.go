package access

import (
	"fmt"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
)

// ExplainApp decides as Checker.App does, and says what each role contributes.
func ExplainApp(s Subject, labels map[string]string) (Decision, []Verdict) {
	c := NewChecker(s)
	verdicts := c.eachRole(s, func(r role, spec *typesv1.RoleSpec) Verdict {
		switch {
		case r.deny.appLabels.denies(labels):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyAppLabels, Why: whyDenies("application", r.deny.appLabels, spec.GetDeny().GetAppLabels(), labels)}
		case !r.allow.appLabels.allows(labels):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowAppLabels, Why: whyNoMatch("application", "app_labels", r.allow.appLabels, spec.GetAllow().GetAppLabels(), labels)}
		}
		return Verdict{Verdict: VerdictAllows, Rule: ruleAllowAppLabels, Why: "its app_labels match"}
	})
	return c.App(labels), verdicts
}

// ExplainDatabase decides as Checker.Database does, and says what each role contributes.
func ExplainDatabase(s Subject, labels map[string]string, login DatabaseLogin) (Decision, []Verdict) {
	c := NewChecker(s)
	verdicts := c.eachRole(s, func(r role, spec *typesv1.RoleSpec) Verdict {
		switch {
		case r.deny.dbLabels.denies(labels):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyDBLabels, Why: whyDenies("database", r.deny.dbLabels, spec.GetDeny().GetDbLabels(), labels)}
		case !login.AnyUser && r.deny.dbUsers.denies(login.User):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyDBUsers, Why: whyDeniesName("user", login.User, r.deny.dbUsers)}
		case !login.AnyName && r.deny.dbNames.denies(login.Name):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyDBNames, Why: whyDeniesName("database", login.Name, r.deny.dbNames)}
		case !r.allow.dbLabels.allows(labels):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowDBLabels, Why: whyNoMatch("database", "db_labels", r.allow.dbLabels, spec.GetAllow().GetDbLabels(), labels)}
		case !login.AnyUser && !r.allow.dbUsers.allows(login.User):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowDBUsers, Why: whyNoName("db_users", login.User, r.allow.dbUsers)}
		case !login.AnyName && !r.allow.dbNames.allows(login.Name):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowDBNames, Why: whyNoName("db_names", login.Name, r.allow.dbNames)}
		}
		return Verdict{Verdict: VerdictAllows, Rule: ruleAllowDBLabels, Why: "its db_labels match, and it allows " + login.text()}
	})
	return c.Database(labels, login), verdicts
}

// eachRole asks what each role says; the name of the role is filled in.
func (c *Checker) eachRole(s Subject, say func(role, *typesv1.RoleSpec) Verdict) []Verdict {
	given := slices.DeleteFunc(slices.Clone(s.Roles), func(r *typesv1.Role) bool { return r == nil })
	out := make([]Verdict, 0, len(c.roles))
	for i, r := range c.roles {
		v := say(r, given[i].GetSpec())
		v.Role = r.name
		out = append(out, v)
	}
	return out
}

func whyDeniesName(what, name string, n names) string {
	switch {
	case n.every:
		return fmt.Sprintf("it denies every %s", what)
	case n.broken != nil:
		return "one of its names cannot be understood: " + n.broken.Error()
	}
	return fmt.Sprintf("it denies %s %q", what, name)
}

func whyNoName(field, name string, n names) string {
	switch {
	case n.broken != nil:
		return fmt.Sprintf("one of its %s cannot be understood: %v", field, n.broken)
	case len(n.list) == 0:
		return fmt.Sprintf("it gives this user no %s", field)
	}
	return fmt.Sprintf("%q is not among its %s: %s", name, field, strings.Join(n.list, ", "))
}

package access

import (
	"fmt"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// What one role says about a login.
const (
	VerdictAllows  = "allows"
	VerdictRefuses = "refuses"
	// VerdictNothing: it neither allows nor refuses.
	VerdictNothing = "says nothing"
)

// Verdict is what one role says about a login on a node, and why.
type Verdict struct {
	Role    string
	Verdict string
	// Rule is the field that decided, or that came in the way of allowing.
	Rule string
	// Why says it in a line.
	Why string
}

// ExplainLogin decides as Checker.Login does, and says what each role contributes.
func ExplainLogin(s Subject, login string, labels map[string]string) (Decision, []Verdict) {
	c := NewChecker(s)
	verdicts := c.eachRole(s, func(r role, spec *typesv1.RoleSpec) Verdict {
		switch {
		case r.deny.deniesLogin(login):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyLogins, Why: whyDeniesLogin(r.deny, login)}
		case r.deny.labels.denies(labels):
			return Verdict{Verdict: VerdictRefuses, Rule: ruleDenyLabels, Why: whyDenies("node", r.deny.labels, spec.GetDeny().GetNodeLabels(), labels)}
		case !slices.Contains(r.allow.logins, login):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowLogins, Why: whyNoLogin(r.allow, login)}
		case !r.allow.labels.allows(labels):
			return Verdict{Verdict: VerdictNothing, Rule: ruleAllowLabels, Why: whyNoMatch("node", "node_labels", r.allow.labels, spec.GetAllow().GetNodeLabels(), labels)}
		}
		return Verdict{Verdict: VerdictAllows, Rule: ruleAllowLogins, Why: fmt.Sprintf("login %q is among its logins, and its node_labels match", login)}
	})
	return c.Login(login, labels), verdicts
}

func whyDeniesLogin(c condition, login string) string {
	switch {
	case c.everyLogin:
		return "it denies every login"
	case c.loginsBroken != nil:
		return "its logins cannot be understood: " + c.loginsBroken.Error()
	}
	return fmt.Sprintf("it denies login %q", login)
}

// whyDenies says which label of a resource a role denies.
func whyDenies(what string, s selector, written map[string]*typesv1.Strings, labels map[string]string) string {
	switch {
	case s.broken != nil:
		return "its labels cannot be understood: " + s.broken.Error()
	case s.everything:
		return "it denies every " + what
	}
	for _, k := range s.keys {
		if k.match(labels) {
			return fmt.Sprintf("the %s has %s=%s, and it denies %s", what, k.key, labels[k.key], labelText(k.key, written))
		}
	}
	return "it denies the labels of the " + what
}

// whyNoMatch says what a resource lacks for a role to be about it.
func whyNoMatch(what, field string, s selector, written map[string]*typesv1.Strings, labels map[string]string) string {
	switch {
	case s.broken != nil:
		return fmt.Sprintf("its %s cannot be understood: %v", field, s.broken)
	case len(s.keys) == 0:
		return fmt.Sprintf("it has no %s, so it is about no %s", field, what)
	}
	var misses []string
	for _, k := range s.keys {
		if k.match(labels) {
			continue
		}
		has := fmt.Sprintf("the %s has no label %s", what, k.key)
		if v, ok := labels[k.key]; ok {
			has = fmt.Sprintf("the %s has %s=%s", what, k.key, v)
		}
		misses = append(misses, fmt.Sprintf("%s, and it wants %s", has, labelText(k.key, written)))
	}
	return strings.Join(misses, "; ")
}

func whyNoLogin(c condition, login string) string {
	switch {
	case c.loginsBroken != nil:
		return "one of its logins cannot be understood: " + c.loginsBroken.Error()
	case len(c.logins) == 0:
		return "it gives this user no logins"
	}
	return fmt.Sprintf("login %q is not among its logins: %s", login, strings.Join(c.logins, ", "))
}

func labelText(key string, written map[string]*typesv1.Strings) string {
	return key + "=" + strings.Join(written[key].GetValues(), "|")
}

// Difference is a login on a node that a change of roles gives or takes.
type Difference struct {
	Login string
	// Server is the node.
	Server *typesv1.Server
	// Gained says that it was refused before; otherwise it is refused now.
	Gained bool
	// Decision is the new one.
	Decision Decision
}

// Differences calls yield for each login on each of the nodes about which both
// subjects are answered differently, until it returns false. The subjects are one
// user, before and after a change of its roles.
func Differences(before, after Subject, nodes []*typesv1.Server, yield func(Difference) bool) {
	was, is := NewChecker(before), NewChecker(after)
	logins := append(was.Logins(), is.Logins()...)
	slices.Sort(logins)
	logins = slices.Compact(logins)
	for _, node := range nodes {
		labels := types.ServerLabels(node)
		for _, login := range logins {
			d := is.Login(login, labels)
			if was.Login(login, labels).Allowed == d.Allowed {
				continue
			}
			if !yield(Difference{Login: login, Server: node, Gained: d.Allowed, Decision: d}) {
				return
			}
		}
	}
}

// How far a verb reaches.
const (
	ReachNone = "none"
	// ReachSome: those that a condition lets through.
	ReachSome = "some"
	ReachAll  = "all"
)

// Reach returns to which resources of the kind the subject may do the verb.
func (c *Checker) Reach(kind, verb string) string {
	switch {
	case c.Verb(kind, verb).Allowed:
		return ReachAll
	case c.VerbSome(kind, verb).Allowed:
		return ReachSome
	}
	return ReachNone
}

package access

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// rule is a compiled Rule.
type rule struct {
	resources, verbs []string
	// where is nil if the rule has no condition.
	where *predicate
	// broken says why the condition cannot be decided, ever.
	broken error
}

func compileRules(rules []*typesv1.Rule) []rule {
	out := make([]rule, 0, len(rules))
	for _, r := range rules {
		compiled := rule{resources: r.GetResources(), verbs: r.GetVerbs()}
		if text := r.GetWhere(); text != "" {
			compiled.where, compiled.broken = compilePredicate(text)
		}
		out = append(out, compiled)
	}
	return out
}

// covers reports whether the rule is about the verb on the kind, whatever its
// condition says.
func (r rule) covers(kind, verb string) bool {
	return matchName(r.resources, kind) && matchName(r.verbs, verb)
}

// holds reports whether the condition is met, or else what cannot be decided.
func (r rule) holds(s scope) (bool, error) {
	switch {
	case r.broken != nil:
		return false, r.broken
	case r.where == nil:
		return true, nil
	}
	return r.where.decide(s)
}

// matchName reports whether a rule that names these is about the name.
func matchName(names []string, name string) bool {
	return slices.Contains(names, name) || slices.Contains(names, wildcard)
}

// checkRules finds the conditions of a role's rules that could never be decided.
func checkRules(path string, rules []*typesv1.Rule, problems *types.Problems) {
	for i, r := range rules {
		if r.GetWhere() == "" {
			continue
		}
		p, err := compilePredicate(r.GetWhere())
		if err == nil {
			err = p.check(messagesOf(r.GetResources()))
		}
		if err != nil {
			*problems = append(*problems, types.Problem{Path: fmt.Sprintf("%s[%d].where", path, i), Text: err.Error()})
		}
	}
}

// messagesOf returns what resources of the kinds are made of: nothing if one of them
// is no resource.
func messagesOf(kinds []string) []protoreflect.MessageDescriptor {
	var out []protoreflect.MessageDescriptor
	for _, info := range types.Kinds() {
		if slices.Contains(kinds, info.Name) || info.Served && slices.Contains(kinds, wildcard) {
			out = append(out, info.New().ProtoReflect().Descriptor())
		}
	}
	if slices.ContainsFunc(kinds, func(k string) bool { return k == types.KindEvent || k == types.KindSession }) {
		return nil
	}
	return out
}

// Verb decides whether the subject may do the verb to resources of the kind,
// whichever they are. A condition of a rule that asks about the resource cannot be
// met, and under deny refuses.
func (c *Checker) Verb(kind, verb string) Decision { return c.VerbOn(kind, verb, nil) }

// VerbOn decides whether the subject may do the verb to this resource, in the
// place of one of the kind. A condition that cannot be decided allows nothing, and
// under deny refuses.
func (c *Checker) VerbOn(kind, verb string, r types.Resource) Decision {
	s := c.scope
	s.resource = r
	what := fmt.Sprintf("%s on kind %q", verb, kind)
	if r != nil {
		what = fmt.Sprintf("%s on %s %q", verb, kind, r.GetMetadata().GetName())
	}
	return c.verb(kind, verb, what,
		func(r rule) bool { ok, err := r.holds(s); return ok || err != nil },
		func(r rule) bool { ok, _ := r.holds(s); return ok })
}

// VerbSome decides whether there may be resources of the kind that the subject may
// do the verb to: those that VerbOn allows. It serves to refuse early.
func (c *Checker) VerbSome(kind, verb string) Decision {
	return c.verb(kind, verb, fmt.Sprintf("%s on kind %q", verb, kind),
		func(r rule) bool { return r.where == nil },
		func(r rule) bool { return r.broken == nil })
}

// verb decides by the rules about kind and verb for which the functions report true.
func (c *Checker) verb(kind, verb, what string, denies, allows func(rule) bool) Decision {
	if kind == "" || verb == "" {
		return Decision{Rule: ruleAllowRules, Reason: "no kind or no verb was named"}
	}
	return c.decide(question{
		what:    what,
		missing: ruleAllowRules,
		denied: func(r role) string {
			if i := slices.IndexFunc(r.deny.rules, func(r rule) bool { return r.covers(kind, verb) && denies(r) }); i >= 0 {
				return ruleName(ruleDenyRules, r.deny.rules[i])
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			near := ""
			for _, rule := range r.allow.rules {
				if !rule.covers(kind, verb) {
					continue
				}
				if allows(rule) {
					return true, ruleName(ruleAllowRules, rule)
				}
				near = ruleName(ruleAllowRules, rule)
			}
			return false, near
		},
	})
}

// ruleName is how a decision names a rule.
func ruleName(field string, r rule) string {
	if r.where != nil || r.broken != nil {
		return field + ".where"
	}
	return field
}

// Verb is Checker.Verb for one decision.
func Verb(s Subject, kind, verb string) Decision { return NewChecker(s).Verb(kind, verb) }

// VerbOn is Checker.VerbOn for one decision.
func VerbOn(s Subject, kind, verb string, r types.Resource) Decision {
	return NewChecker(s).VerbOn(kind, verb, r)
}

package types

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Wildcard stands for everything: as a label `'*': '*'`, as a resource or verb of
// a rule.
const Wildcard = "*"

func roleKind() KindInfo {
	return KindInfo{
		Name: KindRole, Plural: "roles",
		New:      func() Resource { return &typesv1.Role{} },
		Defaults: defaults(defaultRole),
		Validate: validate(validateRole),
		Columns: []Column{
			nameColumn("Role"),
			column("Allowed to login as", func(r *typesv1.Role) string { return strings.Join(r.GetSpec().GetAllow().GetLogins(), ",") }),
			column("Node Labels", func(r *typesv1.Role) string { return selectorText(r.GetSpec().GetAllow().GetNodeLabels()) }),
		},
		Writable: true, Served: true,
		versions: []string{"v3", "v4", "v5", "v6", "v7", "v8"},
		name:     ValidName,
	}
}

func selectorText(sel map[string]*typesv1.Strings) string {
	parts := make([]string, 0, len(sel))
	for _, k := range sortedKeys(sel) {
		parts = append(parts, k+"="+strings.Join(sel[k].GetValues(), "|"))
	}
	return strings.Join(parts, ",")
}

func defaultRole(r *typesv1.Role) {
	if r.Spec == nil {
		r.Spec = &typesv1.RoleSpec{}
	}
	// Version 3 is documented to allow every label when none is given. It is written
	// out, so that no reader has to know.
	if allow := r.Spec.Allow; r.GetVersion() == "v3" && allow != nil {
		for _, labels := range []*map[string]*typesv1.Strings{&allow.NodeLabels, &allow.AppLabels, &allow.DbLabels} {
			if len(*labels) == 0 {
				*labels = everyLabel()
			}
		}
	}
	for _, c := range []*typesv1.RoleConditions{r.Spec.Allow, r.Spec.Deny} {
		for _, rule := range c.GetRules() {
			for i, name := range rule.GetResources() {
				if k, ok := Kind(name); ok {
					rule.Resources[i] = k.Name
				}
			}
		}
	}
}

func everyLabel() map[string]*typesv1.Strings {
	return map[string]*typesv1.Strings{Wildcard: {Values: []string{Wildcard}}}
}

func validateRole(r *typesv1.Role, c *checker) {
	validateOptions(r, c)
	validateConditions("spec.allow", r.GetSpec().GetAllow(), c)
	validateConditions("spec.deny", r.GetSpec().GetDeny(), c)
}

func validateConditions(path string, rc *typesv1.RoleConditions, c *checker) {
	c.names(path+".logins", rc.GetLogins(), func(s string) error {
		if s == Wildcard && strings.HasSuffix(path, ".deny") {
			return nil
		}
		return checkTemplate(s, ValidLogin)
	})
	validateSelector(path+".node_labels", rc.GetNodeLabels(), c)
	validateSelector(path+".app_labels", rc.GetAppLabels(), c)
	validateSelector(path+".db_labels", rc.GetDbLabels(), c)
	anyOr := func(s string) error {
		if s == Wildcard {
			return nil
		}
		return checkTemplate(s, ValidDatabaseUser)
	}
	c.names(path+".db_users", rc.GetDbUsers(), anyOr)
	c.names(path+".db_names", rc.GetDbNames(), anyOr)
	c.names(path+".db_roles", rc.GetDbRoles(), func(s string) error {
		if s == Wildcard && path == specDeny {
			return nil
		}
		return checkTemplate(s, ValidDatabaseUser)
	})
	validateJoining(path, rc, c)
	for i, rule := range rc.GetRules() {
		at := fmt.Sprintf("%s.rules[%d]", path, i)
		if len(rule.GetResources()) == 0 {
			c.add(at+".resources", "missing: name the kinds that the rule is about")
		}
		if len(rule.GetVerbs()) == 0 {
			c.add(at+".verbs", "missing: name the verbs that the rule is about")
		}
		c.names(at+".resources", rule.GetResources(), validRuleResource)
		c.names(at+".verbs", rule.GetVerbs(), validVerb)
	}
}

func validRuleResource(s string) error {
	names := append(servedKinds(), KindEvent, KindSession, Wildcard)
	if slices.Contains(names, s) {
		return nil
	}
	slices.Sort(names)
	return fault.Invalid("unknown kind %q: use %s", s, strings.Join(names, ", "))
}

func validVerb(s string) error {
	verbs := []string{VerbList, VerbCreate, VerbRead, VerbUpdate, VerbDelete, Wildcard}
	if slices.Contains(verbs, s) {
		return nil
	}
	return fault.Invalid("unknown verb %q: use %s", s, strings.Join(verbs, ", "))
}

// validateSelector checks labels that select: literal keys; values that are
// literals, globs, ^regular expressions$ or templates.
func validateSelector(path string, sel map[string]*typesv1.Strings, c *checker) {
	if len(sel) > maxLabels {
		c.add(path, "%d labels, the most is %d", len(sel), maxLabels)
		return
	}
	for _, k := range sortedKeys(sel) {
		at := path + "[" + k + "]"
		values := sel[k].GetValues()
		if k == Wildcard {
			if len(values) != 1 || values[0] != Wildcard {
				c.add(at, "the key '*' only goes with the value '*'")
			}
			continue
		}
		if err := ValidLabelKey(k); err != nil {
			c.add(at, "%v", err)
			continue
		}
		if len(values) == 0 {
			c.add(at, "no value, so it would match nothing: write '*' for any value")
		}
		for i, v := range values {
			c.check(fmt.Sprintf("%s[%d]", at, i), validSelectorValue(v))
		}
	}
}

func validSelectorValue(v string) error {
	if len(v) > maxLabelValue {
		return fault.Invalid("%d bytes, the most is %d", len(v), maxLabelValue)
	}
	if strings.HasPrefix(v, "^") && strings.HasSuffix(v, "$") {
		if _, err := regexp.Compile(v); err != nil {
			return fault.Invalid("%q is not a regular expression: %v", v, err)
		}
		if strings.Contains(v, "{{") {
			return fault.Invalid("%q is a regular expression with a template in it: use one or the other", v)
		}
		return nil
	}
	return checkTemplate(v, func(s string) error {
		c := &checker{}
		c.text("", s, maxLabelValue)
		return c.err()
	})
}

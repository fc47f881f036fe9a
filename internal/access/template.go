package access

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"teleport/internal/fault"
)

// maxValue bounds one value of a role: a login, a label value, a template.
const maxValue = 1024

// internalTraits are the names that {{internal.X}} may use.
var internalTraits = []string{
	"aws_role_arns", "azure_identities", "db_names", "db_roles", "db_users", "gcp_service_accounts",
	"jwt", "kubernetes_groups", "kubernetes_users", "logins", "windows_logins",
}

// templateForm is what may stand between the braces. It is compiled when it is needed:
// every start of a program would pay for it.
var templateForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\s*(internal|external)(?:\.([A-Za-z_][A-Za-z0-9_-]{0,127})|\["([^"\]\\]{1,128})"\])\s*$`)
})

// template is a value of a role: text with at most one reference to a trait.
type template struct {
	before, after string
	// trait is the name of the trait, or empty when the value is plain text.
	trait string
}

// parseTemplate reads a value such as `root`, `{{internal.logins}}` or
// `dev-{{external["team"]}}`.
func parseTemplate(s string) (template, error) {
	if len(s) > maxValue {
		return template{}, fault.Invalid("value of %d bytes is too long: use at most %d", len(s), maxValue)
	}
	before, rest, found := strings.Cut(s, "{{")
	if !found {
		if strings.Contains(s, "}}") {
			return template{}, fault.Invalid("template %q has no opening braces", s)
		}
		return template{before: s}, nil
	}
	inner, after, found := strings.Cut(rest, "}}")
	if !found {
		return template{}, fault.Invalid("template %q has no closing braces", s)
	}
	if strings.Contains(before, "}}") || strings.Contains(after, "{{") || strings.Contains(after, "}}") {
		return template{}, fault.Invalid("value %q has more than one template: use one for each value", s)
	}
	m := templateForm().FindStringSubmatch(inner)
	if m == nil {
		return template{}, fault.Invalid("unknown template %q: use {{internal.logins}}, {{external.name}} or {{external[\"name\"]}}", "{{"+inner+"}}")
	}
	trait := m[2] + m[3]
	if m[1] == "internal" && !slices.Contains(internalTraits, trait) {
		return template{}, fault.Invalid("unknown template %q: after internal. use one of %s", "{{"+inner+"}}", strings.Join(internalTraits, ", "))
	}
	return template{before: before, trait: trait, after: after}, nil
}

// expand returns what the value becomes: itself if it is plain text, otherwise
// one text for each value of the trait. A trait that is not set has none.
func (t template) expand(traits map[string][]string) []string {
	if t.trait == "" {
		return []string{t.before}
	}
	out := make([]string, 0, len(traits[t.trait]))
	for _, v := range traits[t.trait] {
		if v != "" {
			out = append(out, t.before+v+t.after)
		}
	}
	return out
}

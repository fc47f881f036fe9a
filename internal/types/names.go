package types

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// onlyChars reports the first character of s that is neither alphanumeric ASCII
// nor in more.
func onlyChars(s, more string) error {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case r != utf8.RuneError && strings.ContainsRune(more, r):
		default:
			return fault.Invalid("%q: the character %q is not allowed: use letters, digits and %s", s, r, more)
		}
	}
	return nil
}

func sized(what, s string, limit int) error {
	if s == "" {
		return fault.Invalid("missing: give %s", what)
	}
	if len(s) > limit {
		return fault.Invalid("%s of %d bytes, the most is %d", what, len(s), limit)
	}
	return nil
}

// ValidName checks the name of a resource.
func ValidName(s string) error {
	if err := sized("a name", s, maxName); err != nil {
		return err
	}
	if s[0] == '-' || s == "." || s == ".." {
		return fault.Invalid("%q: a name must not be a dot or start with a dash", s)
	}
	return onlyChars(s, "._@$+:=-")
}

// validTokenName checks the name of a join token, which people may choose as a secret.
func validTokenName(s string) error {
	if err := sized("a name", s, 1024); err != nil {
		return err
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return fault.Invalid("a token name must be printable ASCII without spaces, and it has the character %q", r)
		}
	}
	return nil
}

// ValidLogin checks the name of an operating-system user: it becomes an SSH
// principal and an argument of system calls.
func ValidLogin(s string) error {
	if err := sized("a login", s, maxName); err != nil {
		return err
	}
	if s[0] == '-' || s == "." || s == ".." {
		return fault.Invalid("login %q must not be a dot or start with a dash", s)
	}
	return onlyChars(s, "._@$+-")
}

// ValidHostname checks a host name: DNS labels, underscores tolerated.
func ValidHostname(s string) error {
	if err := sized("a host name", s, 253); err != nil {
		return err
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fault.Invalid("host name %q: each part has 1 to 63 characters and no dash at its ends", s)
		}
	}
	return onlyChars(s, "._-")
}

// MatchHostname reports whether a name fits a pattern: the same, or with `*` for one
// whole part of the name ("*.example.com").
func MatchHostname(pattern, name string) bool {
	p, n := strings.Split(pattern, "."), strings.Split(name, ".")
	if len(p) != len(n) {
		return false
	}
	for i := range p {
		if p[i] != n[i] && (p[i] != "*" || n[i] == "") {
			return false
		}
	}
	return true
}

// validHostPattern checks what MatchHostname takes.
func validHostPattern(s string) error {
	if net.ParseIP(s) != nil {
		return nil
	}
	if s == "*" {
		return fault.Invalid("%q admits every name: give a domain, such as *.example.com", s)
	}
	return ValidHostname(strings.ReplaceAll(s, "*", "x"))
}

// ValidLabelKey checks the key of a label.
func ValidLabelKey(s string) error {
	if err := sized("a label key", s, maxLabelKey); err != nil {
		return err
	}
	return onlyChars(s, "._/:@+-")
}

// ParseDuration reads a Go duration ("8h30m") that may start with days ("7d",
// "1d12h"). It must be positive.
func ParseDuration(s string) (time.Duration, error) {
	bad := fault.Invalid("%q is not a duration: write it like 30m, 8h or 7d", s)
	rest := s
	var sum time.Duration
	if days, after, ok := strings.Cut(s, "d"); ok {
		n := 0
		if days == "" || len(days) > 5 {
			return 0, bad
		}
		for _, r := range days {
			if r < '0' || r > '9' {
				return 0, bad
			}
			n = n*10 + int(r-'0')
		}
		sum, rest = time.Duration(n)*24*time.Hour, after
	}
	if rest != "" || sum == 0 {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 {
			return 0, bad
		}
		if d > 0 && sum+d < sum {
			return 0, bad
		}
		sum += d
	}
	if sum <= 0 {
		return 0, fault.Invalid("duration %q must be positive", s)
	}
	return sum, nil
}

// ParseLabels reads "a=b,c=d". A key or value with a comma, an equals sign or
// spaces at its ends is put in double quotes. No labels is an empty map.
func ParseLabels(s string) (map[string]string, error) {
	out := make(map[string]string)
	if strings.TrimSpace(s) == "" {
		return out, nil
	}
	parts, err := splitQuoted(s, ',')
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		kv, err := splitQuoted(part, '=')
		if err != nil {
			return nil, err
		}
		if len(kv) != 2 {
			return nil, fault.Invalid("label %q: write it as key=value, several separated by commas", strings.TrimSpace(part))
		}
		k, v := unquote(kv[0]), unquote(kv[1])
		if err := ValidLabelKey(k); err != nil {
			return nil, fmt.Errorf("label %q: %w", strings.TrimSpace(part), err)
		}
		if len(v) > maxLabelValue || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return nil, fault.Invalid("label %q: the value must be printable text of at most %d bytes", k, maxLabelValue)
		}
		if _, twice := out[k]; twice {
			return nil, fault.Invalid("label %q is there twice", k)
		}
		out[k] = v
	}
	return out, nil
}

// splitQuoted splits at sep outside double quotes.
func splitQuoted(s string, sep byte) ([]string, error) {
	var out []string
	quoted, from := false, 0
	for i := range len(s) {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			out = append(out, s[from:i])
			from = i + 1
		}
	}
	if quoted {
		return nil, fault.Invalid("labels %q: a double quote is not closed", s)
	}
	return append(out, s[from:]), nil
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// ServerLabels returns the labels that decide access to a server: its own and
// the results of its command labels. A command cannot replace a label of its own.
func ServerLabels(s *typesv1.Server) map[string]string {
	return withResults(s.GetMetadata().GetLabels(), s.GetSpec().GetCmdLabels())
}

// internalTraits are the traits that {{internal.x}} may name.
func internalTraits() []string {
	return []string{
		"aws_role_arns", "azure_identities", "db_names", "db_roles", "db_users", "gcp_service_accounts", "jwt",
		"kubernetes_groups", "kubernetes_users", "logins", "windows_logins",
	}
}

var templateExpr = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\s*(internal|external)(?:\.([A-Za-z_][A-Za-z0-9_-]{0,127})|\["([^"\]\\]{1,128})"\])\s*$`)
})

// checkTemplate checks a value that may be a template such as {{internal.logins}}
// with literal text around it; plain values and the literal text go to literal.
func checkTemplate(s string, literal func(string) error) error {
	before, rest, ok := strings.Cut(s, "{{")
	if !ok {
		if strings.Contains(s, "}}") {
			return fault.Invalid("%q: }} without {{", s)
		}
		return literal(s)
	}
	expr, after, ok := strings.Cut(rest, "}}")
	if !ok {
		return fault.Invalid("%q: {{ without }}", s)
	}
	if strings.Contains(before, "}}") || strings.Contains(after, "{{") || strings.Contains(after, "}}") {
		return fault.Invalid("%q: more than one template in a value", s)
	}
	m := templateExpr().FindStringSubmatch(expr)
	if m == nil {
		return fault.Invalid("%q: unknown template: use {{internal.logins}}, {{external.name}} or {{external[\"name\"]}}", s)
	}
	if name := m[2] + m[3]; m[1] == "internal" && !slices.Contains(internalTraits(), name) {
		return fault.Invalid("%q: there is no internal trait %q: use one of %s", s, name, strings.Join(internalTraits(), ", "))
	}
	for _, part := range []string{before, after} {
		if part == "" {
			continue
		}
		// The letter stands for what the template yields, so that a dash may follow it.
		if err := literal("x" + part); err != nil {
			return fault.Invalid("%q: the text around the template: %v", s, err)
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

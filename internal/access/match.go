package access

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// maxRegexp bounds the size of a regular expression.
const maxRegexp = 4096

// wildcard alone stands for everything.
const wildcard = "*"

// pattern matches one label value: literal text with `*` globs, or a regexp.
// What came from a trait is literal: a trait cannot bring in a glob.
type pattern struct {
	// parts are the literal pieces between globs; one piece is an exact match.
	parts  []string
	regexp *regexp.Regexp
}

// isRegexp reports whether a label value is in the form of a regular expression.
func isRegexp(s string) bool {
	return len(s) >= 2 && s[0] == '^' && s[len(s)-1] == '$'
}

// compileRegexp compiles `^...$` so that it matches the whole value: an
// alternative inside does not escape the anchors.
func compileRegexp(s string) (*regexp.Regexp, error) {
	if len(s) > maxValue {
		return nil, fault.Invalid("regular expression of %d bytes is too long: use at most %d", len(s), maxValue)
	}
	tree, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, fault.Invalid("regular expression %q: %w", s, err)
	}
	if regexpSize(tree) > maxRegexp {
		return nil, fault.Invalid("regular expression %q repeats too much: it would have more than %d parts", s, maxRegexp)
	}
	re, err := regexp.Compile(`\A(?:` + s[1:len(s)-1] + `)\z`)
	if err != nil {
		return nil, fault.Invalid("regular expression %q: the last $ is not an anchor", s)
	}
	return re, nil
}

// regexpSize returns how many parts an expression has once its counted
// repetitions are written out, which is what time and memory grow with. It stops
// counting soon after maxRegexp.
func regexpSize(re *syntax.Regexp) int {
	size := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		size += regexpSize(sub)
		if size > maxRegexp {
			return size
		}
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Min, re.Max, 1)
	}
	return size
}

// compileValue turns one label value of a role into its patterns: none when its
// template has no values.
func compileValue(s string, traits map[string][]string) ([]pattern, error) {
	if isRegexp(s) {
		if strings.Contains(s, "{{") {
			return nil, fault.Invalid("regular expression %q has a template: use one or the other", s)
		}
		re, err := compileRegexp(s)
		if err != nil {
			return nil, err
		}
		return []pattern{{regexp: re}}, nil
	}
	t, err := parseTemplate(s)
	if err != nil {
		return nil, err
	}
	if t.trait == "" {
		return []pattern{{parts: strings.Split(t.before, wildcard)}}, nil
	}
	var out []pattern
	for _, v := range traits[t.trait] {
		if v == "" {
			continue
		}
		parts := strings.Split(t.before, wildcard)
		tail := strings.Split(t.after, wildcard)
		parts[len(parts)-1] += v + tail[0]
		out = append(out, pattern{parts: append(parts, tail[1:]...)})
	}
	return out, nil
}

// match reports whether the value fits the pattern.
func (p pattern) match(value string) bool {
	if p.regexp != nil {
		return p.regexp.MatchString(value)
	}
	first, last := p.parts[0], p.parts[len(p.parts)-1]
	if len(p.parts) == 1 {
		return value == first
	}
	if len(value) < len(first)+len(last) || !strings.HasPrefix(value, first) || !strings.HasSuffix(value, last) {
		return false
	}
	value = value[len(first) : len(value)-len(last)]
	for _, part := range p.parts[1 : len(p.parts)-1] {
		_, after, found := strings.Cut(value, part)
		if !found {
			return false
		}
		value = after
	}
	return true
}

// labelKey is one key of a label selector with what its value may be.
type labelKey struct {
	key      string
	patterns []pattern
}

// selector is a compiled label selector.
type selector struct {
	keys []labelKey
	// everything is set by '*':'*'.
	everything bool
	// broken says why the selector cannot be decided; an allow selector then
	// matches nothing and a deny selector everything.
	broken error
}

// compileSelector compiles the labels of one condition. Problems do not stop
// it: they are kept in broken.
func compileSelector(labels map[string]*typesv1.Strings, traits map[string][]string) selector {
	var s selector
	for _, key := range sortedKeys(labels) {
		values := labels[key].GetValues()
		if key == wildcard {
			if len(values) == 0 || slices.ContainsFunc(values, func(v string) bool { return v != wildcard }) {
				s.broken = fault.Invalid("label key %q needs the value %q and no other", wildcard, wildcard)
				return s
			}
			s.everything = true
			continue
		}
		k := labelKey{key: key}
		for _, v := range values {
			patterns, err := compileValue(v, traits)
			if err != nil {
				s.broken = err
				return s
			}
			k.patterns = append(k.patterns, patterns...)
		}
		s.keys = append(s.keys, k)
	}
	return s
}

// allows reports whether every key is matched; a selector without keys
// matches nothing.
func (s selector) allows(labels map[string]string) bool {
	if s.broken != nil || (!s.everything && len(s.keys) == 0) {
		return false
	}
	for _, k := range s.keys {
		if !k.match(labels) {
			return false
		}
	}
	return true
}

// denies reports whether any key is matched, or the selector is broken.
func (s selector) denies(labels map[string]string) bool {
	return s.broken != nil || s.everything || slices.ContainsFunc(s.keys, func(k labelKey) bool { return k.match(labels) })
}

func (k labelKey) match(labels map[string]string) bool {
	value, ok := labels[k.key]
	return ok && slices.ContainsFunc(k.patterns, func(p pattern) bool { return p.match(value) })
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

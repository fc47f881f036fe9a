package method

import (
	"fmt"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// RuleResult is one allow rule of a token, compared with claims.
type RuleResult struct {
	// Path is where the rule stands, e.g. "spec.allow[0]".
	Path    string
	Matched bool
	Fields  []FieldResult
}

// FieldResult is one field of a rule, compared with claims.
type FieldResult struct {
	Name string
	// Want has the values of which one must match, Got what was proven.
	Want, Got []string
	Matched   bool
}

// Match compares the allow rules of a token with claims. A rule matches if all its
// fields do, a field if one of its values matches one of the attribute's. A token
// whose method has no rules admits by the proof alone: the result is empty, and
// allowed.
func Match(spec *typesv1.TokenSpec, claims Claims) (results []RuleResult, allowed bool) {
	row, ok := types.JoinMethodRow(spec.GetJoinMethod())
	if !ok {
		return nil, false
	}
	if row.Rules == nil {
		return nil, true
	}
	for _, rule := range row.Rules(spec) {
		r := RuleResult{Path: rule.Path}
		trusted := false
		for _, f := range rule.Fields() {
			got := claims.Attributes[f.Attribute]
			fr := FieldResult{Name: f.Name, Want: f.Want, Got: got}
			fr.Matched = slices.ContainsFunc(f.Want, func(want string) bool {
				return slices.ContainsFunc(got, func(v string) bool { return f.Match(want, v) })
			})
			trusted = trusted || f.Trust
			r.Fields = append(r.Fields, fr)
		}
		// A rule without a field that trust rests on was refused when it was written;
		// here it admits nobody, whatever wrote it.
		r.Matched = trusted && !slices.ContainsFunc(r.Fields, func(f FieldResult) bool { return !f.Matched })
		allowed = allowed || r.Matched
		results = append(results, r)
	}
	return results, allowed
}

// Refusal is the error when no rule matches: the machine sees what was proven about
// it, not what the rules want.
func Refusal(claims Claims) error {
	names := make([]string, 0, len(claims.Attributes))
	for name := range claims.Attributes {
		names = append(names, name)
	}
	slices.Sort(names)
	parts := make([]string, 0, len(names))
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%s %q", name, strings.Join(claims.Attributes[name], ", ")))
	}
	return fault.New(fault.ErrDenied, "no allow rule of the token matches this machine; it proved: %s. Correct the rules with `tctl edit token/NAME`, or see them compared with `tctl tokens test`",
		strings.Join(parts, ", ")).WithCode(CodeRuleMismatch)
}

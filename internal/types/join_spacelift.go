package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method spacelift: spaceId, callerId, callerType and scope of Spacelift's
// tokens.
func spaceliftMethod() JoinMethod {
	row := func(match func(want, got string) bool, check func(string) error) JoinMethod {
		return ruleMethod(JoinMethodSpacelift, "spacelift", "spec.spacelift.allow",
			func(s *typesv1.TokenSpec) []*typesv1.SpaceliftRule { return s.GetSpacelift().GetAllow() },
			RuleField{Name: "space_id", Trust: true, Match: match, Check: check},
			RuleField{Name: "caller_id", Trust: true, Match: match, Check: check},
			RuleField{Name: "caller_type", Check: oneOf("stack", "module")},
			RuleField{Name: "scope", Check: oneOf("read", "write")},
		)
	}
	literal := row(nil, checkSpaceliftLiteral)
	globs := row(MatchSegments, checkSomeGlob)
	m := literal
	m.Rules = func(s *typesv1.TokenSpec) []JoinRule {
		if s.GetSpacelift().GetEnableGlobMatching() {
			return globs.Rules(s)
		}
		return literal.Rules(s)
	}
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		problem("spec.spacelift.hostname", checkIssuerHost(s.GetSpacelift().GetHostname()), add)
	}
	return m
}

func checkSpaceliftLiteral(value string) error {
	if strings.ContainsAny(value, "*?") {
		return fault.Invalid("%q has a wildcard: set spec.spacelift.enable_glob_matching: true if it is meant as one", value)
	}
	return checkSpace(value)
}

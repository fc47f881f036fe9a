package types

import typesv1 "teleport/api/types/v1"

func spaceliftMethod() JoinMethod {
	return ruleMethod(JoinMethodSpacelift, "spacelift", "spec.spacelift.allow",
		func(s *typesv1.TokenSpec) []*typesv1.SpaceliftRule { return s.GetSpacelift().GetAllow() },
		RuleField{Name: "space_id", Trust: true},
	)
}

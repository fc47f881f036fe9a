package types

import typesv1 "teleport/api/types/v1"

func oidcMethod() JoinMethod {
	return ruleMethod(JoinMethodOIDC, "oidc", "spec.oidc.allow",
		func(s *typesv1.TokenSpec) []*typesv1.OIDCRule { return s.GetOidc().GetAllow() },
		RuleField{Name: "must_match_fields", Trust: true},
	)
}

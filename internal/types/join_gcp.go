package types

import typesv1 "teleport/api/types/v1"

func gcpMethod() JoinMethod {
	return ruleMethod(JoinMethodGCP, "gcp", "spec.gcp.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GCPRule { return s.GetGcp().GetAllow() },
		RuleField{Name: "project_ids", Trust: true},
		RuleField{Name: "service_accounts"},
		RuleField{Name: "locations"},
	)
}

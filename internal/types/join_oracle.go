package types

import typesv1 "teleport/api/types/v1"

func oracleMethod() JoinMethod {
	return ruleMethod(JoinMethodOracle, "oracle", "spec.oracle.allow",
		func(s *typesv1.TokenSpec) []*typesv1.OracleRule { return s.GetOracle().GetAllow() },
		RuleField{Name: "tenancy", Trust: true},
		RuleField{Name: "parent_compartments"},
		RuleField{Name: "regions"},
		RuleField{Name: "instances"},
	)
}

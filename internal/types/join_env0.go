package types

import typesv1 "teleport/api/types/v1"

func env0Method() JoinMethod {
	return ruleMethod(JoinMethodEnv0, "env0", "spec.env0.allow",
		func(s *typesv1.TokenSpec) []*typesv1.Env0Rule { return s.GetEnv0().GetAllow() },
		RuleField{Name: "project_id", Trust: true},
	)
}

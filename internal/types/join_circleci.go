package types

import typesv1 "teleport/api/types/v1"

func circleciMethod() JoinMethod {
	return ruleMethod(JoinMethodCircleCI, "circleci", "spec.circleci.allow",
		func(s *typesv1.TokenSpec) []*typesv1.CircleCIRule { return s.GetCircleci().GetAllow() },
		RuleField{Name: "project_id", Trust: true},
	)
}

package types

import typesv1 "teleport/api/types/v1"

func iamMethod() JoinMethod {
	return ruleMethod(JoinMethodIAM, "allow", "spec.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AWSRule { return s.GetAllow() },
		RuleField{Name: "aws_account", Trust: true},
		RuleField{Name: "aws_arn"},
	)
}

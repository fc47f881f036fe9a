package types

import typesv1 "teleport/api/types/v1"

func ec2Method() JoinMethod {
	return ruleMethod(JoinMethodEC2, "allow", "spec.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AWSRule { return s.GetAllow() },
		RuleField{Name: "aws_account", Trust: true},
		RuleField{Name: "aws_regions"},
	)
}

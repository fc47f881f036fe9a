package types

import typesv1 "teleport/api/types/v1"

func bitbucketMethod() JoinMethod {
	return ruleMethod(JoinMethodBitbucket, "bitbucket", "spec.bitbucket.allow",
		func(s *typesv1.TokenSpec) []*typesv1.BitbucketRule { return s.GetBitbucket().GetAllow() },
		RuleField{Name: "workspace_uuid", Trust: true},
	)
}

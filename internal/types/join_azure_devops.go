package types

import typesv1 "teleport/api/types/v1"

func azureDevopsMethod() JoinMethod {
	return ruleMethod(JoinMethodAzureDevops, "azure_devops", "spec.azure_devops.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AzureDevopsRule { return s.GetAzureDevops().GetAllow() },
		RuleField{Name: "project_id", Trust: true},
	)
}

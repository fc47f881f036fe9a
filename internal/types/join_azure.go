package types

import typesv1 "teleport/api/types/v1"

func azureMethod() JoinMethod {
	return ruleMethod(JoinMethodAzure, "azure", "spec.azure.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AzureRule { return s.GetAzure().GetAllow() },
		RuleField{Name: "subscription", Trust: true},
		RuleField{Name: "tenant", Trust: true},
		RuleField{Name: "resource_groups"},
	)
}

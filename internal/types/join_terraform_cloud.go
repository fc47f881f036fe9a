package types

import typesv1 "teleport/api/types/v1"

func terraformCloudMethod() JoinMethod {
	return ruleMethod(JoinMethodTerraformCloud, "terraform_cloud", "spec.terraform_cloud.allow",
		func(s *typesv1.TokenSpec) []*typesv1.TerraformCloudRule { return s.GetTerraformCloud().GetAllow() },
		RuleField{Name: "organization_id", Trust: true},
	)
}

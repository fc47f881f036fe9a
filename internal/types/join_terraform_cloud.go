package types

import typesv1 "teleport/api/types/v1"

// The rule of method terraform_cloud: the claims terraform_workspace_id and so on.
// All organisations have one issuer, so a rule names its organisation, and in it a
// project or a workspace.
func terraformCloudMethod() JoinMethod {
	m := ruleMethod(JoinMethodTerraformCloud, "terraform_cloud", "spec.terraform_cloud.allow",
		func(s *typesv1.TokenSpec) []*typesv1.TerraformCloudRule { return s.GetTerraformCloud().GetAllow() },
		literals(
			RuleField{Name: "organization_id", Trust: true},
			RuleField{Name: "organization_name", Trust: true},
			RuleField{Name: "project_id"},
			RuleField{Name: "project_name"},
			RuleField{Name: "workspace_id"},
			RuleField{Name: "workspace_name"},
			RuleField{Name: "run_phase", Check: oneOf("plan", "apply")},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		t := s.GetTerraformCloud()
		if host := t.GetHostname(); host != "" {
			problem("spec.terraform_cloud.hostname", checkIssuerHost(host), add)
		}
		for i, r := range t.GetAllow() {
			if r.GetProjectId() == "" && r.GetProjectName() == "" && r.GetWorkspaceId() == "" && r.GetWorkspaceName() == "" {
				add(rulePath("spec.terraform_cloud.allow", i), "the rule would admit every workspace of the organisation: give project_id, project_name, workspace_id or workspace_name")
			}
		}
	}
	return m
}

package types

import typesv1 "teleport/api/types/v1"

// The rule of method env0: organizationId, projectId and so on of env0's tokens. All
// organisations have one issuer, so a rule names its organisation, and in it a project.
func env0Method() JoinMethod {
	m := ruleMethod(JoinMethodEnv0, "env0", "spec.env0.allow",
		func(s *typesv1.TokenSpec) []*typesv1.Env0Rule { return s.GetEnv0().GetAllow() },
		literals(
			RuleField{Name: "organization_id", Trust: true},
			RuleField{Name: "project_id"},
			RuleField{Name: "project_name", Check: checkSpace},
			RuleField{Name: "template_id"},
			RuleField{Name: "template_name", Check: checkSpace},
			RuleField{Name: "environment_id"},
			RuleField{Name: "environment_name", Check: checkSpace},
			RuleField{Name: "workspace_name", Check: checkSpace},
			RuleField{Name: "deployment_type"},
			RuleField{Name: "deployer_email"},
			RuleField{Name: "env0_tag", Check: checkSpace},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		for i, r := range s.GetEnv0().GetAllow() {
			if r.GetProjectId() == "" && r.GetProjectName() == "" {
				add(rulePath("spec.env0.allow", i), "the rule would admit every project of the organisation: give project_id or project_name")
			}
		}
	}
	return m
}

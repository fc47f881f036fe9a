package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method azure_devops. The attributes are the claims sub, prj_id, def_id,
// rpo_uri, rpo_ver and rpo_ref of the pipeline's token; project_name and pipeline_name
// come out of sub, which is p://ORGANIZATION/PROJECT/PIPELINE.
func azureDevopsMethod() JoinMethod {
	m := ruleMethod(JoinMethodAzureDevops, "azure_devops", "spec.azure_devops.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AzureDevopsRule { return s.GetAzureDevops().GetAllow() },
		literals(
			RuleField{Name: "sub", Trust: true, Check: checkAzureDevopsSub},
			RuleField{Name: "project_id", Trust: true, Check: checkUUID},
			RuleField{Name: "project_name", Trust: true},
			RuleField{Name: "pipeline_name"},
			RuleField{Name: "definition_id", Check: checkDigits},
			RuleField{Name: "repository_uri", Check: checkSpace},
			RuleField{Name: "repository_version"},
			RuleField{Name: "repository_ref"},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		problem("spec.azure_devops.organization_id", checkUUID(s.GetAzureDevops().GetOrganizationId()), add)
	}
	return m
}

func checkAzureDevopsSub(value string) error {
	if rest, ok := strings.CutPrefix(value, "p://"); !ok || strings.Count(rest, "/") != 2 || strings.ContainsAny(value, "*?") {
		return fault.Invalid("%q: expected p://ORGANIZATION/PROJECT/PIPELINE, without wildcards", value)
	}
	return nil
}

package types

import typesv1 "teleport/api/types/v1"

// The rule of method circleci. The attributes are the claims
// oidc.circleci.com/project-id and oidc.circleci.com/context-ids; a job in several
// contexts has several context_id.
func circleciMethod() JoinMethod {
	m := ruleMethod(JoinMethodCircleCI, "circleci", "spec.circleci.allow",
		func(s *typesv1.TokenSpec) []*typesv1.CircleCIRule { return s.GetCircleci().GetAllow() },
		RuleField{Name: "project_id", Trust: true, Check: checkUUID},
		RuleField{Name: "context_id", Trust: true, Check: checkUUID},
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		problem("spec.circleci.organization_id", checkUUID(s.GetCircleci().GetOrganizationId()), add)
	}
	return m
}

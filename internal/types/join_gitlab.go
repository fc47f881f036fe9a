package types

import typesv1 "teleport/api/types/v1"

func gitlabMethod() JoinMethod {
	return ruleMethod(JoinMethodGitLab, "gitlab", "spec.gitlab.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GitLabRule { return s.GetGitlab().GetAllow() },
		RuleField{Name: "project_path", Trust: true},
	)
}

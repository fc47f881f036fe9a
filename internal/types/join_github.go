package types

import typesv1 "teleport/api/types/v1"

func githubMethod() JoinMethod {
	return ruleMethod(JoinMethodGitHub, "github", "spec.github.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GitHubRule { return s.GetGithub().GetAllow() },
		RuleField{Name: "repository", Trust: true},
	)
}

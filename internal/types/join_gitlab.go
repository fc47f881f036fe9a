package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method gitlab. Its names are the claims of GitLab's tokens.
func gitlabMethod() JoinMethod {
	m := ruleMethod(JoinMethodGitLab, "gitlab", "spec.gitlab.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GitLabRule { return s.GetGitlab().GetAllow() },
		literals(
			RuleField{Name: "project_path", Trust: true, Match: MatchSegments, Check: checkRootedGlob},
			RuleField{Name: "namespace_path", Trust: true, Match: MatchSegments, Check: checkRootedGlob},
			RuleField{Name: "sub", Trust: true, Match: MatchSegments, Check: checkGitLabSub},
			RuleField{Name: "ref", Match: MatchSegments, Check: checkSomeGlob},
			RuleField{Name: "ref_type"},
			RuleField{Name: "ref_protected"},
			RuleField{Name: "pipeline_source"},
			RuleField{Name: "environment", Check: checkSpace},
			RuleField{Name: "environment_protected"},
			RuleField{Name: "deployment_tier"},
			RuleField{Name: "user_login"},
			RuleField{Name: "user_id", Check: checkDigits},
			RuleField{Name: "user_email"},
			RuleField{Name: "ci_config_sha"},
			RuleField{Name: "ci_config_ref_uri"},
			RuleField{Name: "project_visibility"},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		if domain := s.GetGitlab().GetDomain(); domain != "" {
			problem("spec.gitlab.domain", checkIssuerHost(domain), add)
		}
		if set := s.GetGitlab().GetStaticJwks(); set != "" {
			problem("spec.gitlab.static_jwks", checkStaticJWKS(set), add)
		}
	}
	return m
}

// checkGitLabSub: the subject is project_path:GROUP/PROJECT:ref_type:TYPE:ref:NAME, and
// the first colon and slash are not to be wildcards' prey either.
func checkGitLabSub(value string) error {
	if wild := strings.IndexAny(value, "*?"); wild >= 0 && strings.IndexByte(value, ':') < 1 {
		return fault.Invalid("%q: expected a subject such as project_path:acme/*:ref_type:branch:ref:main", value)
	}
	return checkRootedGlob(value)
}

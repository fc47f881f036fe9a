package types

import (
	"regexp"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method github. Its names are the claims of GitHub's tokens.
func githubMethod() JoinMethod {
	m := ruleMethod(JoinMethodGitHub, "github", "spec.github.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GitHubRule { return s.GetGithub().GetAllow() },
		literals(
			RuleField{Name: "repository", Trust: true, Check: checkGitHubRepository},
			RuleField{Name: "repository_owner", Trust: true},
			RuleField{Name: "repository_id", Trust: true, Check: checkDigits},
			RuleField{Name: "repository_owner_id", Trust: true, Check: checkDigits},
			RuleField{Name: "sub", Trust: true},
			RuleField{Name: "workflow", Check: checkSpace},
			RuleField{Name: "environment", Check: checkSpace},
			RuleField{Name: "actor"},
			RuleField{Name: "ref"},
			RuleField{Name: "ref_type", Check: checkGitHubRefType},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		g := s.GetGithub()
		if host := g.GetEnterpriseServerHost(); host != "" {
			problem("spec.github.enterprise_server_host", checkIssuerHost(host), add)
			if g.GetEnterpriseSlug() != "" {
				add("spec.github.enterprise_slug", "it is for GitHub Enterprise Cloud: leave out enterprise_slug or enterprise_server_host")
			}
		}
		if slug := g.GetEnterpriseSlug(); slug != "" && !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`).MatchString(slug) {
			add("spec.github.enterprise_slug", "%q: expected the last part of https://github.com/enterprises/SLUG", slug)
		}
		if set := g.GetStaticJwks(); set != "" {
			problem("spec.github.static_jwks", checkStaticJWKS(set), add)
		}
	}
	return m
}

func checkGitHubRepository(name string) error {
	if owner, repo, ok := strings.Cut(name, "/"); !ok || owner == "" || repo == "" || strings.Contains(repo, "/") {
		return fault.Invalid("%q: expected OWNER/REPOSITORY", name)
	}
	return checkRuleText(name)
}

func checkGitHubRefType(value string) error {
	if value != "branch" && value != "tag" {
		return fault.Invalid("%q: expected branch or tag", value)
	}
	return nil
}

func checkDigits(value string) error {
	if strings.Trim(value, "0123456789") != "" {
		return fault.Invalid("%q: expected a number, in quotes", value)
	}
	return nil
}

// checkSpace is for names that people chose, in which any character may be.
func checkSpace(value string) error {
	if strings.TrimSpace(value) != value {
		return fault.Invalid("%q begins or ends with a space", value)
	}
	return nil
}

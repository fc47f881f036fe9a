package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method bitbucket: workspaceUuid, repositoryUuid, deploymentEnvironmentUuid
// and branchName of Bitbucket's tokens. Its UUIDs have braces around them, there and
// here.
func bitbucketMethod() JoinMethod {
	m := ruleMethod(JoinMethodBitbucket, "bitbucket", "spec.bitbucket.allow",
		func(s *typesv1.TokenSpec) []*typesv1.BitbucketRule { return s.GetBitbucket().GetAllow() },
		literals(
			RuleField{Name: "workspace_uuid", Trust: true, Check: checkBracedUUID},
			RuleField{Name: "repository_uuid", Trust: true, Check: checkBracedUUID},
			RuleField{Name: "deployment_environment_uuid", Check: checkBracedUUID},
			RuleField{Name: "branch_name"},
		)...,
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		b := s.GetBitbucket()
		problem("spec.bitbucket.identity_provider_url", checkIssuerURL(b.GetIdentityProviderUrl(), false), add)
		if b.GetAudience() == "" {
			add("spec.bitbucket.audience", "missing: it is in the settings of the repository, OpenID Connect, Audience")
		}
	}
	return m
}

func checkBracedUUID(value string) error {
	inner, ok := strings.CutPrefix(value, "{")
	inner, closed := strings.CutSuffix(inner, "}")
	if !ok || !closed || checkUUID(inner) != nil {
		return fault.Invalid("%q: expected a UUID in braces, in lower case and in quotes, as Bitbucket shows it", value)
	}
	return nil
}

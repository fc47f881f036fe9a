package types

import (
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
)

// The rule of method oidc. The attributes are the claims that the rules name, by their
// path.
func oidcMethod() JoinMethod {
	m := ruleMethod(JoinMethodOIDC, "oidc", "spec.oidc.allow",
		func(s *typesv1.TokenSpec) []*typesv1.OIDCRule { return s.GetOidc().GetAllow() },
		RuleField{Name: "must_match_fields", Trust: true, Check: checkSpace},
		RuleField{Name: "glob_fields", Match: MatchSegments, Check: checkSomeGlob},
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		o := s.GetOidc()
		problem("spec.oidc.issuer", checkIssuerURL(o.GetIssuer(), false), add)
		if set := o.GetStaticJwks(); set != "" {
			problem("spec.oidc.static_jwks", checkStaticJWKS(set), add)
			if o.GetCa() != "" {
				add("spec.oidc.ca", "with static_jwks nothing is fetched from the issuer: leave out ca or static_jwks")
			}
		}
		if ca := o.GetCa(); ca != "" {
			problem("spec.oidc.ca", checkIssuerCA(ca), add)
		}
		for i, r := range o.GetAllow() {
			checkOIDCRule(rulePath("spec.oidc.allow", i), o.GetIssuer(), r, add)
		}
	}
	return m
}

// maxClaimPath bounds the name of a claim.
const maxClaimPath = 256

// owners returns, for an issuer whose tokens anybody can get, the claims that say whose a
// token is; nil for any other issuer. The names are those of the platforms' documents.
func owners(issuer string) []string {
	switch strings.TrimSuffix(issuer, "/") {
	case "https://token.actions.githubusercontent.com":
		return []string{"sub", "repository", "repository_id", "repository_owner", "repository_owner_id", "job_workflow_ref", "enterprise_id"}
	case "https://gitlab.com":
		return []string{"sub", "project_path", "project_id", "namespace_path", "namespace_id"}
	case "https://app.terraform.io":
		return []string{"sub", "terraform_organization_id", "terraform_organization_name", "terraform_project_id", "terraform_workspace_id"}
	case "https://login.app.env0.com":
		return []string{"organizationId", "projectId", "templateId", "environmentId"}
	case "https://accounts.google.com":
		return []string{"sub", "email", "hd"}
	}
	return nil
}

func checkOIDCRule(path, issuer string, r *typesv1.OIDCRule, add func(path, format string, args ...any)) {
	telling := false
	for name := range r.GetMustMatchFields() {
		// What every token of the issuer for this cluster has tells nobody apart.
		telling = telling || !slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat", "jti", "azp"}, name)
	}
	if len(r.GetMustMatchFields()) > 0 && !telling {
		add(path+".must_match_fields", "the rule would admit every token of the issuer: give a claim that says whose it is, such as sub")
	}
	if of := owners(issuer); telling && of != nil && !slices.ContainsFunc(of, func(name string) bool { return r.GetMustMatchFields()[name] != nil }) {
		add(path+".must_match_fields", "the rule would admit what anybody may make, since all the world has tokens of this issuer: give %s", orWords(of))
	}
	for _, fields := range []map[string]*typesv1.Strings{r.GetMustMatchFields(), r.GetGlobFields()} {
		for name := range fields {
			if name == "" || len(name) > maxClaimPath {
				add(path, "the name of a claim has %d bytes: expected 1 to %d", len(name), maxClaimPath)
			}
		}
	}
}

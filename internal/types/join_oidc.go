package types

import (
	"slices"

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
			checkOIDCRule(rulePath("spec.oidc.allow", i), r, add)
		}
	}
	return m
}

// maxClaimPath bounds the name of a claim.
const maxClaimPath = 256

func checkOIDCRule(path string, r *typesv1.OIDCRule, add func(path, format string, args ...any)) {
	telling := false
	for name := range r.GetMustMatchFields() {
		// What every token of the issuer for this cluster has tells nobody apart.
		telling = telling || !slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat", "jti", "azp"}, name)
	}
	if len(r.GetMustMatchFields()) > 0 && !telling {
		add(path+".must_match_fields", "the rule would admit every token of the issuer: give a claim that says whose it is, such as sub")
	}
	for _, fields := range []map[string]*typesv1.Strings{r.GetMustMatchFields(), r.GetGlobFields()} {
		for name := range fields {
			if name == "" || len(name) > maxClaimPath {
				add(path, "the name of a claim has %d bytes: expected 1 to %d", len(name), maxClaimPath)
			}
		}
	}
}

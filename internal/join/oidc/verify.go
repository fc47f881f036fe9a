package oidc

import (
	"context"

	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

type verifier struct {
	preset
	issuers *jwt.Issuers
}

// verify is Auth's half. The issuer, the keys and the audience are what the token of
// the cluster says; the machine's token is only compared with them.
func (v verifier) verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	token, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	spec := a.Token.GetSpec()
	source := v.source(spec)
	keys := v.issuers.Keys(a.Egress, source)
	if v.static != nil && v.static(spec) != "" {
		if keys, err = jwt.Static(v.static(spec)); err != nil {
			return method.Claims{}, err
		}
	}
	audience := boundAudience(a.Cluster, a.T)
	if v.audience != nil {
		audience = v.audience(a.Cluster, spec)
	}
	c, err := jwt.Verify(ctx, string(token), keys, jwt.Expect{
		Issuer: source.Issuer, Audience: audience, Now: a.Now, Leeway: jwt.Leeway, MaxLifetime: maxLifetime,
	})
	if c.Raw == nil {
		return method.Claims{}, err
	}
	claims := method.Claims{Attributes: map[string][]string{}}
	for name, path := range v.claims {
		add(claims.Attributes, name, c.Texts(path...))
	}
	add(claims.Attributes, "sub", c.Texts("sub"))
	if v.more != nil {
		if problem := v.more(c, spec, claims.Attributes); err == nil {
			err = problem
		}
	}
	if err != nil {
		return claims, err
	}
	if v.audience != nil {
		claims.Once = []method.Proof{once(v.preset, source.Issuer, c)}
	}
	return claims, nil
}

// add sets an attribute to the values that say something.
func add(to map[string][]string, name string, values []string) {
	for _, v := range values {
		if v != "" {
			to[name] = append(to[name], v)
		}
	}
}

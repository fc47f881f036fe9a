// Package oidc is the join method of platforms that give their jobs a signed token
// (OpenID Connect): any issuer, and presets for the well-known ones. All of them are
// one implementation and a row each: who signs, for which audience, where the machine
// finds the token, and what its claims are called in the rules.
//
//	Auth    -> machine: (empty)
//	machine -> Auth: the token
//	Auth    -> issuer: its keys, if the cache has none
//
// Where the platform lets the job choose the audience, it holds the transcript of the
// attempt, so the token is good for this attempt and these keys alone. Elsewhere a
// token admits one machine, once.
package oidc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

// maxLifetime bounds the tokens: the longest that platforms give are good for a day.
const maxLifetime = 24 * time.Hour

// preset is one platform.
type preset struct {
	name string
	// source is the issuer, by what the token of the cluster says.
	source func(*typesv1.TokenSpec) jwt.Source
	// static returns the key set that was written down, or "". Nil: there is none.
	static func(*typesv1.TokenSpec) string
	// audience is what aud must have. Nil: the cluster and the attempt, which makes the
	// proof one of this attempt; anything else is good once.
	audience func(cluster string, spec *typesv1.TokenSpec) string
	// claims are the attributes and the claims that they come from.
	claims map[string][]string
	// more adds attributes that are not simply claims, and refuses tokens that are of
	// another kind. Nil: nothing to add.
	more func(jwt.Claims, *typesv1.TokenSpec, map[string][]string) error
	// token gets the token on the machine.
	token func(context.Context, method.Machine) (string, error)
}

// Methods returns the generic method and the presets; issuers remembers the keys of
// their issuers.
func Methods(issuers *jwt.Issuers) []method.Method {
	var out []method.Method
	for _, p := range presets() {
		out = append(out, method.Method{Name: p.name, Attests: true, Bearer: p.audience != nil, Prove: p.prove, Verify: verifier{p, issuers}.verify})
	}
	return out
}

// boundAudience is the audience of tokens that are made for one attempt.
func boundAudience(cluster string, t [32]byte) string {
	return "https://" + cluster + "/join/" + base64.RawURLEncoding.EncodeToString(t[:])
}

// once is how a token is remembered: by what the issuer calls it, or else by what it
// says. Its signature is no part of that, since a signature can have two forms.
func once(p preset, issuer string, c jwt.Claims) method.Proof {
	id := c.ID
	if id == "" {
		sum := sha256.Sum256(c.Raw)
		id = "sha256:" + hex.EncodeToString(sum[:])
	}
	sum := sha256.Sum256([]byte(issuer + "\n" + id))
	return method.Proof{ID: p.name + "/" + hex.EncodeToString(sum[:]), Until: c.Expiry.Add(jwt.Leeway)}
}

func names(of ...string) map[string][]string {
	out := map[string][]string{}
	for _, name := range of {
		out[name] = []string{name}
	}
	return out
}

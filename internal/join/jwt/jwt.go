// Package jwt verifies the signed tokens (JWT, RFC 7519) that platforms give to
// their machines and jobs, and finds the keys for it: in a set that an administrator
// wrote down, or at the issuer, with a bounded cache. What is verified, and against
// which issuer and audience, is the caller's to say: nothing is taken from a token
// before its signature is good. It makes no tokens.
//
// A join method verifies so:
//
//	keys := issuers.Keys(attempt.Egress, jwt.Source{Issuer: issuer}) // or jwt.Static(text)
//	claims, err := jwt.Verify(ctx, token, keys, jwt.Expect{
//		Issuer: issuer, Audience: attempt.Cluster, Now: attempt.Now, Leeway: jwt.Leeway, MaxLifetime: time.Hour,
//	})
//
// Claims that come with an error were verified before it failed.
package jwt

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"teleport/internal/fault"
	"teleport/internal/join/jwk"
	"teleport/internal/join/method"
)

const (
	// MaxToken is the length of a token, in bytes.
	MaxToken = 16 << 10
	// Leeway is how far the clock of a platform may be from ours.
	Leeway = time.Minute

	maxHeader = 2 << 10
	maxKeyID  = 512
)

// Expect is what a token must be.
type Expect struct {
	// Issuer is iss, to the letter: no slash more or less. Empty only together with
	// AnyIssuer.
	Issuer string
	// AnyIssuer leaves iss unchecked, for keys that are of one issuer whatever it
	// calls itself: Static keys and no others.
	AnyIssuer bool
	// Audience must be in aud, to the letter.
	Audience string
	Now      time.Time
	// Leeway is allowed on exp, nbf and iat.
	Leeway time.Duration
	// MaxLifetime bounds exp minus iat; both must be there.
	MaxLifetime time.Duration
}

// Verify checks that a token is signed by one of the keys and is what is expected of
// it. The shape of the token and its header are checked before any key is looked for.
// Errors have the codes of package method: proof_malformed, proof_signature,
// proof_issuer, proof_audience, proof_expired, proof_not_yet_valid, proof_lifetime,
// and cloud_unreachable if the issuer gives no keys.
func Verify(ctx context.Context, token string, keys Keys, want Expect) (Claims, error) {
	h, payload, err := parse(token)
	if err != nil {
		return Claims{}, err
	}
	found, err := keys.find(ctx, h.kid)
	if err == nil {
		err = verify(token, h, payload, found)
	}
	if err != nil {
		return Claims{}, want.foreign(payload, err)
	}
	c, err := parseClaims(payload)
	if err != nil {
		return Claims{}, err
	}
	c.KeyID = h.kid
	return c, want.check(c)
}

// Unverified returns what a token says about itself before anybody checked it. It is
// for one purpose: to choose among issuers that an administrator named. Nothing else
// may be read from it, and no address made of it may be asked.
func Unverified(token string) (Claims, error) {
	h, payload, err := parse(token)
	if err != nil {
		return Claims{}, err
	}
	c, err := parseClaims(payload)
	c.KeyID = h.kid
	return c, err
}

// algorithms are those that we accept: with a public key, no weaker than SHA-256.
func algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

type header struct{ alg, kid string }

// parse takes a token apart without trusting it.
func parse(token string) (header, []byte, error) {
	if len(token) > MaxToken {
		return header{}, nil, malformed("a token of %d bytes: the most is %d", len(token), MaxToken)
	}
	if strings.Count(token, ".") != 2 {
		return header{}, nil, malformed("expected a signed token: three parts with two dots between them")
	}
	parts := strings.Split(token, ".")
	if parts[2] == "" {
		return header{}, nil, malformed("the token has no signature")
	}
	var decoded [3][]byte
	for i, part := range parts {
		// The decoder would skip line breaks.
		if strings.ContainsAny(part, "\r\n") {
			return header{}, nil, malformed("the token has a line break inside")
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil {
			return header{}, nil, malformed("part %d of the token is not base64url without padding", i+1)
		}
		decoded[i] = b
	}
	h, err := parseHeader(decoded[0])
	return h, decoded[1], err
}

func parseHeader(b []byte) (header, error) {
	if len(b) > maxHeader {
		return header{}, malformed("the token has a header of %d bytes: the most is %d", len(b), maxHeader)
	}
	o, err := jwk.Object(b)
	if err != nil {
		return header{}, malformed("the header of the token: %w", err)
	}
	// Each of these would have the token name its own key, or change what the other
	// parts mean.
	for _, name := range []string{"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"} {
		if _, has := o[name]; has {
			return header{}, malformed("the header of the token has %q, which is not accepted", name)
		}
	}
	if typ, has := o["typ"]; has {
		// The same keys sign what is not a proof of identity, such as a logout token.
		s, _ := typ.(string)
		if !slices.Contains([]string{"jwt", "at+jwt"}, strings.ToLower(s)) {
			return header{}, malformed("the header of the token has typ %.64q: expected JWT", s)
		}
	}
	var h header
	if h.alg, _ = o["alg"].(string); !slices.Contains(algorithms(), h.alg) {
		return header{}, malformed("the token is signed with algorithm %.64q: expected one of %s", h.alg, strings.Join(algorithms(), ", "))
	}
	if kid, has := o["kid"]; has {
		s, ok := kid.(string)
		if !ok || s == "" || len(s) > maxKeyID {
			return header{}, malformed("the header of the token has a kid that is not a text of 1 to %d bytes", maxKeyID)
		}
		h.kid = s
	}
	return h, nil
}

// verify checks the signature over the payload that is read afterwards.
func verify(token string, h header, payload []byte, keys []jwk.Key) error {
	object, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(h.alg)})
	if err != nil {
		return malformed("the token does not parse")
	}
	fits := false
	for _, key := range keys {
		if !slices.Contains(key.Algorithms, h.alg) {
			continue
		}
		fits = true
		if got, err := object.Verify(key.Public); err == nil && string(got) == string(payload) {
			return nil
		}
	}
	if !fits {
		return fault.New(fault.ErrDenied, "the token is signed with %s, and the issuer's key %.64q is not for that", h.alg, h.kid).WithCode(method.CodeProofSignature)
	}
	return fault.New(fault.ErrDenied, "the signature of the token is not by the issuer's key %.64q", h.kid).WithCode(method.CodeProofSignature)
}

// foreign says whose a token calls itself that is refused for its signature: mostly it
// is a good one of another issuer. It is a hint for a person, and decides nothing.
func (e Expect) foreign(payload []byte, refusal error) error {
	c, err := parseClaims(payload)
	if err != nil || e.AnyIssuer || c.Issuer == "" || c.Issuer == e.Issuer || fault.Code(refusal) != method.CodeProofSignature {
		return refusal
	}
	return fault.New(fault.ErrDenied, "issuer of the token: expected %q, got %.256q", e.Issuer, c.Issuer).WithCode(method.CodeProofIssuer)
}

func (e Expect) check(c Claims) error {
	if e.Audience == "" || e.Issuer == "" != e.AnyIssuer || e.Now.IsZero() {
		return fault.New(fault.ErrDenied, "nothing says which issuer, audience and time the token must be of").WithCode(method.CodeProofMalformed)
	}
	if !e.AnyIssuer && c.Issuer != e.Issuer {
		return fault.New(fault.ErrDenied, "issuer of the token: expected %q, got %.256q", e.Issuer, c.Issuer).WithCode(method.CodeProofIssuer)
	}
	if !slices.Contains(c.Audience, e.Audience) {
		return fault.New(fault.ErrDenied, "audience of the token: expected %q, got %.512q", e.Audience, c.Audience).WithCode(method.CodeProofAudience)
	}
	if c.Expiry.IsZero() {
		return fault.New(fault.ErrDenied, "the token never expires (no claim exp): it is not accepted as a proof").WithCode(method.CodeProofLifetime)
	}
	if !e.Now.Before(c.Expiry.Add(e.Leeway)) {
		return fault.New(fault.ErrDenied, "the token expired at %s, and it is %s: get a fresh one, and check the clocks", stamp(c.Expiry), stamp(e.Now)).WithCode(method.CodeProofExpired)
	}
	if e.Now.Add(e.Leeway).Before(c.NotBefore) {
		return fault.New(fault.ErrDenied, "the token is not valid before %s, and it is %s: check the clocks", stamp(c.NotBefore), stamp(e.Now)).WithCode(method.CodeProofNotYetValid)
	}
	if e.Now.Add(e.Leeway).Before(c.IssuedAt) {
		return fault.New(fault.ErrDenied, "the token was issued at %s, and it is %s: check the clocks", stamp(c.IssuedAt), stamp(e.Now)).WithCode(method.CodeProofNotYetValid)
	}
	if c.IssuedAt.IsZero() {
		return fault.New(fault.ErrDenied, "the token does not say when it was issued (no claim iat)").WithCode(method.CodeProofLifetime)
	}
	if life := c.Expiry.Sub(c.IssuedAt); life > e.MaxLifetime {
		return fault.New(fault.ErrDenied, "the token is good for %s: expected at most %s", life, e.MaxLifetime).WithCode(method.CodeProofLifetime)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

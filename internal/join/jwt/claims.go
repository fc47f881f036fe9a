package jwt

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"teleport/internal/join/jwk"
)

// Claims are what a token says.
type Claims struct {
	// Issuer, Subject, ID and Audience are iss, sub, jti and aud; empty if absent. An
	// aud that is one text is a list of one.
	Issuer, Subject, ID string
	Audience            []string
	// Expiry, NotBefore and IssuedAt are exp, nbf and iat; zero if absent.
	Expiry, NotBefore, IssuedAt time.Time
	// KeyID is the kid of the key that signed.
	KeyID string
	// Raw is the payload, the very bytes that were verified; Values are those bytes
	// decoded, with numbers as json.Number.
	Raw    []byte
	Values map[string]any
}

const maxAudiences = 64

func parseClaims(payload []byte) (Claims, error) {
	values, err := jwk.Object(payload)
	if err != nil {
		return Claims{}, malformed("the claims of the token: %w", err)
	}
	c := Claims{Raw: payload, Values: values}
	for name, to := range map[string]*string{"iss": &c.Issuer, "sub": &c.Subject, "jti": &c.ID} {
		v, has := values[name]
		if !has || v == nil {
			continue
		}
		s, ok := v.(string)
		if !ok {
			return Claims{}, malformed("claim %s of the token: expected text", name)
		}
		*to = s
	}
	for name, to := range map[string]*time.Time{"exp": &c.Expiry, "nbf": &c.NotBefore, "iat": &c.IssuedAt} {
		if v, has := values[name]; has && v != nil {
			if *to, err = numericDate(v); err != nil {
				return Claims{}, malformed("claim %s of the token: %w", name, err)
			}
		}
	}
	switch aud := values["aud"].(type) {
	case nil:
	case string:
		c.Audience = []string{aud}
	case []any:
		for _, v := range aud {
			s, ok := v.(string)
			if !ok || len(c.Audience) == maxAudiences {
				return Claims{}, malformed("claim aud of the token: expected at most %d texts", maxAudiences)
			}
			c.Audience = append(c.Audience, s)
		}
	default:
		return Claims{}, malformed("claim aud of the token: expected text or a list of texts")
	}
	return c, nil
}

// numericDate reads seconds since 1970 (RFC 7519, section 2), to the second.
func numericDate(v any) (time.Time, error) {
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, fmt.Errorf("expected a number of seconds")
	}
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) || f < 1 || f > 253402300799 {
		return time.Time{}, fmt.Errorf("expected seconds since 1970, got %.32s", n.String())
	}
	return time.Unix(int64(f), 0).UTC(), nil
}

// Lookup returns the claim at a path of names: Lookup("kubernetes.io", "pod", "name")
// is what an object inside an object says.
func (c Claims) Lookup(path ...string) (any, bool) {
	var v any = c.Values
	for _, name := range path {
		o, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = o[name]; !ok {
			return nil, false
		}
	}
	return v, len(path) > 0
}

// Text returns the claim at a path, "" if it is absent or not text.
func (c Claims) Text(path ...string) string {
	v, _ := c.Lookup(path...)
	s, _ := v.(string)
	return s
}

// Texts returns the claim at a path as rules compare it: text as it is, numbers and
// booleans as JSON writes them, a list as its members. Objects, null and what is
// absent give nothing.
func (c Claims) Texts(path ...string) []string {
	v, _ := c.Lookup(path...)
	return texts(v)
}

// Dotted is Texts for a path in one text with dots between the names. Names may have
// dots of their own: the longest name that exists is taken at each step.
func (c Claims) Dotted(path string) []string {
	var v any = c.Values
	for path != "" {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		name := path
		for {
			if v, ok = o[name]; ok {
				break
			}
			cut := strings.LastIndexByte(name, '.')
			if cut < 0 {
				return nil
			}
			name = name[:cut]
		}
		path = strings.TrimPrefix(path[len(name):], ".")
	}
	return texts(v)
}

func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case bool:
		return []string{strconv.FormatBool(v)}
	case json.Number:
		return []string{v.String()}
	case []any:
		var out []string
		for _, m := range v {
			if _, nested := m.([]any); nested {
				continue
			}
			out = append(out, texts(m)...)
		}
		return slices.Clip(out)
	}
	return nil
}

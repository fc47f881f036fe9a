package jwk_test

import (
	"crypto"
	"strings"
	"testing"

	"teleport/internal/join/jwk"
	"teleport/test/oidcfake"
)

func TestParse(t *testing.T) {
	rsa, ec, ed := oidcfake.NewKey(t, "RS256"), oidcfake.NewKey(t, "ES384"), oidcfake.NewKey(t, "EdDSA")
	keys, err := jwk.Parse(oidcfake.Set(rsa, ec, ed))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*oidcfake.Key{rsa, ec, ed} {
		if keys[i].ID != want.ID || strings.Join(keys[i].Algorithms, " ") != want.Algorithm {
			t.Errorf("keys[%d] = %q %v, want %q %q", i, keys[i].ID, keys[i].Algorithms, want.ID, want.Algorithm)
		}
		if !want.Private.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(keys[i].Public) {
			t.Errorf("keys[%d] is another public key", i)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	rsa := `"kty":"RSA","n":"` + member(t, "RS256", "n") + `","e":"AQAB"`
	x, y := member(t, "ES256", "x"), member(t, "ES256", "y") // of two keys: not on the curve
	tests := map[string]struct{ set, want string }{
		"not_json":         {`keys`, "not JSON"},
		"list":             {`[]`, "not a JSON object"},
		"no_list":          {`{"keys":{}}`, `no list "keys"`},
		"empty":            {`{"keys":[]}`, "no key"},
		"twice":            {`{"keys":[],"keys":[]}`, "stands twice"},
		"after":            {`{"keys":[]}{}`, "not JSON"},
		"deep":             {`{"keys":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`, "deeper"},
		"long":             {`{"keys":[]}` + strings.Repeat(" ", jwk.MaxSet), "bytes"},
		"many":             {`{"keys":[` + strings.TrimSuffix(strings.Repeat("{},", jwk.MaxKeys+1), ",") + `]}`, "keys, the most"},
		"not_utf8":         {"{\"keys\":[],\"x\":\"\xff\"}", "UTF-8"},
		"not_object":       {`{"keys":["x"]}`, "keys[0]: not an object"},
		"symmetric":        {`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, `"k", a part of a private`},
		"private":          {`{"keys":[{` + rsa + `,"d":"AQAB"}]}`, `"d", a part of a private`},
		"for_encryption":   {`{"keys":[{` + rsa + `,"use":"enc"}]}`, "use: expected"},
		"not_to_verify":    {`{"keys":[{` + rsa + `,"key_ops":["encrypt"]}]}`, "key_ops"},
		"other_algorithm":  {`{"keys":[{` + rsa + `,"alg":"ES256"}]}`, `alg "ES256"`},
		"encryption_alg":   {`{"keys":[{` + rsa + `,"alg":"RSA-OAEP"}]}`, `alg "RSA-OAEP"`},
		"hs256_by_rsa":     {`{"keys":[{` + rsa + `,"alg":"HS256"}]}`, `alg "HS256"`},
		"unknown_type":     {`{"keys":[{"kty":"AKP"}]}`, `kty "AKP"`},
		"kid_number":       {`{"keys":[{` + rsa + `,"kid":7}]}`, "kid"},
		"small_rsa":        {`{"keys":[{"kty":"RSA","n":"` + strings.Repeat("____", 43) + `","e":"AQAB"}]}`, "an RSA key of"},
		"huge_rsa":         {`{"keys":[{"kty":"RSA","n":"` + strings.Repeat("_w", 1024) + `","e":"AQAB"}]}`, "an RSA key of"},
		"exponent_one":     {`{"keys":[{"kty":"RSA","n":"` + member(t, "RS256", "n") + `","e":"AQ"}]}`, "exponent"},
		"exponent_huge":    {`{"keys":[{"kty":"RSA","n":"` + member(t, "RS256", "n") + `","e":"AQAAAAAB"}]}`, "exponent"},
		"padding":          {`{"keys":[{"kty":"RSA","n":"AQ==","e":"AQAB"}]}`, "base64url"},
		"not_on_the_curve": {`{"keys":[{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"}]}`, "not a point"},
		"short_coordinate": {`{"keys":[{"kty":"EC","crv":"P-256","x":"AQ","y":"` + y + `"}]}`, "expected 32 bytes"},
		"other_curve":      {`{"keys":[{"kty":"EC","crv":"secp256k1","x":"AQ","y":"AQ"}]}`, `crv "secp256k1"`},
		"key_agreement":    {`{"keys":[{"kty":"OKP","crv":"X25519","x":"AQ"}]}`, "expected Ed25519"},
		"short_ed25519":    {`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQ"}]}`, "expected 32 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := jwk.Parse(tt.set); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestParsePublished: keys that an issuer has for other ends do not keep us from the
// one that signs, and are not used for signatures.
func TestParsePublished(t *testing.T) {
	good := oidcfake.Set(oidcfake.NewKey(t, "RS256"))
	inner := strings.TrimSuffix(strings.TrimPrefix(good, `{"keys":[`), `]}`)
	encryption := strings.Replace(inner, `"use":"sig"`, `"use":"enc"`, 1)
	keys, err := jwk.ParsePublished([]byte(`{"keys":[` + encryption + `,{"kty":"AKP"},{"kty":"oct","k":"AQ"},` + inner + `],"x":1}`))
	if err != nil || len(keys) != 1 {
		t.Fatalf("ParsePublished = %d keys, %v; want 1", len(keys), err)
	}
	if _, err := jwk.ParsePublished([]byte(`{"keys":[` + encryption + `]}`)); err == nil {
		t.Error("a set without a key for signatures was accepted")
	}
}

func member(t *testing.T, algorithm, name string) string {
	t.Helper()
	s, ok := oidcfake.NewKey(t, algorithm).Public()[name].(string)
	if !ok {
		t.Fatalf("a key for %s has no %s", algorithm, name)
	}
	return s
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB","use":"sig"}]}`))
	f.Add([]byte(`{"a":{"b":[1,2,{"c":null}]},"keys":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		strict, err := jwk.Parse(string(data))
		lenient, lerr := jwk.ParsePublished(data)
		if err == nil && (lerr != nil || len(strict) != len(lenient)) {
			t.Fatalf("Parse has %d keys, ParsePublished %d and %v", len(strict), len(lenient), lerr)
		}
		for _, k := range lenient {
			if k.Public == nil || len(k.Algorithms) == 0 {
				t.Fatalf("a key without substance: %+v", k)
			}
		}
	})
}

package jwt_test

import (
	"bytes"
	"compress/flate"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/test/oidcfake"
)

const (
	issuer   = "https://issuer.example.com/tenant"
	audience = "cluster.example.com"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func expect() jwt.Expect {
	return jwt.Expect{Issuer: issuer, Audience: audience, Now: now, Leeway: jwt.Leeway, MaxLifetime: time.Hour}
}

// payload is a good set of claims with some of them changed; nil leaves one out.
func payload(change map[string]any) []byte {
	claims := map[string]any{"iss": issuer, "aud": audience, "sub": "job", "jti": "1", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
	maps.Copy(claims, change)
	for name, v := range claims {
		if v == nil {
			delete(claims, name)
		}
	}
	b, _ := json.Marshal(claims)
	return b
}

func static(t testing.TB, keys ...*oidcfake.Key) jwt.Keys {
	t.Helper()
	k, err := jwt.Static(oidcfake.Set(keys...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func TestVerifyAlgorithms(t *testing.T) {
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		t.Run(alg, func(t *testing.T) {
			key := oidcfake.NewKey(t, alg)
			token := key.Sign(nil, payload(nil))
			c, err := jwt.Verify(t.Context(), token, static(t, key), expect())
			if err != nil {
				t.Fatal(err)
			}
			if c.Issuer != issuer || c.Subject != "job" || c.ID != "1" || !slices.Equal(c.Audience, []string{audience}) || !c.IssuedAt.Equal(now) || c.KeyID != key.ID {
				t.Errorf("claims = %+v", c)
			}
			if !bytes.Equal(c.Raw, payload(nil)) {
				t.Errorf("Raw is not the payload")
			}
			// One bit of the signature, and one of the payload.
			for _, at := range []int{len(token) - 20, strings.IndexByte(token, '.') + 9} {
				bent := []byte(token)
				bent[at] ^= 1
				if c, err := jwt.Verify(t.Context(), string(bent), static(t, key), expect()); err == nil || c.Raw != nil {
					t.Errorf("a token with a changed byte %d was accepted, or its claims came back", at)
				}
			}
		})
	}
}

// TestVerifyRefuses has the attacks of the family: each is refused with its code, and
// unverified claims never come back.
func TestVerifyRefuses(t *testing.T) {
	key, other := oidcfake.NewKey(t, "RS256"), oidcfake.NewKey(t, "RS256")
	ec := oidcfake.NewKey(t, "ES256")
	good := key.Sign(nil, payload(nil))
	parts := strings.Split(good, ".")
	header := func(change map[string]any) string { return key.Sign(change, payload(nil)) }
	claims := func(change map[string]any) string { return key.Sign(nil, payload(change)) }
	hmacToken := func(secret []byte) string {
		signed := b64([]byte(`{"alg":"HS256","typ":"JWT","kid":"`+key.ID+`"}`)) + "." + parts[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + b64(mac.Sum(nil))
	}
	der, err := x509.MarshalPKIXPublicKey(key.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	var bomb bytes.Buffer
	w, _ := flate.NewWriter(&bomb, flate.BestCompression)
	_, _ = w.Write(make([]byte, 8<<20))
	w.Close()
	stranger := *other
	stranger.ID = key.ID

	tests := map[string]struct {
		token, code string
		verified    bool
	}{
		"empty":               {"", method.CodeProofMalformed, false},
		"many_dots":           {strings.Repeat(".", 15000), method.CodeProofMalformed, false},
		"one_dot":             {parts[0] + "." + parts[1], method.CodeProofMalformed, false},
		"jwe":                 {strings.Join([]string{b64([]byte(`{"alg":"RSA-OAEP","enc":"A256GCM","zip":"DEF"}`)), "AA", "AA", "AA", "AA"}, "."), method.CodeProofMalformed, false},
		"too_long":            {parts[0] + "." + strings.Repeat("A", jwt.MaxToken) + "." + parts[2], method.CodeProofMalformed, false},
		"no_signature":        {parts[0] + "." + parts[1] + ".", method.CodeProofMalformed, false},
		"padding":             {parts[0] + "." + parts[1] + "." + parts[2] + "==", method.CodeProofMalformed, false},
		"line_break":          {parts[0] + "." + parts[1] + "\n." + parts[2], method.CodeProofMalformed, false},
		"space_before":        {" " + good, method.CodeProofMalformed, false},
		"json_serialization":  {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, method.CodeProofMalformed, false},
		"none":                {b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", method.CodeProofMalformed, false},
		"none_signed":         {header(map[string]any{"alg": "none"}), method.CodeProofMalformed, false},
		"none_in_capitals":    {header(map[string]any{"alg": "NONE"}), method.CodeProofMalformed, false},
		"no_alg":              {header(map[string]any{"alg": nil}), method.CodeProofMalformed, false},
		"alg_list":            {header(map[string]any{"alg": []string{"RS256"}}), method.CodeProofMalformed, false},
		"hs256_by_pem":        {hmacToken(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), method.CodeProofMalformed, false},
		"hs256_by_der":        {hmacToken(der), method.CodeProofMalformed, false},
		"hs256_by_modulus":    {hmacToken(key.Private.Public().(*rsa.PublicKey).N.Bytes()), method.CodeProofMalformed, false},
		"rs1":                 {header(map[string]any{"alg": "RS1"}), method.CodeProofMalformed, false},
		"other_alg":           {header(map[string]any{"alg": "RS512"}), method.CodeProofSignature, false},
		"alg_of_other_key":    {header(map[string]any{"alg": "ES256"}), method.CodeProofSignature, false},
		"jku":                 {header(map[string]any{"jku": "https://evil.example.com/jwks"}), method.CodeProofMalformed, false},
		"x5u":                 {header(map[string]any{"x5u": "https://evil.example.com/pem"}), method.CodeProofMalformed, false},
		"jwk":                 {other.Sign(map[string]any{"jwk": other.Public(), "kid": key.ID}, payload(nil)), method.CodeProofMalformed, false},
		"x5c":                 {header(map[string]any{"x5c": []string{"AA"}}), method.CodeProofMalformed, false},
		"crit":                {header(map[string]any{"crit": []string{"exp"}}), method.CodeProofMalformed, false},
		"b64_false":           {header(map[string]any{"b64": false}), method.CodeProofMalformed, false},
		"zip":                 {key.Sign(map[string]any{"zip": "DEF"}, bomb.Bytes()), method.CodeProofMalformed, false},
		"logout_token":        {header(map[string]any{"typ": "logout+jwt"}), method.CodeProofMalformed, false},
		"typ_number":          {header(map[string]any{"typ": 7}), method.CodeProofMalformed, false},
		"kid_number":          {header(map[string]any{"kid": 7}), method.CodeProofMalformed, false},
		"kid_empty":           {header(map[string]any{"kid": ""}), method.CodeProofMalformed, false},
		"kid_path":            {header(map[string]any{"kid": "../../../dev/null"}), method.CodeProofSignature, false},
		"kid_unknown":         {other.Sign(nil, payload(nil)), method.CodeProofSignature, false},
		"kid_missing":         {header(map[string]any{"kid": nil}), method.CodeProofSignature, false},
		"kid_of_another_key":  {header(map[string]any{"kid": ec.ID}), method.CodeProofSignature, false},
		"header_twice":        {key.SignRaw(`{"alg":"RS256","alg":"none","kid":"`+key.ID+`"}`, payload(nil)), method.CodeProofMalformed, false},
		"header_not_json":     {key.SignRaw(`alg`, payload(nil)), method.CodeProofMalformed, false},
		"header_long":         {header(map[string]any{"x": strings.Repeat("x", 3000)}), method.CodeProofMalformed, false},
		"stranger":            {stranger.Sign(nil, payload(nil)), method.CodeProofSignature, false},
		"another_issuers":     {stranger.Sign(nil, payload(map[string]any{"iss": "https://other.example.com"})), method.CodeProofIssuer, false},
		"another_kid_and_iss": {other.Sign(nil, payload(map[string]any{"iss": "https://other.example.com"})), method.CodeProofIssuer, false},
		"no_issuer_stranger":  {stranger.Sign(nil, payload(map[string]any{"iss": nil})), method.CodeProofSignature, false},
		"claims_swapped":      {parts[0] + "." + b64(payload(map[string]any{"sub": "root"})) + "." + parts[2], method.CodeProofSignature, false},
		"claims_twice":        {key.Sign(nil, []byte(`{"sub":"a",`+string(payload(nil))[1:])), method.CodeProofMalformed, false},
		"claims_twice_deep":   {claims(map[string]any{"x": json.RawMessage(`{"y":[{"z":1,"z":2}]}`)}), method.CodeProofMalformed, false},
		"claims_twice_escape": {key.Sign(nil, []byte(`{"\u0073ub":"a",`+string(payload(nil))[1:])), method.CodeProofMalformed, false},
		"claims_list":         {key.Sign(nil, []byte(`[1]`)), method.CodeProofMalformed, false},
		"claims_after":        {key.Sign(nil, append(payload(nil), '1')), method.CodeProofMalformed, false},
		"claims_deep":         {claims(map[string]any{"x": json.RawMessage(strings.Repeat("[", 30) + strings.Repeat("]", 30))}), method.CodeProofMalformed, false},
		"claims_not_utf8":     {key.Sign(nil, []byte("{\"sub\":\"\xff\"}")), method.CodeProofMalformed, false},
		"iss_number":          {claims(map[string]any{"iss": 7}), method.CodeProofMalformed, false},
		"iss_missing":         {claims(map[string]any{"iss": nil}), method.CodeProofIssuer, true},
		"iss_slash":           {claims(map[string]any{"iss": issuer + "/"}), method.CodeProofIssuer, true},
		"iss_case":            {claims(map[string]any{"iss": "https://ISSUER.example.com/tenant"}), method.CodeProofIssuer, true},
		"iss_http":            {claims(map[string]any{"iss": "http://issuer.example.com/tenant"}), method.CodeProofIssuer, true},
		"aud_missing":         {claims(map[string]any{"aud": nil}), method.CodeProofAudience, true},
		"aud_text":            {claims(map[string]any{"aud": "other.example.com"}), method.CodeProofAudience, true},
		"aud_list":            {claims(map[string]any{"aud": []string{"other.example.com", "third"}}), method.CodeProofAudience, true},
		"aud_empty_list":      {claims(map[string]any{"aud": []string{}}), method.CodeProofAudience, true},
		"aud_prefix":          {claims(map[string]any{"aud": audience + ".evil.org"}), method.CodeProofAudience, true},
		"aud_case":            {claims(map[string]any{"aud": strings.ToUpper(audience)}), method.CodeProofAudience, true},
		"aud_object":          {claims(map[string]any{"aud": map[string]any{audience: true}}), method.CodeProofMalformed, false},
		"aud_mixed":           {claims(map[string]any{"aud": []any{audience, 7}}), method.CodeProofMalformed, false},
		"expired":             {claims(map[string]any{"exp": now.Add(-jwt.Leeway).Unix(), "iat": now.Add(-time.Hour).Unix(), "nbf": nil}), method.CodeProofExpired, true},
		"exp_missing":         {claims(map[string]any{"exp": nil}), method.CodeProofLifetime, true},
		"exp_text":            {claims(map[string]any{"exp": "9999999999"}), method.CodeProofMalformed, false},
		"exp_huge":            {claims(map[string]any{"exp": json.RawMessage("1e300")}), method.CodeProofMalformed, false},
		"exp_negative":        {claims(map[string]any{"exp": -1}), method.CodeProofMalformed, false},
		"exp_zero":            {claims(map[string]any{"exp": 0}), method.CodeProofMalformed, false},
		"not_yet":             {claims(map[string]any{"nbf": now.Add(jwt.Leeway + 2*time.Second).Unix()}), method.CodeProofNotYetValid, true},
		"issued_later":        {claims(map[string]any{"iat": now.Add(jwt.Leeway + 2*time.Second).Unix()}), method.CodeProofNotYetValid, true},
		"iat_missing":         {claims(map[string]any{"iat": nil}), method.CodeProofLifetime, true},
		"long_lived":          {claims(map[string]any{"exp": now.Add(time.Hour + time.Second).Unix()}), method.CodeProofLifetime, true},
		"old_and_long_lived":  {claims(map[string]any{"iat": 1000, "nbf": nil}), method.CodeProofLifetime, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := jwt.Verify(t.Context(), tt.token, static(t, key, ec), expect())
			if got := fault.Code(err); got != tt.code {
				t.Errorf("code %q, want %q: %v", got, tt.code, err)
			}
			if (c.Raw != nil) != tt.verified {
				t.Errorf("claims came back: %v, want %v", c.Raw != nil, tt.verified)
			}
			if err != nil && strings.Contains(err.Error(), parts[2][:16]) {
				t.Errorf("the error has the token in it: %v", err)
			}
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	key := oidcfake.NewKey(t, "ES256")
	unnamed := oidcfake.NewKey(t, "ES256")
	unnamed.ID = ""
	tests := map[string]struct {
		token string
		keys  jwt.Keys
	}{
		"aud_list":         {key.Sign(nil, payload(map[string]any{"aud": []string{"other", audience}})), static(t, key)},
		"within_leeway":    {key.Sign(nil, payload(map[string]any{"exp": now.Add(1-jwt.Leeway).Unix() + 1, "iat": now.Add(-time.Minute).Unix(), "nbf": nil})), static(t, key)},
		"clock_behind":     {key.Sign(nil, payload(map[string]any{"iat": now.Add(jwt.Leeway).Unix(), "nbf": now.Add(jwt.Leeway).Unix()})), static(t, key)},
		"fractions":        {key.Sign(nil, payload(map[string]any{"iat": float64(now.Unix()) + 0.5})), static(t, key)},
		"no_typ":           {key.Sign(map[string]any{"typ": nil}, payload(nil)), static(t, key)},
		"access_token":     {key.Sign(map[string]any{"typ": "at+jwt"}, payload(nil)), static(t, key)},
		"thumbprint":       {key.Sign(map[string]any{"x5t": "AA"}, payload(nil)), static(t, key)},
		"kid_of_one_key":   {key.Sign(map[string]any{"kid": nil}, payload(nil)), static(t, key)},
		"key_without_kid":  {unnamed.Sign(nil, payload(nil)), static(t, unnamed)},
		"null_claims":      {key.Sign(nil, payload(map[string]any{"x": json.RawMessage("null")})), static(t, key)},
		"two_keys_one_kid": {key.Sign(nil, payload(nil)), static(t, &oidcfake.Key{ID: key.ID, Algorithm: "ES256", Private: unnamed.Private}, key)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := jwt.Verify(t.Context(), tt.token, tt.keys, expect()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("any_issuer", func(t *testing.T) {
		want := expect()
		want.Issuer, want.AnyIssuer = "", true
		if _, err := jwt.Verify(t.Context(), key.Sign(nil, payload(nil)), static(t, key), want); err != nil {
			t.Error(err)
		}
	})
}

// TestExpectNothing: an expectation that was forgotten admits nobody.
func TestExpectNothing(t *testing.T) {
	key := oidcfake.NewKey(t, "ES256")
	token := key.Sign(nil, payload(map[string]any{"aud": "", "iss": ""}))
	for name, forget := range map[string]func(*jwt.Expect){
		"issuer": func(e *jwt.Expect) { e.Issuer = "" }, "audience": func(e *jwt.Expect) { e.Audience = "" },
		"now": func(e *jwt.Expect) { e.Now = time.Time{} }, "lifetime": func(e *jwt.Expect) { e.MaxLifetime = 0 },
	} {
		want := expect()
		forget(&want)
		if name != "issuer" && name != "audience" {
			token = key.Sign(nil, payload(nil))
		}
		if _, err := jwt.Verify(t.Context(), token, static(t, key), want); err == nil {
			t.Errorf("without %s a token is accepted", name)
		}
	}
}

func TestErrorsSayWhatWasExpected(t *testing.T) {
	key := oidcfake.NewKey(t, "ES256")
	for name, v := range map[string]any{"aud": "got-this", "iss": "got-this"} {
		_, err := jwt.Verify(t.Context(), key.Sign(nil, payload(map[string]any{name: v})), static(t, key), expect())
		want := map[string]string{"aud": audience, "iss": issuer}[name]
		if err == nil || !strings.Contains(err.Error(), `expected "`+want+`"`) || !strings.Contains(err.Error(), "got-this") {
			t.Errorf("%s: %v; want expected %q and got", name, err, want)
		}
	}
}

// TestOpenSSL has tokens that openssl signs, with keys that it made.
func TestOpenSSL(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl %v: %v", args, err)
		}
		return out
	}
	run("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key.pem")
	modulus, err := hex.DecodeString(strings.TrimSpace(strings.TrimPrefix(string(run("rsa", "-in", "key.pem", "-noout", "-modulus")), "Modulus=")))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := jwt.Static(`{"keys":[{"kty":"RSA","kid":"o","n":"` + b64(modulus) + `","e":"AQAB"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for alg, sign := range map[string][]string{
		"RS256": {"dgst", "-sha256", "-sign", "key.pem", "message"},
		"PS384": {"dgst", "-sha384", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1", "-sign", "key.pem", "message"},
	} {
		signed := b64([]byte(`{"alg":"`+alg+`","kid":"o"}`)) + "." + b64(payload(nil))
		if err := os.WriteFile(filepath.Join(dir, "message"), []byte(signed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := jwt.Verify(t.Context(), signed+"."+b64(run(sign...)), keys, expect()); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestClaims(t *testing.T) {
	key := oidcfake.NewKey(t, "ES256")
	token := key.Sign(nil, payload(map[string]any{
		"kubernetes.io": map[string]any{"pod": map[string]any{"name": "p", "restarts": 3, "ready": true}},
		"groups":        []any{"a", 7, false, map[string]any{"x": 1}, []any{"deep"}, nil},
		"a.b":           "whole", "a": map[string]any{"b": "inner", "c": "inner"},
		"big": json.RawMessage("12345678901234567890"), "null": json.RawMessage("null"),
	}))
	c, err := jwt.Verify(t.Context(), token, static(t, key), expect())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Text("kubernetes.io", "pod", "name"); got != "p" {
		t.Errorf("Text = %q", got)
	}
	for path, want := range map[string]string{
		"kubernetes.io.pod.name": "p", "kubernetes.io.pod.restarts": "3", "kubernetes.io.pod.ready": "true",
		"groups": "a 7 false", "a.b": "whole", "a.c": "inner", "big": "12345678901234567890", "sub": "job",
		"null": "", "kubernetes.io.pod": "", "kubernetes.io.pod.name.x": "", "nothing": "", "groups.0": "", "": "", ".": "", "a.": "",
	} {
		if got := strings.Join(c.Dotted(path), " "); got != want {
			t.Errorf("Dotted(%q) = %q, want %q", path, got, want)
		}
	}
	if _, ok := c.Lookup(); ok {
		t.Error("Lookup of nothing found something")
	}
}

func TestUnverified(t *testing.T) {
	c, err := jwt.Unverified(oidcfake.NewKey(t, "ES256").Sign(nil, payload(nil)))
	if err != nil || c.Issuer != issuer {
		t.Errorf("Unverified = %q, %v", c.Issuer, err)
	}
	if _, err := jwt.Unverified("a.b.c"); fault.Code(err) != method.CodeProofMalformed {
		t.Errorf("Unverified of noise: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	key := oidcfake.NewKey(f, "ES256")
	keys := static(f, key)
	f.Add(`{"alg":"ES256","kid":"k"}`, []byte(`{"iss":"x","aud":["a"],"exp":1e9}`))
	f.Add(`{"alg":"none"}`, payload(nil))
	f.Add(`{"alg":"ES256","typ":"JWT","x":[{}]}`, []byte(`{"sub":"a","sub":"b"}`))
	f.Fuzz(func(t *testing.T, header string, claims []byte) {
		// Anything may be signed: what comes through must be what was asked for.
		c, err := jwt.Verify(t.Context(), key.SignRaw(header, claims), keys, expect())
		if err != nil {
			if fault.Kind(err) == nil {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		if c.Issuer != issuer || !slices.Contains(c.Audience, audience) || !bytes.Equal(c.Raw, claims) {
			t.Fatalf("accepted %q", claims)
		}
	})
}

func FuzzToken(f *testing.F) {
	key := oidcfake.NewKey(f, "ES256")
	keys := static(f, key)
	f.Add(key.Sign(nil, payload(nil)))
	f.Add("..")
	f.Add("e30.e30.AA")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := jwt.Verify(t.Context(), token, keys, expect()); err != nil && fault.Code(err) == "" {
			t.Fatalf("an error without a code: %v", err)
		}
	})
}

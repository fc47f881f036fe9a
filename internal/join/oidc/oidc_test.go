package oidc_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/join/oidc"
	"teleport/test/oidcfake"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const suiteCluster = "suite.example.com"

// platform is one row: an issuer, what its documents say is in a token, and a token of
// ours that admits it.
type platform struct {
	name, issuer string
	// aud of the tokens, if the job cannot choose it.
	aud    any
	claims map[string]any
	// spec admits the claims; wrong makes it that of somebody else.
	spec  func() *typesv1.TokenSpec
	wrong func(*typesv1.TokenSpec)
	// env is the name of the variable with the token; empty: it is asked for.
	env, settings string
	proves        map[string]string
	bad           []bad
}

// bad is an attempt with other claims, another token of ours, or both.
type bad struct {
	name   string
	claims map[string]any
	rule   func(*typesv1.TokenSpec)
	code   string
}

// world is a platform with one job.
type world struct {
	platform
	issuer *oidcfake.Issuer
	server *oidcfake.Server
	// change is what the token of the job has differently; mint makes it.
	change map[string]any
	mint   func(claims map[string]any) string
	// status is what the platform answers when it is asked for a token.
	status int
	vars   map[string]string
}

// rsaKey is one key for all worlds: these take time to make.
var rsaKey = func() func(t *testing.T) *oidcfake.Key {
	var once sync.Once
	var key *oidcfake.Key
	return func(t *testing.T) *oidcfake.Key {
		once.Do(func() { key = oidcfake.NewKey(t, "RS256") })
		return key
	}
}()

func newWorld(t *testing.T, p platform) *world {
	t.Helper()
	w := &world{platform: p, issuer: oidcfake.New(t, p.issuer, "ES256"), change: map[string]any{}, status: http.StatusOK, vars: map[string]string{}}
	w.issuer.Publish(rsaKey(t))
	w.mint = func(claims map[string]any) string { return w.issuer.Mint(now, claims) }
	host := strings.Split(strings.TrimPrefix(p.issuer, "https://"), "/")[0]
	w.server = oidcfake.Serve(t, map[string]http.Handler{host: w.issuer, "runner.example.com": w})
	return w
}

// token is the token of the job; each has an identifier of its own, if the platform
// gives them.
func (w *world) token(aud any) string {
	claims := map[string]any{"aud": aud}
	maps.Copy(claims, w.claims)
	maps.Copy(claims, w.change)
	return w.mint(claims)
}

// ServeHTTP is what GitHub's runner and Azure's agent ask for a token.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer request-secret" || w.status != http.StatusOK {
		http.Error(rw, "no", max(w.status, http.StatusUnauthorized))
		return
	}
	var answer map[string]any
	switch q := r.URL.Query(); {
	case r.URL.Path == "/github" && r.Method == http.MethodGet && q.Get("api-version") == "2.0" && q.Get("audience") != "":
		answer = map[string]any{"count": 1, "value": w.token(q.Get("audience"))}
	case r.URL.Path == "/azure" && r.Method == http.MethodPost && q.Get("api-version") == "7.1-preview.1":
		answer = map[string]any{"oidcToken": w.token(w.aud)}
	default:
		http.NotFound(rw, r)
		return
	}
	_ = json.NewEncoder(rw).Encode(answer)
}

func (w *world) setup() *jointest.Setup {
	settings := map[string]string{}
	if name, value, ok := strings.Cut(w.settings, "="); ok {
		settings[name] = value
	}
	return &jointest.Setup{
		Spec: w.spec(),
		Machine: method.Machine{
			Settings: settings,
			Getenv: func(name string) string {
				if v, set := w.vars[name]; set {
					return v
				}
				switch name {
				case "":
					return ""
				case w.env:
					return w.token(w.aud)
				case "ACTIONS_ID_TOKEN_REQUEST_URL":
					return "https://runner.example.com/github?api-version=2.0"
				case "SYSTEM_OIDCREQUESTURI":
					return "https://runner.example.com/azure"
				case "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "SYSTEM_ACCESSTOKEN":
					return "request-secret"
				}
				return ""
			},
			Egress: egress.New(egress.Config{Roots: w.server.Roots, Dial: w.server.Dial}),
		},
		Auth: egress.Config{Roots: w.server.Roots, Dial: w.server.Dial},
		Now:  now,
	}
}

// fresh is the method with an empty cache at each attempt: what an issuer does must not
// depend on what it did in the case before.
func fresh(t *testing.T, name string) method.Method {
	t.Helper()
	find := func() method.Method {
		for _, m := range oidc.Methods(jwt.NewIssuers()) {
			if m.Name == name {
				return m
			}
		}
		t.Fatalf("no method %q", name)
		return method.Method{}
	}
	m := find()
	m.Verify = func(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
		return find().Verify(ctx, a, ask)
	}
	return m
}

func TestSuite(t *testing.T) {
	for _, p := range platforms() {
		t.Run(p.name, func(t *testing.T) { suite(t, p) })
	}
}

func suite(t *testing.T, p platform) {
	var w *world
	bend := func(change func(w *world, s *jointest.Setup)) func(*testing.T, *jointest.Setup) {
		return func(_ *testing.T, s *jointest.Setup) { change(w, s) }
	}
	claim := func(name string, v any) func(*testing.T, *jointest.Setup) {
		return bend(func(w *world, _ *jointest.Setup) { w.change[name] = v })
	}
	signed := func(header map[string]any) func(*testing.T, *jointest.Setup) {
		return bend(func(w *world, _ *jointest.Setup) {
			w.mint = func(claims map[string]any) string {
				claims["iss"], claims["iat"], claims["exp"] = w.issuer.URL, now.Unix(), now.Add(time.Minute).Unix()
				b, _ := json.Marshal(claims)
				return w.issuer.Key().Sign(header, b)
			}
		})
	}
	twin := p.issuer + "/"
	if strings.HasSuffix(p.issuer, "/") {
		twin = strings.TrimSuffix(p.issuer, "/")
	}
	cases := []jointest.Case{
		{Name: "expired", Bend: bend(func(_ *world, s *jointest.Setup) { s.Now = now.Add(25 * time.Hour) }), Code: method.CodeProofExpired},
		{Name: "future", Bend: bend(func(_ *world, s *jointest.Setup) { s.Now = now.Add(-time.Hour) }), Code: method.CodeProofNotYetValid},
		{Name: "for_ever", Bend: claim("exp", now.Add(25*time.Hour).Unix()), Code: method.CodeProofLifetime},
		{Name: "wrong_account", Bend: bend(func(w *world, s *jointest.Setup) { w.wrong(s.Spec) }), Code: method.CodeRuleMismatch},
		{Name: "wrong_audience", Bend: claim("aud", "https://other.example.com"), Code: method.CodeProofAudience},
		{Name: "wrong_audience_list", Bend: claim("aud", []string{"https://other.example.com", "x"}), Code: method.CodeProofAudience},
		{Name: "no_audience", Bend: claim("aud", nil), Code: method.CodeProofAudience},
		{Name: "wrong_issuer", Bend: claim("iss", "https://evil.example.com"), Code: method.CodeProofIssuer},
		{Name: "issuer_twin", Bend: claim("iss", twin), Code: method.CodeProofIssuer},
		{Name: "cloud_down", Bend: bend(func(w *world, _ *jointest.Setup) { w.issuer.SetDown(true) }), Code: method.CodeCloudUnreachable},
		{Name: "cloud_lies", Bend: bend(func(w *world, _ *jointest.Setup) {
			w.issuer.Document = func(doc map[string]any) { doc["issuer"] = twin }
		}), Code: method.CodeProofIssuer},
		{Name: "keys_over_http", Bend: bend(func(w *world, _ *jointest.Setup) {
			w.issuer.Document = func(doc map[string]any) { doc["jwks_uri"] = "http://169.254.169.254/latest" }
		}), Code: method.CodeProofIssuer},
		{Name: "alg_none", Bend: signed(map[string]any{"alg": "none"}), Code: method.CodeProofMalformed},
		{Name: "own_key_in_header", Bend: signed(map[string]any{"jku": "https://evil.example.com/jwks"}), Code: method.CodeProofMalformed},
		{Name: "unknown_key", Bend: signed(map[string]any{"kid": "another"}), Code: method.CodeProofSignature},
		{Name: "stranger", Bend: func(t *testing.T, _ *jointest.Setup) {
			key := oidcfake.NewKey(t, "RS256")
			key.ID = w.issuer.Key().ID
			published := w.issuer.JWKS()
			w.issuer.KeySet = func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(published)) }
			w.issuer.Publish(key)
		}, Code: method.CodeProofSignature},
	}
	for _, b := range p.bad {
		cases = append(cases, jointest.Case{Name: b.name, Code: b.code, Bend: bend(func(w *world, s *jointest.Setup) {
			maps.Copy(w.change, b.claims)
			if b.rule != nil {
				b.rule(s.Spec)
			}
		})})
	}
	if p.env != "" {
		cases = append(cases, jointest.Case{Name: "no_token", Code: method.CodeCredentials, Bend: bend(func(w *world, _ *jointest.Setup) { w.vars[w.env] = "" })})
	}
	jointest.Run(t, jointest.Rig{
		Method: fresh(t, p.name), Claims: p.proves, Bad: cases,
		Good: func(t *testing.T) *jointest.Setup {
			w = newWorld(t, p)
			return w.setup()
		},
	})
}

// TestEveryPresetIsTried: a preset without a row here would pass untried.
func TestEveryPresetIsTried(t *testing.T) {
	tried := map[string]bool{}
	for _, p := range platforms() {
		tried[p.name] = true
	}
	for _, m := range oidc.Methods(jwt.NewIssuers()) {
		if !tried[m.Name] {
			t.Errorf("method %q is not among the platforms of this test", m.Name)
		}
		if !m.Attests {
			t.Errorf("method %q renews without a proof", m.Name)
		}
	}
}

// TestOnce: a token that is not made for the attempt admits once, under a name that
// neither another signature nor another attempt changes; one that is made for it needs
// no memory.
func TestOnce(t *testing.T) {
	for _, p := range platforms() {
		t.Run(p.name, func(t *testing.T) {
			w := newWorld(t, p)
			s := w.setup()
			var replayed []byte
			s.Tamper = func(answer []byte) []byte {
				if replayed == nil {
					replayed = answer
				}
				return replayed
			}
			first, err := jointest.Attempt(t.Context(), fresh(t, p.name), s, [32]byte{1})
			if err != nil {
				t.Fatal(err)
			}
			again, err := jointest.Attempt(t.Context(), fresh(t, p.name), s, [32]byte{2})
			if p.name == "github" {
				if len(first.Once) != 0 || err == nil {
					t.Fatalf("once %v, error %v: want a proof of one attempt", first.Once, err)
				}
				return
			}
			if err != nil || len(first.Once) != 1 || len(again.Once) != 1 || first.Once[0] != again.Once[0] || first.Once[0].ID == "" {
				t.Fatalf("once %v, then %v, %v: want the same", first.Once, again.Once, err)
			}
			if until := first.Once[0].Until; !until.After(now.Add(5*time.Minute)) || until.After(now.Add(25*time.Hour)) {
				t.Errorf("remembered until %s", until)
			}
			other := newWorld(t, p)
			other.change["jti"] = "another"
			third, err := jointest.Attempt(t.Context(), fresh(t, p.name), other.setup(), [32]byte{3})
			if err != nil || third.Once[0].ID == first.Once[0].ID {
				t.Errorf("another token: %v, %v", third.Once, err)
			}
		})
	}
}

// TestOnceWithoutIdentifier: the text of a token that has no jti may be changed without
// its meaning (a signature of ECDSA has two forms); it is still the same token.
func TestOnceWithoutIdentifier(t *testing.T) {
	p := platforms()[0]
	w := newWorld(t, p)
	w.issuer.Algorithm = "ES256"
	w.issuer.Rotate(t)
	w.change["jti"] = nil
	ids := map[string]bool{}
	for range 2 {
		c, err := jointest.Attempt(t.Context(), fresh(t, p.name), w.setup(), [32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		ids[c.Once[0].ID] = true // each is signed anew, with another signature
	}
	if len(ids) != 1 {
		t.Errorf("%d identifiers of one set of claims, want 1", len(ids))
	}
}

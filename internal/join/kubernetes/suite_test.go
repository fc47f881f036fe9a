package kubernetes_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/kubernetes"
	"teleport/internal/join/method"
)

// cluster is the name that the suite gives the Teleport cluster.
const cluster = "suite.example.com"

// object is JSON.
type object = map[string]any

// world is a stand-in for the part of Kubernetes that signs tokens and publishes keys.
type world struct {
	issuer string
	key    *ecdsa.PrivateKey
	server *httptest.Server
	// document and keys are what it publishes, if they are not the right ones.
	document, keys func() string
}

const issuer = "https://oidc.example.com/id/0A1B"

func newWorld(t testing.TB) *world {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{issuer: issuer, key: key}
	mux := http.NewServeMux()
	answer := func(text func() string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(text())) }
	}
	w.document = func() string {
		return marshal(t, object{"issuer": w.issuer, "jwks_uri": w.issuer + "/openid/v1/jwks"})
	}
	w.keys = func() string { return w.jwks(t) }
	mux.HandleFunc("GET /id/0A1B/.well-known/openid-configuration", answer(func() string { return w.document() }))
	mux.HandleFunc("GET /id/0A1B/openid/v1/jwks", answer(func() string { return w.keys() }))
	w.server = serve(mux)
	t.Cleanup(w.server.Close)
	return w
}

// serve starts a server that does not write about clients that hang up.
func serve(handler http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	return s
}

// egress leads every host to the world.
func (w *world) egress() egress.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.server.Certificate())
	return egress.Config{Roots: roots, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, w.server.Listener.Addr().String())
	}}
}

func (w *world) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.server.Certificate().Raw}))
}

func (w *world) jwks(t testing.TB) string {
	return marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &w.key.PublicKey, KeyID: "k1", Use: "sig", Algorithm: "ES256"}}})
}

// claims are those of a token that the API server makes for a projected volume.
func claims(iss string) object {
	now := time.Now()
	return object{
		"iss": iss, "sub": "system:serviceaccount:teleport:agent", "aud": []string{cluster}, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"kubernetes.io": object{
			"namespace":      "teleport",
			"serviceaccount": object{"name": "agent", "uid": "5e0c1f0e-6b0e-4f7b-9d60-25ae7b2e51f8"},
			"pod":            object{"name": "web-0", "uid": "8f1c2f5a-3e0d-4e6c-8a43-" + rand.Text()[:12]},
			"node":           object{"name": "node-1", "uid": "c5e9ab3c-2a5e-4b35-8de0-0b0a3ac8fb9e"},
		},
	}
}

func (w *world) sign(t testing.TB, c object) string {
	t.Helper()
	return sign(t, jose.ES256, w.key, "k1", c)
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, c object) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", kid)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(marshal(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// mounted puts a token where the machine finds it.
func mounted(t testing.TB, token string) func(string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return env(map[string]string{"KUBERNETES_TOKEN_PATH": path})
}

func env(m map[string]string) func(string) string {
	return func(name string) string { return m[name] }
}

func allowAgent() []*typesv1.KubernetesRule {
	return []*typesv1.KubernetesRule{{ServiceAccount: "teleport:agent"}}
}

// kind is a type of the method that verifies signatures by itself.
type kind struct {
	name string
	spec func(t *testing.T, w *world) *typesv1.TokenSpec
}

func kinds() []kind {
	return []kind{
		{"static_jwks", func(t *testing.T, w *world) *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
				Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: w.jwks(t)}, Allow: allowAgent(),
			}}
		}},
		{"oidc", func(_ *testing.T, w *world) *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
				Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: w.issuer}, Allow: allowAgent(),
			}}
		}},
	}
}

// show returns a Bend that has the machine show a token made of claims that are bent.
func show(w *world, bend func(c object)) func(*testing.T, *jointest.Setup) {
	return func(t *testing.T, s *jointest.Setup) {
		c := claims(w.issuer)
		bend(c)
		s.Machine.Getenv = mounted(t, w.sign(t, c))
	}
}

// text returns a Bend that has the machine show a token as it is.
func text(token func(t *testing.T) string) func(*testing.T, *jointest.Setup) {
	return func(t *testing.T, s *jointest.Setup) { s.Machine.Getenv = mounted(t, token(t)) }
}

func private(c object) object { return c["kubernetes.io"].(object) }

func TestSuite(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t)
			rig := jointest.Rig{
				Method: kubernetes.Method(jwt.NewIssuers()),
				Good: func(t *testing.T) *jointest.Setup {
					s := &jointest.Setup{Spec: k.spec(t, w), Auth: w.egress()}
					s.Machine.Getenv = mounted(t, w.sign(t, claims(w.issuer)))
					return s
				},
				Claims: map[string]string{
					"service_account": "teleport:agent", "service_account_namespace": "teleport", "service_account_name": "agent",
					"pod_name": "web-0", "node_name": "node-1", "issuer": issuer,
				},
				Bad: append(badTokens(t, w), noFiles(w)...),
			}
			if k.name == "oidc" {
				rig.Bad = append(rig.Bad, badIssuers(w)...)
			} else {
				rig.NotApplicable = map[string]string{
					"cloud_down": "nothing is asked: the keys stand in the token",
					"cloud_lies": "nothing is asked: the keys stand in the token",
				}
			}
			jointest.Run(t, rig)
		})
	}
}

// bad returns a case.
func bad(name string, bend func(*testing.T, *jointest.Setup), code string) jointest.Case {
	return jointest.Case{Name: name, Bend: bend, Code: code}
}

func badTokens(t *testing.T, w *world) []jointest.Case {
	other := newWorld(t)
	now := time.Now()
	set := func(name string, value any) func(*testing.T, *jointest.Setup) {
		return show(w, func(c object) { c[name] = value })
	}
	without := func(name string) func(*testing.T, *jointest.Setup) {
		return show(w, func(c object) { delete(c, name) })
	}
	// account is a token that calls its account so in both places.
	account := func(name string) func(*testing.T, *jointest.Setup) {
		return show(w, func(c object) {
			c["sub"], private(c)["serviceaccount"].(object)["name"] = "system:serviceaccount:teleport:"+name, name
		})
	}
	return []jointest.Case{
		bad("expired", show(w, func(c object) {
			c["iat"], c["nbf"], c["exp"] = now.Add(-15*time.Minute).Unix(), now.Add(-15*time.Minute).Unix(), now.Add(-5*time.Minute).Unix()
		}), method.CodeProofExpired),
		bad("expired to the second", func(t *testing.T, s *jointest.Setup) {
			show(w, func(object) {})(t, s)
			s.Now = time.Now().Add(11*time.Minute + time.Second)
		}, method.CodeProofExpired),
		bad("future", func(t *testing.T, s *jointest.Setup) {
			show(w, func(object) {})(t, s)
			s.Now = time.Now().Add(-2 * time.Minute)
		}, method.CodeProofNotYetValid),
		bad("issued in the future", show(w, func(c object) {
			delete(c, "nbf")
			c["iat"] = now.Add(5 * time.Minute).Unix()
		}), method.CodeProofNotYetValid),
		bad("not yet valid", set("nbf", now.Add(5*time.Minute).Unix()), method.CodeProofNotYetValid),
		bad("wrong_account", show(w, func(c object) {
			c["sub"] = "system:serviceaccount:teleport:other"
			private(c)["serviceaccount"].(object)["name"] = "other"
		}), method.CodeRuleMismatch),
		bad("wrong namespace", show(w, func(c object) {
			c["sub"], private(c)["namespace"] = "system:serviceaccount:other:agent", "other"
		}), method.CodeRuleMismatch),
		bad("wrong_audience", set("aud", []string{"other.example.com"}), method.CodeProofAudience),
		bad("wrong audience as text", set("aud", "other.example.com"), method.CodeProofAudience),
		bad("audience of the API server", set("aud", []string{"https://kubernetes.default.svc.cluster.local", "k3s"}), method.CodeProofAudience),
		bad("audience in capitals", set("aud", []string{strings.ToUpper(cluster)}), method.CodeProofAudience),
		bad("no audience", without("aud"), method.CodeProofAudience),
		bad("good for 31 minutes", set("exp", now.Add(31*time.Minute).Unix()), method.CodeProofLifetime),
		bad("no expiry", without("exp"), method.CodeProofLifetime),
		bad("no time of issue", without("iat"), method.CodeProofLifetime),
		bad("not bound", show(w, func(c object) { delete(private(c), "pod") }), method.CodeProofMachine),
		bad("bound to a secret", show(w, func(c object) {
			delete(private(c), "pod")
			private(c)["secret"] = object{"name": "agent-token", "uid": "6c1e7bd0-3d4c-4d6a-9d7f-9d2a0a3a4f05"}
		}), method.CodeProofMachine),
		bad("no uid of the pod", show(w, func(c object) { delete(private(c)["pod"].(object), "uid") }), method.CodeProofMachine),
		bad("a list for the uid of the pod", show(w, func(c object) { private(c)["pod"].(object)["uid"] = []string{"a"} }), method.CodeProofMachine),
		bad("no name of the pod", show(w, func(c object) { delete(private(c)["pod"].(object), "name") }), method.CodeProofMachine),
		bad("legacy claims", show(w, func(c object) {
			delete(c, "kubernetes.io")
			c["kubernetes.io/serviceaccount/namespace"], c["kubernetes.io/serviceaccount/service-account.name"] = "teleport", "agent"
		}), method.CodeProofMachine),
		bad("a user", set("sub", "alice"), method.CodeProofMachine),
		bad("a node", set("sub", "system:node:node-1"), method.CodeProofMachine),
		bad("no subject", without("sub"), method.CodeProofMachine),
		bad("colon in the name", account("agent:x"), method.CodeProofMachine),
		bad("no name", account(""), method.CodeProofMachine),
		bad("subject of another account", set("sub", "system:serviceaccount:teleport:admin"), method.CodeProofMachine),
		bad("namespace of another account", show(w, func(c object) { private(c)["namespace"] = "kube-system" }), method.CodeProofMachine),
		bad("keys of another cluster", text(func(t *testing.T) string { return other.sign(t, claims(w.issuer)) }), method.CodeProofSignature),
		bad("unknown key", text(func(t *testing.T) string {
			return sign(t, jose.ES256, w.key, "k2", claims(w.issuer))
		}), method.CodeProofSignature),
		bad("another algorithm", text(func(t *testing.T) string {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			return sign(t, jose.RS256, key, "k1", claims(w.issuer))
		}), method.CodeProofSignature),
		bad("alg none", text(func(t *testing.T) string {
			return strings.TrimSuffix(unsigned(t, object{"alg": "none", "kid": "k1"}, claims(w.issuer)), ".") + ".AA"
		}), method.CodeProofMalformed),
		bad("alg none, no signature", text(func(t *testing.T) string {
			return unsigned(t, object{"alg": "none"}, claims(w.issuer))
		}), method.CodeProofMalformed),
		bad("HS256 with the public key", text(func(t *testing.T) string {
			der, err := x509.MarshalPKIXPublicKey(&w.key.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			return sign(t, jose.HS256, der, "k1", claims(w.issuer))
		}), method.CodeProofMalformed),
		bad("key in the header", text(func(t *testing.T) string {
			key := jose.JSONWebKey{Key: &other.key.PublicKey, KeyID: "k1"}
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: other.key}, (&jose.SignerOptions{}).WithHeader("jwk", key))
			if err != nil {
				t.Fatal(err)
			}
			signed, err := signer.Sign([]byte(marshal(t, claims(w.issuer))))
			if err != nil {
				t.Fatal(err)
			}
			out, err := signed.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			return out
		}), method.CodeProofMalformed),
		bad("claims bent after signing", text(func(t *testing.T) string {
			parts := strings.Split(w.sign(t, claims(w.issuer)), ".")
			c := claims(w.issuer)
			c["sub"] = "system:serviceaccount:teleport:agent"
			parts[1] = base64.RawURLEncoding.EncodeToString([]byte(marshal(t, c)))
			return strings.Join(parts, ".")
		}), method.CodeProofSignature),
	}
}

// unsigned returns a token with an empty signature.
func unsigned(t *testing.T, header, c object) string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(marshal(t, header))) + "." + b64([]byte(marshal(t, c))) + "."
}

// noFiles are failures of the machine itself.
func noFiles(w *world) []jointest.Case {
	return []jointest.Case{
		bad("no file", func(t *testing.T, s *jointest.Setup) {
			s.Machine.Getenv = env(map[string]string{"KUBERNETES_TOKEN_PATH": filepath.Join(t.TempDir(), "none")})
		}, method.CodeCredentials),
		bad("no pod", func(_ *testing.T, s *jointest.Setup) { s.Machine.Getenv = env(nil) }, method.CodeCredentials),
		bad("empty file", func(t *testing.T, s *jointest.Setup) { s.Machine.Getenv = mounted(t, "") }, method.CodeCredentials),
		bad("long file", func(t *testing.T, s *jointest.Setup) {
			s.Machine.Getenv = mounted(t, w.sign(t, claims(w.issuer))+strings.Repeat("a", jwt.MaxToken))
		}, method.CodeCredentials),
	}
}

// badIssuers are lies and silence of an issuer. Each case asks an issuer that nobody
// asked before, or the keys would be known already.
func badIssuers(w *world) []jointest.Case {
	fresh := func(bend func(t *testing.T, w *world, s *jointest.Setup)) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			own := newWorld(t)
			own.issuer = "https://" + strings.ToLower(rand.Text()) + ".example.com/id/0A1B"
			s.Spec.Kubernetes.Oidc.Issuer, s.Auth = own.issuer, own.egress()
			s.Machine.Getenv = mounted(t, own.sign(t, claims(own.issuer)))
			bend(t, own, s)
		}
	}
	return []jointest.Case{
		bad("cloud_down", fresh(func(_ *testing.T, w *world, _ *jointest.Setup) { w.server.Close() }), method.CodeCloudUnreachable),
		bad("cloud_lies", fresh(func(t *testing.T, w *world, _ *jointest.Setup) {
			keys := newWorld(t).jwks(t)
			w.keys = func() string { return keys }
		}), method.CodeProofSignature),
		bad("document of another issuer", fresh(func(t *testing.T, w *world, _ *jointest.Setup) {
			w.document = func() string {
				return marshal(t, object{"issuer": issuer, "jwks_uri": w.issuer + "/openid/v1/jwks"})
			}
		}), method.CodeProofIssuer),
		bad("keys over http", fresh(func(t *testing.T, w *world, _ *jointest.Setup) {
			w.document = func() string {
				return marshal(t, object{"issuer": w.issuer, "jwks_uri": "http" + strings.TrimPrefix(w.issuer, "https") + "/openid/v1/jwks"})
			}
		}), method.CodeProofIssuer),
		bad("no document", fresh(func(_ *testing.T, w *world, _ *jointest.Setup) {
			w.document = func() string { return "<html>" }
		}), method.CodeCloudUnreachable),
		bad("no authority that signed the issuer's certificate", fresh(func(t *testing.T, _ *world, s *jointest.Setup) {
			s.Spec.Kubernetes.Oidc.Ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority(t)}))
		}), method.CodeCloudUnreachable),
		bad("token of another issuer", show(w, func(c object) { c["iss"] = issuer + "/" }), method.CodeProofIssuer),
		bad("token of no issuer", show(w, func(c object) { delete(c, "iss") }), method.CodeProofIssuer),
	}
}

// authority returns a certificate that signed nothing.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// attempt makes one attempt with a token.
func attempt(t *testing.T, k kind, w *world, token string) (method.Claims, error) {
	t.Helper()
	s := &jointest.Setup{Spec: k.spec(t, w), Auth: w.egress()}
	s.Machine.Getenv = mounted(t, token)
	return jointest.Attempt(t.Context(), kubernetes.Method(jwt.NewIssuers()), s, sha256.Sum256([]byte(rand.Text())))
}

// A token admits once, in whatever words it is shown again, and until it has expired.
func TestOnce(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t)
			c := claims(w.issuer)
			token := w.sign(t, c)
			first, err := attempt(t, k, w, token)
			if err != nil {
				t.Fatal(err)
			}
			if len(first.Once) != 1 || first.Once[0].ID == "" {
				t.Fatalf("Once = %v, want one proof", first.Once)
			}
			if expiry := time.Unix(c["exp"].(int64), 0); first.Once[0].Until.Before(expiry.Add(jwt.Leeway)) {
				t.Errorf("the proof is forgotten at %s, and it is good until %s", first.Once[0].Until, expiry.Add(jwt.Leeway))
			}
			again, err := attempt(t, k, w, otherSignature(t, token))
			if err != nil {
				t.Fatal(err)
			}
			if again.Once[0].ID != first.Once[0].ID {
				t.Error("the other form of an ECDSA signature makes another proof of a token")
			}
			c["jti"] = rand.Text()
			next, err := attempt(t, k, w, w.sign(t, c))
			if err != nil {
				t.Fatal(err)
			}
			if next.Once[0].ID == first.Once[0].ID {
				t.Error("two tokens make one proof")
			}
			if next.Machine != first.Machine || next.Machine == "" {
				t.Errorf("two tokens of one pod are of machines %q and %q", first.Machine, next.Machine)
			}
			delete(c, "jti")
			bare, err := attempt(t, k, w, w.sign(t, c))
			if err != nil {
				t.Fatal(err)
			}
			if len(bare.Once) != 1 || bare.Once[0].ID == "" || bare.Once[0].ID == next.Once[0].ID {
				t.Errorf("Once = %v for a token without jti, want a proof of its own", bare.Once)
			}
		})
	}
}

// otherSignature returns the token with (r, n-s) for (r, s), which is as good.
func otherSignature(t *testing.T, token string) string {
	t.Helper()
	cut := strings.LastIndexByte(token, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(token[cut:])
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	s := slices.Clone(signature[32:])
	value := n.FillBytes(make([]byte, 32))
	borrow := 0
	for i := 31; i >= 0; i-- {
		d := int(value[i]) - int(s[i]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		s[i] = byte(d)
	}
	return token[:cut] + base64.RawURLEncoding.EncodeToString(append(signature[:32:32], s...))
}

// Two clusters that call themselves the same are told apart by their keys, so a pod of
// one is never taken for a pod of the other.
func TestMachinesOfTwoClusters(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	c := claims("https://kubernetes.default.svc.cluster.local")
	static, oidc := kinds()[0], kinds()[1]
	one, err := attempt(t, static, a, a.sign(t, c))
	if err != nil {
		t.Fatal(err)
	}
	c["iss"] = issuer
	two, err := attempt(t, oidc, b, b.sign(t, c))
	if err != nil {
		t.Fatal(err)
	}
	uid := "/" + private(c)["pod"].(object)["uid"].(string)
	if want := "kubernetes/jwks/suite" + uid; one.Machine != want {
		t.Errorf("machine %q, want %q", one.Machine, want)
	}
	if want := "kubernetes/" + issuer + uid; two.Machine != want {
		t.Errorf("machine %q, want %q", two.Machine, want)
	}
}

// What was verified comes with the refusal, for the audit log.
func TestRefusalsKeepWhatWasVerified(t *testing.T) {
	w := newWorld(t)
	c := claims(w.issuer)
	c["aud"] = []string{"other.example.com"}
	got, err := attempt(t, kinds()[0], w, w.sign(t, c))
	if fault.Code(err) != method.CodeProofAudience || got.Get("service_account") != "teleport:agent" {
		t.Errorf("claims %v with %v, want the service account and code %q", got.Attributes, err, method.CodeProofAudience)
	}
	got, err = attempt(t, kinds()[0], w, newWorld(t).sign(t, c))
	if fault.Code(err) != method.CodeProofSignature || len(got.Attributes) != 0 {
		t.Errorf("claims %v with %v, want none and code %q", got.Attributes, err, method.CodeProofSignature)
	}
}

// The kubelet replaces the file: each attempt reads it.
func TestFileIsReadAtEachAttempt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	prove := kubernetes.Method(jwt.NewIssuers()).Prove(method.Machine{Cluster: cluster, Getenv: env(map[string]string{"KUBERNETES_TOKEN_PATH": path})})
	for _, want := range []string{"first", "second"} {
		if err := os.WriteFile(path, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := prove(t.Context(), nil)
		if err != nil || string(got) != want {
			t.Errorf("showed %q, %v; want %q", got, err, want)
		}
	}
}

// An error of the machine says what was tried and what to mount.
func TestNoFileSaysWhatToDo(t *testing.T) {
	_, err := kubernetes.Method(jwt.NewIssuers()).Prove(method.Machine{Cluster: cluster, Getenv: env(nil)})(t.Context(), nil)
	for _, want := range []string{"/var/run/secrets/kubernetes.io/serviceaccount/token", "KUBERNETES_TOKEN_PATH", cluster} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	if !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("%v has no kind, so nobody would see it", err)
	}
}

// Every rule field is compared.
func TestRules(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		rule *typesv1.KubernetesRule
		want bool
	}{
		"literal":                 {&typesv1.KubernetesRule{ServiceAccount: "teleport:agent"}, true},
		"other_literal":           {&typesv1.KubernetesRule{ServiceAccount: "teleport:agents"}, false},
		"pair":                    {&typesv1.KubernetesRule{ServiceAccountNamespace: "teleport", ServiceAccountName: "agent"}, true},
		"globs":                   {&typesv1.KubernetesRule{ServiceAccountNamespace: "tele*", ServiceAccountName: "agen?"}, true},
		"whole_namespace":         {&typesv1.KubernetesRule{ServiceAccountNamespace: "teleport", ServiceAccountName: "*"}, true},
		"other_namespace":         {&typesv1.KubernetesRule{ServiceAccountNamespace: "tele", ServiceAccountName: "*"}, false},
		"name_of_other_namespace": {&typesv1.KubernetesRule{ServiceAccountNamespace: "tele*", ServiceAccountName: "port"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := kind{"static_jwks", func(t *testing.T, w *world) *typesv1.TokenSpec {
				spec := kinds()[0].spec(t, w)
				spec.Kubernetes.Allow = []*typesv1.KubernetesRule{tt.rule}
				return spec
			}}
			_, err := attempt(t, k, w, w.sign(t, claims(w.issuer)))
			if tt.want && err != nil || !tt.want && fault.Code(err) != method.CodeRuleMismatch {
				t.Errorf("attempt = %v, want admitted %t", err, tt.want)
			}
		})
	}
}

// An issuer with a certificate of its own authority is known by that.
func TestOwnAuthority(t *testing.T) {
	w := newWorld(t)
	k := kind{"oidc", func(t *testing.T, w *world) *typesv1.TokenSpec {
		spec := kinds()[1].spec(t, w)
		spec.Kubernetes.Oidc.Ca = w.ca()
		return spec
	}}
	s := &jointest.Setup{Spec: k.spec(t, w), Auth: egress.Config{Dial: w.egress().Dial}}
	s.Machine.Getenv = mounted(t, w.sign(t, claims(w.issuer)))
	m := kubernetes.Method(jwt.NewIssuers())
	if _, err := jointest.Attempt(t.Context(), m, s, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	s.Spec = kinds()[1].spec(t, w)
	if _, err := jointest.Attempt(t.Context(), m, s, [32]byte{1}); fault.Code(err) != method.CodeCloudUnreachable {
		t.Fatalf("without the authority: %v, want code %q", err, method.CodeCloudUnreachable)
	}
}

// FuzzAnswer has strangers show anything: nothing but the signature of the cluster gets
// in, and no refusal is without a kind.
func FuzzAnswer(f *testing.F) {
	w := newWorld(f)
	good := w.sign(f, claims(w.issuer))
	seeds := []string{"", ".", "..", "a.b.c", good, good + ".", strings.Replace(good, ".", "..", 1), "eyJhbGciOiJub25lIn0.e30."}
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	for _, c := range []object{{}, {"kubernetes.io": nil}, {"sub": "system:serviceaccount:"}, {"exp": 1e300}} {
		all := claims(w.issuer)
		maps.Copy(all, c)
		f.Add([]byte(newWorld(f).sign(f, all)))
	}
	spec := &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
		Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: w.jwks(f)}, Allow: allowAgent(),
	}}
	m := kubernetes.Method(jwt.NewIssuers())
	getenv := mounted(f, good)
	content := good[:strings.LastIndexByte(good, '.')]
	f.Fuzz(func(t *testing.T, answer []byte) {
		s := &jointest.Setup{Spec: spec, Tamper: func([]byte) []byte { return answer }}
		s.Machine.Getenv = getenv
		_, err := jointest.Attempt(t.Context(), m, s, [32]byte{1})
		if err == nil && !strings.HasPrefix(string(answer), content+".") {
			t.Fatalf("%q was admitted", answer)
		}
		if err != nil && fault.Kind(err) == nil {
			t.Fatalf("the refusal of %q has no kind: %v", answer, err)
		}
	})
}

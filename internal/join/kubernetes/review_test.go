package kubernetes_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/kubernetes"
	"teleport/internal/join/method"
)

// reviewer is a stand-in for an API server that reviews tokens: it verifies signatures
// for real. What the real one answers is tried in cluster_test.go; this one can lie.
type reviewer struct {
	*world
	server *httptest.Server
	asked  atomic.Int32
	// bend changes an answer; status replaces 201.
	bend   func(review object)
	status int
}

// ownToken is the token of the Auth Service.
const ownToken = "own-token"

func newReviewer(t *testing.T) *reviewer {
	t.Helper()
	r := &reviewer{world: newWorld(t), status: http.StatusCreated, bend: func(object) {}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, req *http.Request) {
		r.asked.Add(1)
		if req.Header.Get("Authorization") != "Bearer "+ownToken || req.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		answer := r.review(t, body)
		r.bend(answer)
		w.WriteHeader(r.status)
		_, _ = w.Write([]byte(marshal(t, answer)))
	})
	r.server = serve(mux)
	t.Cleanup(r.server.Close)
	return r
}

// review answers as the API server of version 1.36 does.
func (r *reviewer) review(t *testing.T, body []byte) object {
	var in struct {
		Spec struct {
			Token     string   `json:"token"`
			Audiences []string `json:"audiences"`
		} `json:"spec"`
	}
	out := object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": object{"user": object{}, "error": "invalid bearer token"}}
	if err := json.Unmarshal(body, &in); err != nil {
		return out
	}
	signed, err := jose.ParseSignedCompact(in.Spec.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || signed.Signatures[0].Header.KeyID != "k1" {
		return out
	}
	payload, err := signed.Verify(&r.key.PublicKey)
	if err != nil {
		return out
	}
	var c object
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Errorf("a signed token that is not JSON: %v", err)
		return out
	}
	k := c["kubernetes.io"].(object)
	out["status"] = object{
		"authenticated": true, "audiences": in.Spec.Audiences,
		"user": object{
			"username": c["sub"], "uid": "5e0c1f0e-6b0e-4f7b-9d60-25ae7b2e51f8",
			"groups": []any{"system:serviceaccounts", "system:serviceaccounts:" + k["namespace"].(string), "system:authenticated"},
			"extra": object{
				"authentication.kubernetes.io/credential-id": []any{"JTI=" + c["jti"].(string)},
				"authentication.kubernetes.io/node-name":     []any{"node-1"},
				"authentication.kubernetes.io/pod-name":      []any{k["pod"].(object)["name"]},
				"authentication.kubernetes.io/pod-uid":       []any{k["pod"].(object)["uid"]},
			},
		},
	}
	return out
}

// environment is that of an Auth Service in a pod of the API server's cluster.
func (r *reviewer) environment(t *testing.T) map[string]string {
	t.Helper()
	host, port, err := net.SplitHostPort(r.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	return authEnvironment(t, host, port, ownToken, ca)
}

func authEnvironment(t *testing.T, host, port, token string, ca []byte) map[string]string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{"token": []byte(token), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]string{
		"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
		"KUBERNETES_TOKEN_PATH": filepath.Join(dir, "token"), "KUBERNETES_CA_PATH": filepath.Join(dir, "ca.crt"),
	}
}

func inClusterSpec() *typesv1.TokenSpec {
	return &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{Allow: allowAgent()}}
}

func TestInClusterSuite(t *testing.T) {
	r := newReviewer(t)
	good := func(t *testing.T) *jointest.Setup {
		s := &jointest.Setup{Spec: inClusterSpec(), AuthEnv: env(r.environment(t))}
		s.Machine.Getenv = mounted(t, r.sign(t, claims(r.issuer)))
		return s
	}
	jointest.Run(t, jointest.Rig{
		Method: kubernetes.Method(jwt.NewIssuers()), Good: good,
		Claims: map[string]string{"service_account": "teleport:agent", "pod_name": "web-0", "node_name": "node-1"},
		Bad:    append(append(reviewedTokens(badTokens(t, r.world)), noFiles(r.world)...), badReviews(t)...),
	})
}

// reviewedTokens are the bad tokens with the codes of a refusal by an API server, which
// does not say why.
func reviewedTokens(list []jointest.Case) []jointest.Case {
	for i := range list {
		if list[i].Code == method.CodeProofSignature {
			list[i].Code = method.CodeCloudRefused
		}
	}
	return list
}

// badReviews are lies, silence and misconfiguration of the API server.
func badReviews(t *testing.T) []jointest.Case {
	bent := func(bend func(status object)) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			r := newReviewer(t)
			r.bend = func(review object) { bend(review["status"].(object)) }
			s.AuthEnv = env(r.environment(t))
			s.Machine.Getenv = mounted(t, r.sign(t, claims(r.issuer)))
		}
	}
	user := func(bend func(user object)) func(*testing.T, *jointest.Setup) {
		return bent(func(status object) { bend(status["user"].(object)) })
	}
	extra := func(name string, value any) func(*testing.T, *jointest.Setup) {
		return user(func(user object) { user["extra"].(object)["authentication.kubernetes.io/"+name] = value })
	}
	status := func(code int) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			r := newReviewer(t)
			r.status = code
			s.AuthEnv = env(r.environment(t))
		}
	}
	without := func(name string) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			e := newReviewer(t).environment(t)
			e[name] = ""
			s.AuthEnv = env(e)
		}
	}
	file := func(name, content string) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			e := newReviewer(t).environment(t)
			if err := os.WriteFile(e[name], []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			s.AuthEnv = env(e)
		}
	}
	return []jointest.Case{
		bad("cloud_down", func(t *testing.T, s *jointest.Setup) {
			r := newReviewer(t)
			s.AuthEnv = env(r.environment(t))
			r.server.Close()
		}, method.CodeCloudUnreachable),
		bad("cloud_lies", user(func(user object) { user["username"] = "system:serviceaccount:teleport:admin" }), method.CodeProofMachine),
		bad("not authenticated", bent(func(s object) { s["authenticated"] = false }), method.CodeCloudRefused),
		bad("no audiences", bent(func(s object) { delete(s, "audiences") }), method.CodeProofAudience),
		bad("other audiences", bent(func(s object) { s["audiences"] = []string{"https://kubernetes.default.svc"} }), method.CodeProofAudience),
		bad("a user of the same name", user(func(user object) { user["groups"] = []any{"system:authenticated"} }), method.CodeProofMachine),
		bad("no group of all accounts", user(func(user object) { user["groups"] = []any{"system:serviceaccounts:teleport"} }), method.CodeProofMachine),
		bad("groups of another namespace", user(func(user object) {
			user["groups"] = []any{"system:serviceaccounts", "system:serviceaccounts:other"}
		}), method.CodeProofMachine),
		bad("user alice", user(func(user object) { user["username"] = "alice" }), method.CodeProofMachine),
		bad("no pod in the review", user(func(user object) { delete(user, "extra") }), method.CodeProofMachine),
		bad("another pod in the review", extra("pod-name", []string{"web-1"}), method.CodeProofMachine),
		bad("another uid in the review", extra("pod-uid", []string{"0"}), method.CodeProofMachine),
		bad("two uids in the review", extra("pod-uid", []string{"a", "b"}), method.CodeProofMachine),
		bad("review of another token", extra("credential-id", []string{"JTI=0"}), method.CodeProofMachine),
		bad("not a review", func(t *testing.T, s *jointest.Setup) {
			r := newReviewer(t)
			r.bend = func(review object) { review["kind"] = "Status" }
			s.AuthEnv = env(r.environment(t))
			s.Machine.Getenv = mounted(t, r.sign(t, claims(r.issuer)))
		}, method.CodeCloudUnreachable),
		bad("review too long", bent(func(s object) { s["error"] = strings.Repeat("a", egress.DefaultLimit) }), method.CodeCloudUnreachable),
		bad("not logged in", status(http.StatusUnauthorized), method.CodeCloudUnreachable),
		bad("may not review", status(http.StatusForbidden), method.CodeCloudUnreachable),
		bad("server error", status(http.StatusInternalServerError), method.CodeCloudUnreachable),
		bad("redirect", status(http.StatusTemporaryRedirect), method.CodeCloudUnreachable),
		bad("no host", without("KUBERNETES_SERVICE_HOST"), method.CodeCloudUnreachable),
		bad("no port", without("KUBERNETES_SERVICE_PORT"), method.CodeCloudUnreachable),
		bad("wrong token of Auth", file("KUBERNETES_TOKEN_PATH", "other"), method.CodeCloudUnreachable),
		bad("no token of Auth", file("KUBERNETES_TOKEN_PATH", ""), method.CodeCloudUnreachable),
		bad("token of Auth with a line break", file("KUBERNETES_TOKEN_PATH", ownToken+"\r\nX-A: b"), method.CodeCloudUnreachable),
		bad("no authority", file("KUBERNETES_CA_PATH", ""), method.CodeCloudUnreachable),
		bad("another authority", file("KUBERNETES_CA_PATH", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority(t)}))), method.CodeCloudUnreachable),
	}
}

// What is plainly bad costs the API server nothing.
func TestAPIServerIsNotAskedInVain(t *testing.T) {
	r := newReviewer(t)
	m := kubernetes.Method(jwt.NewIssuers())
	try := func(t *testing.T, token string) error {
		s := &jointest.Setup{Spec: inClusterSpec(), AuthEnv: env(r.environment(t))}
		s.Machine.Getenv = mounted(t, token)
		_, err := jointest.Attempt(t.Context(), m, s, [32]byte{1})
		return err
	}
	for _, bend := range []func(c object){
		func(c object) { c["aud"] = "other" },
		func(c object) { c["exp"] = 1700000000 },
		func(c object) { c["sub"] = "alice" },
		func(c object) { delete(private(c), "pod") },
	} {
		c := claims(r.issuer)
		bend(c)
		if err := try(t, r.sign(t, c)); err == nil {
			t.Errorf("admitted %v", c)
		}
	}
	good := r.sign(t, claims(r.issuer))
	// The decoder of the API server would skip line breaks and the last bits of a part:
	// one token would have many names in the ledger.
	for _, token := range []string{good[:5] + "\n" + good[5:], strings.Replace(good, ".", "=.", 1), loose(t, good)} {
		if err := try(t, token); err == nil {
			t.Errorf("admitted %q", token)
		}
	}
	if n := r.asked.Load(); n != 0 {
		t.Errorf("the API server was asked %d times", n)
	}
	if err := try(t, good); err != nil || r.asked.Load() != 1 {
		t.Errorf("a good token: %v, and the API server was asked %d times", err, r.asked.Load())
	}
}

// loose returns a token whose signature decodes to the same bytes and is written in
// another way: the last character has bits that mean nothing.
func loose(t *testing.T, token string) string {
	t.Helper()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	out := token[:len(token)-1] + string(alphabet[last|1])
	signature := func(token string) string {
		b, err := base64.RawURLEncoding.DecodeString(token[strings.LastIndexByte(token, '.')+1:])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if signature(out) != signature(token) || out == token {
		t.Fatalf("%q and %q are not one signature in two writings", out, token)
	}
	return out
}

// Auth asks the address of the cluster that it runs in, and no other.
func TestAPIServerAddress(t *testing.T) {
	r := newReviewer(t)
	e := r.environment(t)
	e["KUBERNETES_SERVICE_HOST"], e["KUBERNETES_SERVICE_PORT"] = "fd00::1", "6443"
	asked := ""
	s := &jointest.Setup{Spec: inClusterSpec(), AuthEnv: env(e), Auth: egress.Config{
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			asked = addr
			return nil, net.ErrClosed
		},
	}}
	s.Machine.Getenv = mounted(t, r.sign(t, claims(r.issuer)))
	if _, err := jointest.Attempt(t.Context(), kubernetes.Method(jwt.NewIssuers()), s, [32]byte{1}); err == nil {
		t.Error("admitted without an answer")
	}
	if want := "[fd00::1]:6443"; asked != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

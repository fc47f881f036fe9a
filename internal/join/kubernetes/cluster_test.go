package kubernetes_test

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/kubernetes"
	"teleport/internal/join/method"
	"teleport/test/kube"
)

// real is a real API server, and what an Auth Service in its cluster has.
type real struct {
	*kube.Cluster
	env func(string) string
	m   method.Method
}

// TestCluster joins against a real API server, in each type of the method.
func TestCluster(t *testing.T) {
	// A user whose token looks like that of a service account.
	disguised := unsigned(t, object{"alg": "ES256", "kid": "k1"}, claims("https://127.0.0.1")) + base64.RawURLEncoding.EncodeToString(make([]byte, 64))
	r := real{Cluster: kube.Start(t, kube.User{Token: disguised, Name: "system:serviceaccount:teleport:agent"}), m: kubernetes.Method(jwt.NewIssuers())}
	r.env = env(authEnvironment(t, r.Host, r.Port, r.Reviewer(t, "teleport", "auth"), r.CA))
	r.Publish(t)
	types := map[string]*typesv1.KubernetesJoin{
		"in_cluster":  {Type: "in_cluster"},
		"static_jwks": {Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: r.JWKS(t)}},
		"oidc":        {Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: r.URL, Ca: string(r.CA)}},
	}
	for name, join := range types {
		join.Allow = allowAgent()
		t.Run(name, func(t *testing.T) {
			t.Run("suite", func(t *testing.T) { r.suite(t, join, disguised) })
			t.Run("replay", func(t *testing.T) { r.replay(t, join) })
			t.Run("ledger", func(t *testing.T) { r.ledger(t, join) })
		})
	}
	t.Run("deleted", func(t *testing.T) {
		t.Run("pod", func(t *testing.T) {
			t.Parallel()
			r.deleted(t, types["in_cluster"], func(t *testing.T, p kube.Pod) { r.Delete(t, p) })
		})
		t.Run("pod of the same name", func(t *testing.T) {
			t.Parallel()
			r.deleted(t, types["in_cluster"], func(t *testing.T, p kube.Pod) {
				r.Delete(t, p)
				if again := r.Pod(t, p.Namespace, p.Name, p.ServiceAccount); again.UID == p.UID {
					t.Fatalf("two pods have the uid %s", p.UID)
				}
			})
		})
	})
	t.Run("reviewer without right", func(t *testing.T) {
		r.ServiceAccount(t, "teleport", "powerless")
		s := r.setup(t, types["in_cluster"], r.Token(t, r.pod(t), cluster, 10*time.Minute))
		s.AuthEnv = env(authEnvironment(t, r.Host, r.Port, r.UnboundToken(t, "teleport", "powerless", "", time.Hour), r.CA))
		_, err := jointest.Attempt(t.Context(), r.m, s, [32]byte{1})
		if fault.Code(err) != method.CodeCloudUnreachable || !strings.Contains(err.Error(), "system:auth-delegator") {
			t.Errorf("%v, want code %q and the role that is missing", err, method.CodeCloudUnreachable)
		}
	})
}

// pod makes a pod of the service account that the rules allow.
func (r real) pod(t *testing.T) kube.Pod {
	t.Helper()
	return r.Pod(t, "teleport", "web-"+unique(), "agent")
}

// unique is the end of a name that nothing else has.
func unique() string { return strings.ToLower(rand.Text()[:12]) }

func (r real) setup(t *testing.T, join *typesv1.KubernetesJoin, token string) *jointest.Setup {
	t.Helper()
	s := &jointest.Setup{Spec: &typesv1.TokenSpec{Kubernetes: join}, AuthEnv: r.env}
	s.Machine.Getenv = mounted(t, token)
	return s
}

func (r real) suite(t *testing.T, join *typesv1.KubernetesJoin, disguised string) {
	reviewed := join.GetType() == "in_cluster"
	// forged is the code of a refusal because of the signature.
	forged := method.CodeProofSignature
	if reviewed {
		forged = method.CodeCloudRefused
	}
	// A token of nobody's names nobody's issuer.
	disguise := forged
	if join.GetType() == "oidc" {
		disguise = method.CodeProofIssuer
	}
	show := func(token func(t *testing.T) string) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) { s.Machine.Getenv = mounted(t, token(t)) }
	}
	other := newWorld(t)
	rig := jointest.Rig{
		Method: r.m,
		Good: func(t *testing.T) *jointest.Setup {
			return r.setup(t, join, r.Token(t, r.pod(t), cluster, 10*time.Minute))
		},
		Claims: map[string]string{
			"service_account": "teleport:agent", "service_account_namespace": "teleport", "service_account_name": "agent", "issuer": r.URL,
		},
		Bad: []jointest.Case{
			bad("expired", func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().Add(12 * time.Minute) }, method.CodeProofExpired),
			bad("future", func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().Add(-2 * time.Minute) }, method.CodeProofNotYetValid),
			bad("wrong_account", show(func(t *testing.T) string {
				return r.Token(t, r.Pod(t, "teleport", "other-"+unique(), "other"), cluster, 10*time.Minute)
			}), method.CodeRuleMismatch),
			bad("wrong namespace", show(func(t *testing.T) string {
				return r.Token(t, r.Pod(t, "elsewhere", "web-"+unique(), "agent"), cluster, 10*time.Minute)
			}), method.CodeRuleMismatch),
			bad("wrong_audience", show(func(t *testing.T) string {
				return r.Token(t, r.pod(t), "other.example.com", 10*time.Minute)
			}), method.CodeProofAudience),
			bad("audience of the API server", show(func(t *testing.T) string {
				return r.Token(t, r.pod(t), "", 10*time.Minute)
			}), method.CodeProofAudience),
			bad("not bound", show(func(t *testing.T) string {
				return r.UnboundToken(t, "teleport", "agent", cluster, 10*time.Minute)
			}), method.CodeProofMachine),
			bad("good for 31 minutes", show(func(t *testing.T) string {
				return r.Token(t, r.pod(t), cluster, 31*time.Minute)
			}), method.CodeProofLifetime),
			bad("token of a user", show(func(*testing.T) string { return r.Admin }), method.CodeProofMalformed),
			bad("user in disguise", show(func(*testing.T) string { return disguised }), disguise),
			bad("another cluster's keys", show(func(t *testing.T) string {
				c := claims(r.URL)
				return sign(t, jose.ES256, other.key, r.kid(t), c)
			}), forged),
			bad("HS256", show(func(t *testing.T) string {
				return sign(t, jose.HS256, []byte(r.JWKS(t)), r.kid(t), claims(r.URL))
			}), method.CodeProofMalformed),
			bad("alg none", show(func(t *testing.T) string {
				return unsigned(t, object{"alg": "none", "kid": r.kid(t)}, claims(r.URL))
			}), method.CodeProofMalformed),
			bad("claims of another pod", show(func(t *testing.T) string {
				a := strings.Split(r.Token(t, r.pod(t), cluster, 10*time.Minute), ".")
				b := strings.Split(r.Token(t, r.pod(t), cluster, 10*time.Minute), ".")
				return a[0] + "." + b[1] + "." + a[2]
			}), forged),
		},
		NotApplicable: map[string]string{
			"cloud_down": "tried with a stand-in: see TestSuite and TestInClusterSuite",
			"cloud_lies": "the real one does not: see TestSuite and TestInClusterSuite",
		},
	}
	switch join.GetType() {
	case "static_jwks":
		rig.Bad = append(rig.Bad, bad("keys of another cluster in the token", func(t *testing.T, s *jointest.Setup) {
			s.Spec = &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
				Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: other.jwks(t)}, Allow: allowAgent(),
			}}
		}, method.CodeProofSignature))
	case "oidc":
		rig.Bad = append(rig.Bad,
			bad("issuer with a slash", func(_ *testing.T, s *jointest.Setup) {
				s.Spec = &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
					Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: r.URL + "/", Ca: string(r.CA)}, Allow: allowAgent(),
				}}
			}, method.CodeProofIssuer),
			bad("certificate of nobody's authority", func(_ *testing.T, s *jointest.Setup) {
				s.Spec = &typesv1.TokenSpec{Kubernetes: &typesv1.KubernetesJoin{
					Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: r.URL}, Allow: allowAgent(),
				}}
			}, method.CodeCloudUnreachable),
		)
	}
	jointest.Run(t, rig)
}

// kid returns the name of the key that the API server signs with.
func (r real) kid(t *testing.T) string {
	t.Helper()
	c, err := jwt.Unverified(r.Token(t, r.pod(t), cluster, 10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return c.KeyID
}

// replay shows one token many times, one after the other and at once: each time it is
// the same proof of the same machine, so that the ledger admits one. A second token of
// the pod is another proof of the same machine.
func (r real) replay(t *testing.T, join *typesv1.KubernetesJoin) {
	pod := r.pod(t)
	token := r.Token(t, pod, cluster, 10*time.Minute)
	const times = 8
	claims, errs := make([]method.Claims, times), make([]error, times)
	var wg sync.WaitGroup
	for i := range times {
		s := r.setup(t, join, token)
		wg.Go(func() { claims[i], errs[i] = jointest.Attempt(t.Context(), r.m, s, [32]byte{byte(i)}) })
	}
	wg.Wait()
	var ids, machines []string
	for i := range times {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if len(claims[i].Once) != 1 {
			t.Fatalf("Once = %v, want one proof", claims[i].Once)
		}
		ids, machines = append(ids, claims[i].Once[0].ID), append(machines, claims[i].Machine)
	}
	if len(slices.Compact(ids)) != 1 || len(slices.Compact(machines)) != 1 {
		t.Errorf("one token gives proofs %q of machines %q, want one of one", ids, machines)
	}
	if claims[0].Get("pod_uid") != pod.UID || claims[0].Get("pod_name") != pod.Name || !strings.HasSuffix(machines[0], "/"+pod.UID) {
		t.Errorf("machine %q with %v, want pod %s with uid %s", machines[0], claims[0].Attributes, pod.Name, pod.UID)
	}
	if claims[0].Get("credential_id") == "" {
		t.Errorf("%v, want the id of the token", claims[0].Attributes)
	}
	next, err := jointest.Attempt(t.Context(), r.m, r.setup(t, join, r.Token(t, pod, cluster, 10*time.Minute)), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if next.Once[0].ID == ids[0] || next.Machine != machines[0] {
		t.Errorf("another token of the pod: proof %q of machine %q, want another proof of %q", next.Once[0].ID, next.Machine, machines[0])
	}
}

// deleted uses a token whose pod goes. The API server remembers for some seconds that a
// token was good, so this waits for it.
func (r real) deleted(t *testing.T, join *typesv1.KubernetesJoin, remove func(*testing.T, kube.Pod)) {
	pod := r.pod(t)
	token := r.Token(t, pod, cluster, 10*time.Minute)
	try := func() error {
		_, err := jointest.Attempt(t.Context(), r.m, r.setup(t, join, token), [32]byte{1})
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	remove(t, pod)
	start := time.Now()
	for {
		err := try()
		if fault.Code(err) == method.CodeCloudRefused {
			t.Logf("refused %s after the pod was deleted", time.Since(start).Round(100*time.Millisecond))
			return
		}
		if err != nil {
			t.Fatalf("%v, want code %q", err, method.CodeCloudRefused)
		}
		select {
		case <-t.Context().Done():
			t.Fatal("a token whose pod is gone is still admitted")
		case <-time.After(250 * time.Millisecond):
		}
	}
}

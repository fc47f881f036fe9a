package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// verifier is Auth's half.
type verifier struct{ issuers *jwt.Issuers }

func (v verifier) verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	answer, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	token := string(answer)
	spec := a.Token.GetSpec().GetKubernetes()
	switch kind := types.KubernetesType(spec); kind {
	case types.KubernetesInCluster:
		return inCluster(ctx, a, token)
	case types.KubernetesStaticJWKS:
		keys, err := jwt.Static(spec.GetStaticJwks().GetJwks())
		if err != nil {
			return method.Claims{}, err
		}
		// Many clusters call themselves https://kubernetes.default.svc.cluster.local, so
		// the keys tell them apart and the issuer does not; machines of two tokens are two.
		return signed(ctx, token, keys, jwt.Expect{AnyIssuer: true}, a, "jwks/"+a.Token.GetMetadata().GetName())
	case types.KubernetesOIDC:
		o := spec.GetOidc()
		keys := v.issuers.Keys(a.Egress, jwt.Source{Issuer: o.GetIssuer(), Private: true, Insecure: o.GetInsecureAllowHttpIssuer(), CA: o.GetCa()})
		return signed(ctx, token, keys, jwt.Expect{Issuer: o.GetIssuer()}, a, o.GetIssuer())
	default:
		return method.Claims{}, fault.New(fault.ErrUnsupported, "spec.kubernetes.type %q of the token: expected in_cluster, static_jwks or oidc", kind).
			WithCode(method.CodeProofMalformed)
	}
}

// signed verifies a token by its signature alone. World is what the uids of its pods are
// unique in.
func signed(ctx context.Context, token string, keys jwt.Keys, want jwt.Expect, a method.Attempt, world string) (method.Claims, error) {
	want.Audience, want.Now, want.Leeway, want.MaxLifetime = a.Cluster, a.Now, jwt.Leeway, maxLifetime
	c, err := jwt.Verify(ctx, token, keys, want)
	if c.Raw == nil {
		return method.Claims{}, err
	}
	p, bad := readPod(c)
	if err == nil {
		err = bad
	}
	return p.claims(token, c, world), err
}

// pod is what a token says about the pod that it is bound to.
type pod struct{ namespace, account, accountUID, name, uid, node string }

const subjectPrefix = "system:serviceaccount:"

// Lengths of names in Kubernetes.
const (
	maxName = 253
	maxUID  = 128
)

// readPod reads the claims of a bound token. The pod that comes with an error has what
// could be read.
func readPod(c jwt.Claims) (pod, error) {
	const private = "kubernetes.io"
	p := pod{
		accountUID: c.Text(private, "serviceaccount", "uid"),
		name:       c.Text(private, "pod", "name"), uid: c.Text(private, "pod", "uid"), node: c.Text(private, "node", "name"),
	}
	account, ok := strings.CutPrefix(c.Subject, subjectPrefix)
	if !ok {
		return p, machine("the token is of %.256q: expected one of a service account of Kubernetes, %sNAMESPACE:NAME", c.Subject, subjectPrefix)
	}
	p.namespace, p.account, ok = strings.Cut(account, ":")
	if !ok || p.namespace == "" || p.account == "" || strings.Contains(p.account, ":") || len(account) > 2*maxName {
		return p, machine("the token is of %.256q: expected %sNAMESPACE:NAME", c.Subject, subjectPrefix)
	}
	if p.name == "" || p.uid == "" || len(p.name) > maxName || len(p.uid) > maxUID {
		return p, machine("the token is not bound to a pod: expected one from a projected volume (serviceAccountToken), and neither from a Secret nor from `kubectl create token`")
	}
	if p.namespace != c.Text(private, "namespace") || p.account != c.Text(private, "serviceaccount", "name") {
		return p, machine("the token is of %.256q and of another account at once", c.Subject)
	}
	return p, nil
}

func machine(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeProofMachine)
}

// claims returns what a verified token proves. World is what the uids of pods are unique
// in.
func (p pod) claims(token string, c jwt.Claims, world string) method.Claims {
	out := method.Claims{Attributes: map[string][]string{}}
	for name, value := range map[string]string{
		"service_account_namespace": p.namespace, "service_account_name": p.account, "service_account_uid": p.accountUID,
		"pod_name": p.name, "pod_uid": p.uid, "node_name": p.node, "issuer": c.Issuer, "credential_id": c.ID,
	} {
		if value != "" {
			out.Attributes[name] = []string{value}
		}
	}
	if p.namespace != "" && p.account != "" {
		out.Attributes["service_account"] = []string{p.namespace + ":" + p.account}
	}
	if p.uid != "" {
		out.Machine = "kubernetes/" + world + "/" + p.uid
	}
	out.Once = []method.Proof{{ID: proofID(token), Until: c.Expiry.Add(2 * jwt.Leeway)}}
	return out
}

// proofID names a token: a hash of the part that is signed. Unlike its jti, which only
// its issuer keeps unique, it cannot be the same for two tokens, whoever made them; and
// unlike a hash of the whole it does not change with the signature, which may be written
// in two ways (ECDSA).
func proofID(token string) string {
	content := token[:max(0, strings.LastIndexByte(token, '.'))]
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// timely checks the times and the audience of a token whose signature somebody else
// verifies.
func timely(c jwt.Claims, cluster string, now time.Time) error {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	found := false
	for _, audience := range c.Audience {
		found = found || audience == cluster
	}
	switch {
	case !found:
		return fault.New(fault.ErrDenied, "audience of the token: expected %q, got %.512q; set audience: %s in the serviceAccountToken of the projected volume", cluster, c.Audience, cluster).
			WithCode(method.CodeProofAudience)
	case c.Expiry.IsZero() || c.IssuedAt.IsZero():
		return fault.New(fault.ErrDenied, "the token does not say when it was made and until when it is good (claims iat and exp)").WithCode(method.CodeProofLifetime)
	case !now.Before(c.Expiry.Add(jwt.Leeway)):
		return fault.New(fault.ErrDenied, "the token expired at %s, and it is %s: check the clocks, and that the file is the one that the kubelet keeps fresh", stamp(c.Expiry), stamp(now)).
			WithCode(method.CodeProofExpired)
	case now.Add(jwt.Leeway).Before(c.IssuedAt), now.Add(jwt.Leeway).Before(c.NotBefore):
		return fault.New(fault.ErrDenied, "the token was issued at %s, and it is %s: check the clocks", stamp(c.IssuedAt), stamp(now)).WithCode(method.CodeProofNotYetValid)
	case c.Expiry.Sub(c.IssuedAt) > maxLifetime:
		return fault.New(fault.ErrDenied, "the token is good for %s: expected at most %s; set expirationSeconds: 600 in the serviceAccountToken of the projected volume", c.Expiry.Sub(c.IssuedAt), maxLifetime).
			WithCode(method.CodeProofLifetime)
	}
	return nil
}

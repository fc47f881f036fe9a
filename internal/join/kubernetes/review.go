package kubernetes

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

const (
	reviewPath = "/apis/authentication.k8s.io/v1/tokenreviews"
	maxCA      = 1 << 20
	// Keys of status.user.extra in a review.
	extraPodName      = "authentication.kubernetes.io/pod-name"
	extraPodUID       = "authentication.kubernetes.io/pod-uid"
	extraNode         = "authentication.kubernetes.io/node-name"
	extraCredential   = "authentication.kubernetes.io/credential-id"
	groupAccounts     = "system:serviceaccounts"
	credentialPrefix  = "JTI="
	maxReviewExcerpt  = 256
	reviewAPIVersion  = "authentication.k8s.io/v1"
	reviewKind        = "TokenReview"
	delegatorRoleName = "system:auth-delegator"
)

// tokenReview is the part of a TokenReview that we write and read.
type tokenReview struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Spec       reviewSpec   `json:"spec"`
	Status     reviewStatus `json:"status,omitzero"`
}

type reviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type reviewStatus struct {
	Authenticated bool       `json:"authenticated"`
	User          reviewUser `json:"user"`
	Audiences     []string   `json:"audiences"`
	Error         string     `json:"error"`
}

type reviewUser struct {
	Username string              `json:"username"`
	UID      string              `json:"uid"`
	Groups   []string            `json:"groups"`
	Extra    map[string][]string `json:"extra"`
}

// inCluster has a token reviewed by the API server of the cluster that Auth runs in. The
// server verifies the signature of the whole token, so once it has, what the token says
// is as good as what the review says; both must agree.
func inCluster(ctx context.Context, a method.Attempt, token string) (method.Claims, error) {
	c, err := jwt.Unverified(token)
	if err != nil {
		return method.Claims{}, err
	}
	// What cannot become good is refused before it costs the API server anything.
	if err := timely(c, a.Cluster, a.Now); err != nil {
		return method.Claims{}, err
	}
	p, err := readPod(c)
	if err != nil {
		return method.Claims{}, err
	}
	status, err := review(ctx, a, token)
	if err != nil {
		return method.Claims{}, err
	}
	if err := status.agrees(a.Cluster, p, c); err != nil {
		return method.Claims{}, err
	}
	if node := one(status.User.Extra[extraNode]); node != "" {
		p.node = node
	}
	return p.claims(token, c, "in_cluster"), nil
}

// agrees checks that the review vouches for all that is read from the token.
func (s *reviewStatus) agrees(cluster string, p pod, c jwt.Claims) error {
	if !s.Authenticated {
		return fault.New(fault.ErrDenied, "the API server of Auth's Kubernetes cluster does not vouch for the token: it is of another cluster, or its pod or service account was deleted").
			WithCode(method.CodeCloudRefused)
	}
	if !slices.Contains(s.Audiences, cluster) {
		return fault.New(fault.ErrDenied, "the API server of Auth's Kubernetes cluster vouches for the token, but not for audience %q of it", cluster).WithCode(method.CodeProofAudience)
	}
	if s.User.Username != subjectPrefix+p.namespace+":"+p.account ||
		!slices.Contains(s.User.Groups, groupAccounts) || !slices.Contains(s.User.Groups, groupAccounts+":"+p.namespace) {
		return machine("the token is of user %.256q: expected a service account of Kubernetes", s.User.Username)
	}
	if one(s.User.Extra[extraPodName]) != p.name || one(s.User.Extra[extraPodUID]) != p.uid {
		return machine("the API server of Auth's Kubernetes cluster does not vouch for the pod that the token names; it must be of version 1.22 or later")
	}
	if id := one(s.User.Extra[extraCredential]); id != "" && id != credentialPrefix+c.ID {
		return machine("the API server of Auth's Kubernetes cluster vouches for another token than the one it was given")
	}
	return nil
}

// one returns the only value, or "".
func one(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return ""
}

// review asks the API server.
func review(ctx context.Context, a method.Attempt, token string) (*reviewStatus, error) {
	host, port := a.Getenv("KUBERNETES_SERVICE_HOST"), a.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, unable("the Auth Service does not run in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set), so tokens of type in_cluster cannot be verified: use type oidc or static_jwks")
	}
	own, err := readFile(or(a.Getenv(envToken), accountDir+"/token"), jwt.MaxToken)
	if err != nil || own == "" {
		a.Log.ErrorContext(ctx, "the Auth Service has no service account token for the Kubernetes API server", "error", err)
		return nil, unable("the Auth Service cannot ask its Kubernetes API server: it has no service account token of its own")
	}
	ca, err := readFile(or(a.Getenv(envCA), accountDir+"/ca.crt"), maxCA)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM([]byte(ca)) {
		a.Log.ErrorContext(ctx, "the Auth Service has no certificate authority for the Kubernetes API server", "error", err)
		return nil, unable("the Auth Service cannot ask its Kubernetes API server: it has no certificate authority to know it by")
	}
	body, err := json.Marshal(tokenReview{APIVersion: reviewAPIVersion, Kind: reviewKind, Spec: reviewSpec{Token: token, Audiences: []string{a.Cluster}}})
	if err != nil {
		return nil, err
	}
	resp, err := a.Egress.Do(ctx, egress.Request{
		Method: http.MethodPost, URL: "https://" + net.JoinHostPort(host, port) + reviewPath, Body: body,
		Header: http.Header{"Authorization": {"Bearer " + own}, "Content-Type": {"application/json"}, "Accept": {"application/json"}},
		// The administrator, or the kubelet, named the host.
		Private: true, Roots: roots,
	})
	if err != nil {
		return nil, unable("the Auth Service cannot ask its Kubernetes API server: %w", err)
	}
	return readReview(ctx, a, resp)
}

func readReview(ctx context.Context, a method.Attempt, resp *egress.Response) (*reviewStatus, error) {
	switch resp.Status {
	case http.StatusOK, http.StatusCreated:
	case http.StatusUnauthorized, http.StatusForbidden:
		a.Log.ErrorContext(ctx, "the Kubernetes API server does not let the Auth Service review tokens: bind its service account to the ClusterRole "+delegatorRoleName,
			"status", resp.Status, "answer", excerpt(resp.Body))
		return nil, unable("the Kubernetes API server does not let the Auth Service review tokens (status %d): bind Auth's service account to the ClusterRole %s", resp.Status, delegatorRoleName)
	default:
		a.Log.ErrorContext(ctx, "the Kubernetes API server did not review a token", "status", resp.Status, "answer", excerpt(resp.Body))
		return nil, unable("the Kubernetes API server answers the Auth Service with status %d instead of a review", resp.Status)
	}
	var out tokenReview
	if err := json.Unmarshal(resp.Body, &out); err != nil || out.APIVersion != reviewAPIVersion || out.Kind != reviewKind {
		return nil, unable("the Kubernetes API server answers the Auth Service with something else than a review")
	}
	if out.Status.Error != "" {
		a.Log.InfoContext(ctx, "the Kubernetes API server says why it does not vouch for a token", "answer", excerpt([]byte(out.Status.Error)))
	}
	return &out.Status, nil
}

// excerpt is the beginning of an answer, for the log.
func excerpt(b []byte) string {
	return strings.ToValidUTF8(string(b[:min(len(b), maxReviewExcerpt)]), "?")
}

func or(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

func unable(format string, args ...any) error {
	return fault.New(fault.ErrUnreachable, format, args...).WithCode(method.CodeCloudUnreachable)
}

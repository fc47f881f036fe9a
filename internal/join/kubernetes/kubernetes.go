// Package kubernetes is the join method that proves which pod of a Kubernetes cluster a
// process runs in: the machine shows the token that the kubelet mounts into the pod,
// bound to the pod and made for this Teleport cluster only. Auth has the token reviewed
// by the API server of the cluster that it runs in itself (type in_cluster), or verifies
// its signature with keys that an administrator wrote down (static_jwks) or that the
// cluster publishes (oidc). It is no client of Kubernetes: it knows one request and the
// parts of a token.
//
//	Auth -> machine: nothing
//	machine -> Auth: the token, as it stands in the file
//
// The token cannot be made for an attempt, so each admits once. It is short-lived: one
// that is good for more than 30 minutes is refused.
package kubernetes

import (
	"time"

	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

const (
	// accountDir is where the kubelet mounts what belongs to the pod's service account.
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	// maxLifetime bounds the life of a token.
	maxLifetime = 30 * time.Minute
)

// Variables of the environment that say where the files are instead.
const (
	envToken = "KUBERNETES_TOKEN_PATH" //nolint:gosec // the name of a variable, not what is in it
	envCA    = "KUBERNETES_CA_PATH"
)

// Method returns the method. Issuers remembers the keys of clusters that publish them.
func Method(issuers *jwt.Issuers) method.Method {
	return method.Method{
		Name: types.JoinMethodKubernetes, Attests: true, Bearer: true,
		Prove:  prove,
		Verify: verifier{issuers}.verify,
	}
}

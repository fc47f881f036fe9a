// Package gcp is the join method of Google Cloud: the machine's metadata service gives
// it an identity token, signed by Google, for an audience that the machine chooses. It
// asks for one that holds the transcript of the attempt, so the token is good for this
// attempt and these keys alone, and nothing needs to be remembered against replays.
//
//	Auth     -> machine: (empty)
//	machine  -> metadata: identity token for https://CLUSTER/join/T
//	machine  -> Auth: the token
//	Auth     -> accounts.google.com: the keys of Google, if the cache has none
package gcp

import (
	"encoding/base64"

	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// Method returns the method; issuers remembers the keys of Google.
func Method(issuers *jwt.Issuers) method.Method {
	return method.Method{Name: types.JoinMethodGCP, Attests: true, Prove: prove, Verify: verifier{issuers}.verify}
}

// audience is what the token is asked for: the cluster and the attempt.
func audience(cluster string, t [32]byte) string {
	return "https://" + cluster + "/join/" + base64.RawURLEncoding.EncodeToString(t[:])
}

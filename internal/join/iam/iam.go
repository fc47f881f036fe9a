// Package iam is the join method of machines with IAM credentials of AWS. Both halves
// know one request, sts:GetCallerIdentity with the transcript of the attempt in a
// signed header:
//
//	machine  signs the request, and does not send it
//	machine  -> Auth   {region, access key id, time, session token, signature}
//	Auth     writes the same request itself, puts the signature in and sends it to STS
//	STS      -> Auth   account, ARN and user id of whoever made the signature
//
// So nothing that the machine wrote is passed on but the parts of a signature, each
// checked for its form; the host is one of a table, the body and the headers are
// constants; and a signature for another attempt, other keys or another cluster is of
// another request. Auth needs no credentials of its own.
package iam

import (
	"encoding/base64"
	"net/http"
	"time"

	"teleport/internal/join/aws"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// Method returns the method. A machine proves itself anew at every renewal: its
// credentials are always at hand.
func Method() method.Method {
	return method.Method{Name: types.JoinMethodIAM, Attests: true, Prove: prove, Verify: verify}
}

const (
	// body is the only thing that STS is asked.
	body = "Action=GetCallerIdentity&Version=2011-06-15"
	// challengeHeader carries the transcript. STS knows no such header, and checks that
	// it is signed like every other.
	challengeHeader = "x-teleport-challenge"
)

// answer is what the machine sends. The session token in it is of no use without the
// secret key, but it is not to be logged either.
type answer struct {
	Region       string `json:"region"`
	FIPS         bool   `json:"fips,omitempty"`
	AccessKeyID  string `json:"access_key_id"`
	Date         string `json:"date"`
	SessionToken string `json:"session_token,omitempty"`
	Signature    string `json:"signature"`
}

// request returns the request that both halves know, and the scope of its signature.
func request(host, region string, t [32]byte, at time.Time) (aws.Request, aws.Scope) {
	return aws.Request{
		Method: http.MethodPost, Host: host, Path: "/", Body: []byte(body),
		Header: map[string]string{
			"accept":        "application/json",
			"content-type":  aws.FormType,
			challengeHeader: base64.RawURLEncoding.EncodeToString(t[:]),
		},
	}, aws.Scope{Service: "sts", Region: region, Time: at}
}

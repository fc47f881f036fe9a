// Package method is the contract of the join methods: what each of them is made
// of, what both halves are given, and how the allow rules of a token are compared
// with what was proven. A method has its two halves in one folder (join/iam,
// join/ec2, ...), and the form of its rules in package types; package join
// runs them. Nothing here or in a method knows the Auth Service, the store, gRPC
// or a cloud's SDK.
package method

import (
	"context"
	"log/slog"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/egress"
)

// Limits of what the two halves may say to each other.
const (
	MaxQuestion = 16 << 10
	MaxAnswer   = 64 << 10
	// MaxRounds is how many questions Auth asks at the most.
	MaxRounds = 4
)

// Exchange carries one question of Auth to the machine and brings its answer. The
// first question is empty: Parameters and the transcript say all there is to say.
type Exchange func(ctx context.Context, question []byte) (answer []byte, err error)

// Method is one way to prove what a machine is.
type Method struct {
	// Name is spec.join_method of the tokens.
	Name string
	// Attests is true if the machine proves itself anew at every renewal; otherwise
	// its identity renews itself.
	Attests bool
	// Bearer is true if the machine's answer holds something that is of use to whoever
	// sees it, such as a token that is not made for the attempt: it is shown only to a
	// server that was verified.
	Bearer bool
	// Parameters returns what the machine must know before it can make its proof,
	// such as the audience to ask for. It is public, and part of the transcript. Nil
	// means nothing.
	Parameters func(cluster string, spec *typesv1.TokenSpec) []byte
	// Prove returns the machine's half. It is called once per attempt, and the
	// Exchange once per question, in order.
	Prove func(Machine) Exchange
	// Verify is Auth's half: it asks, checks the answers and returns what they prove.
	// The claims that come with an error are those that were verified before it
	// failed: only the audit log sees them. It does not decide whether the machine is
	// wanted: that is for the rules.
	Verify func(ctx context.Context, a Attempt, ask Exchange) (Claims, error)
	// Accepted is called on the machine when it was admitted, before its identity is
	// saved, with Claims.State. Nil means that the method keeps nothing.
	Accepted func(m Machine, state []byte) error
}

// Machine is what the machine's half may use.
type Machine struct {
	// T is the transcript: whatever the method signs or asks a cloud to sign has it
	// inside, so that the proof is for this attempt, these keys and this cluster only.
	T       [32]byte
	Cluster string
	// Token is teleport.join_params.token_name (for method token: the secret).
	Token      string
	Parameters []byte
	// Settings are the other keys of teleport.join_params, such as "azure.client_id".
	Settings map[string]string
	// Dir is the data directory.
	Dir string
	// Rehearsal: nothing is issued, and nothing may be saved.
	Rehearsal bool
	// Getenv reads the environment.
	Getenv func(string) string
	// Metadata reaches the metadata service of the machine's cloud and nothing else;
	// Egress the public services that some methods ask for their proof.
	Metadata, Egress *egress.Client
	Now              func() time.Time
	Log              *slog.Logger
}

// Attempt is what Auth's half may use.
type Attempt struct {
	T       [32]byte
	Cluster string
	// Token has the rules, and what an earlier join left in its status. It is not to
	// be changed: see Claims.Update.
	Token *typesv1.Token
	Now   time.Time
	// Egress is the only way out.
	Egress *egress.Client
	// Getenv reads the environment of the Auth Service.
	Getenv func(string) string
	// Allowed applies the allow rules to claims, for use before a call that costs
	// somebody something. The rules are applied to the final claims in any case.
	Allowed func(Claims) error
	// Current returns the host id of the live identity that the machine keeps, "" if it
	// has none or did not prove it. It is known once the first answer is there. Nil: none.
	Current func() string
	Log     *slog.Logger
}

// Claims are what a proof proves.
type Claims struct {
	// Attributes by name, as the rules and the audit log know them. An attribute that
	// the platform did not state is absent.
	Attributes map[string][]string
	// Machine tells the machines of the method apart, e.g. "ec2/123456789012/i-0abc":
	// with it a second join of one machine is noticed. Empty if the proof does not say.
	Machine string
	// HostID is the host id that the machine gets; empty leaves it to Auth.
	HostID string
	// Once are the parts of the proof that admit one machine only.
	Once []Proof
	// Update changes the status of the token when the identity is issued, in the same
	// transaction. Nil changes nothing.
	Update func(t *typesv1.Token, hostID string)
	// State is handed to the machine's Accepted.
	State []byte
}

// AttributeBoundHost is the attribute by which a method that binds a token to one
// machine names the host, together with CodeStateForked.
const AttributeBoundHost = "bound_host_id"

// Proof is something that must not be used twice.
type Proof struct {
	// ID makes it unique among all proofs of the method.
	ID string
	// Until is when the proof is worthless anyway; zero remembers it for ever.
	Until time.Time
}

// Get returns the only value of an attribute, or "".
func (c Claims) Get(name string) string {
	if v := c.Attributes[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

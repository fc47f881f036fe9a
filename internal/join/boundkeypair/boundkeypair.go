// Package boundkeypair is the join method that knows a machine by a key of its own:
// the machine makes an Ed25519 key, Auth binds it to one token, and every join signs
// the transcript with it. The exchange:
//
//	machine                                             Auth
//	                                                 <- (empty question)
//	public keys, each with a signature over T,
//	the join state, proof of a registration secret   ->
//	                                                 <- rotate (only if a new key is wanted)
//	new public key, signed by the old and by itself  ->
//
// With every admission Auth hands out a new join state, a random value that must come
// back at the next join: of two machines with one key, one shows a state that was
// handed out before the other's, and is found out. The package keeps the key and the
// state of a machine in its data directory; what Auth knows is in the token's status.
package boundkeypair

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Settings of teleport.join_params that the method reads.
const (
	// SettingSecret is the registration secret for the first join.
	SettingSecret = "bound_keypair.registration_secret" //nolint:gosec // the name of a setting
	// SettingSecretPath is a file with it.
	SettingSecretPath = "bound_keypair.registration_secret_path" //nolint:gosec // the name of a setting
	// SettingKeyPath is where the key is, if not in the data directory.
	SettingKeyPath = "bound_keypair.key_path"
)

// Method returns the method.
func Method() method.Method {
	return method.Method{Name: types.JoinMethodBoundKeypair, Prove: prove, Verify: verify, Accepted: accepted}
}

// Limits of the messages.
const (
	maxMessage = 4 << 10
	// maxKeys: the key, and the one that a rotation began and did not end.
	maxKeys   = 2
	stateSize = 32
)

// answer is the machine's first answer.
type answer struct {
	Keys []signedKey `json:"keys"`
	// State is what the last admission handed out; empty before the first.
	State []byte `json:"state,omitempty"`
	// Registration is the signature by the key that the registration secret derives.
	Registration []byte `json:"registration,omitempty"`
}

// signedKey is a public key and what its private half signed.
type signedKey struct {
	Public    []byte `json:"public"`
	Signature []byte `json:"signature"`
}

// rotation is Auth's second question: the key with this fingerprint is to be replaced.
type rotation struct {
	Rotate string `json:"rotate"`
}

// rotated is the machine's second answer.
type rotated struct {
	Public []byte `json:"public"`
	// OldSignature is by the key that goes, Signature by the one that comes.
	OldSignature []byte `json:"old_signature"`
	Signature    []byte `json:"signature"`
}

// admission is Claims.State.
type admission struct {
	State []byte `json:"state"`
	// Key is the fingerprint of the key that is bound from now on.
	Key string `json:"key"`
}

// Purposes of signatures: one made for one of them is worth nothing for another.
const (
	purposeJoin     = "teleport bound_keypair join"
	purposeRegister = "teleport bound_keypair register"
	purposeRotate   = "teleport bound_keypair rotate"
)

// message returns what is signed: the purpose, the transcript and a hash of each part.
func message(purpose string, t [32]byte, parts ...[]byte) []byte {
	out := append([]byte(purpose), 0)
	out = append(out, t[:]...)
	for _, p := range parts {
		sum := sha256.Sum256(p)
		out = append(out, sum[:]...)
	}
	return out
}

// verifies reports whether public signed the message. A public key of another size
// signs nothing.
func verifies(public, msg, signature []byte) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, msg, signature)
}

// decode reads one JSON value strictly: no field twice under another spelling, none
// unknown, nothing behind it.
func decode(data []byte, into any) error {
	if len(data) > maxMessage {
		return errors.New("too long")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return errors.New("not of the expected form")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("followed by something else")
	}
	return nil
}

// line returns a public key as authorized_keys has it, without a comment.
func line(public ed25519.PublicKey) (text, fingerprint string, err error) {
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", "", fault.Invalid("public key: %w", err)
	}
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))), ssh.FingerprintSHA256(key), nil
}

// Prepare makes a token of this method fit to be stored, and is called whenever one is
// written: a registration secret is replaced by what verifies it, and one is made if
// the token has neither a secret nor a key. It returns the secret that it made, to be
// shown once, or "". A token of another method is left as it is.
func Prepare(t *typesv1.Token) (secret string, err error) {
	if t.GetSpec().GetJoinMethod() != types.JoinMethodBoundKeypair {
		return "", nil
	}
	if t.Status == nil {
		t.Status = &typesv1.TokenStatus{}
	}
	if t.Status.BoundKeypair == nil {
		t.Status.BoundKeypair = &typesv1.BoundKeypairStatus{}
	}
	status := t.Status.BoundKeypair
	status.RegistrationSecret = ""
	if t.Spec.BoundKeypair == nil {
		t.Spec.BoundKeypair = &typesv1.BoundKeypairJoin{}
	}
	if t.Spec.BoundKeypair.Onboarding == nil {
		t.Spec.BoundKeypair.Onboarding = &typesv1.BoundKeypairOnboarding{}
	}
	onboarding := t.Spec.BoundKeypair.Onboarding
	given := onboarding.RegistrationSecret
	onboarding.RegistrationSecret = ""
	switch {
	case status.BoundPublicKey != "" && given != "":
		return "", fault.Invalid("spec.bound_keypair.onboarding.registration_secret: the token is bound to a key already, so nothing can register with it: leave it out, or delete the token and make it anew")
	case status.BoundPublicKey != "" || onboarding.InitialPublicKey != "":
		status.RegistrationVerifier = nil
		return "", nil
	case given != "":
		status.RegistrationVerifier = verifierOf(given)
		return "", nil
	case len(status.RegistrationVerifier) > 0:
		return "", nil
	}
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	secret = hex.EncodeToString(b[:])
	status.RegistrationVerifier = verifierOf(secret)
	return secret, nil
}

// verifierOf returns the public half of the key that a registration secret derives.
func verifierOf(secret string) []byte {
	private := keys.DeriveToken(secret).Private
	return bytes.Clone(private[ed25519.SeedSize:])
}

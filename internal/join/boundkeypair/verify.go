package boundkeypair

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// verification is one run of Auth's half.
type verification struct {
	method.Attempt
	spec   *typesv1.BoundKeypairJoin
	status *typesv1.BoundKeypairStatus
	// key is the machine's, proven.
	key         ed25519.PublicKey
	fingerprint string
	// shown is the hash of the state that the machine showed; empty for none.
	shown []byte
	// registers is true at the first join of the token.
	registers bool
	rotates   bool
	claims    method.Claims
}

func verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	v := &verification{Attempt: a, spec: a.Token.GetSpec().GetBoundKeypair(), status: a.Token.GetStatus().GetBoundKeypair()}
	raw, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	if err := v.checkKey(raw); err != nil {
		return method.Claims{}, err
	}
	v.describe()
	if err := a.Allowed(v.claims); err != nil {
		return v.claims, err
	}
	if err := v.checkState(); err != nil {
		return v.claims, err
	}
	if err := v.checkLimit(); err != nil {
		return v.claims, err
	}
	if v.wantsRotation() {
		if err := v.rotate(ctx, ask); err != nil {
			return v.claims, err
		}
	}
	return v.admit()
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, "the answer of method bound_keypair "+format+": install the same version on both sides", args...).WithCode(method.CodeProofMalformed)
}

// checkKey verifies the signatures and finds the key that the token knows.
func (v *verification) checkKey(raw []byte) error {
	var ans answer
	if err := decode(raw, &ans); err != nil {
		return malformed("is %w", err)
	}
	if len(ans.Keys) == 0 || len(ans.Keys) > maxKeys || len(ans.State) != 0 && len(ans.State) != stateSize || len(ans.Registration) > ed25519.SignatureSize {
		return malformed("has parts that are missing or too long")
	}
	for _, k := range ans.Keys {
		if !verifies(k.Public, message(purposeJoin, v.T, k.Public, ans.State), k.Signature) {
			return fault.New(fault.ErrDenied, "the signature by the machine's key does not fit what was asked: something between this machine and the Auth Service changed the request").WithCode(method.CodeProofSignature)
		}
	}
	if len(ans.State) > 0 {
		sum := sha256.Sum256(ans.State)
		v.shown = sum[:]
	}
	var err error
	if v.registers = v.status.GetBoundPublicKey() == ""; v.registers {
		err = v.register(ans)
	} else {
		err = v.pick(ans.Keys, v.status.GetBoundPublicKey(), "the token is bound to another key than this machine's (%s): the machine that joined first keeps it. Make a token of its own for this machine")
	}
	if err != nil {
		return err
	}
	_, v.fingerprint, err = line(v.key)
	return err
}

// pick finds the key of an authorized_keys line among those that the machine proved.
func (v *verification) pick(proven []signedKey, want, refusal string) error {
	known, _, _, _, err := ssh.ParseAuthorizedKey([]byte(want)) //nolint:dogsled // the key is all that counts
	if err != nil {
		return fault.New(fault.ErrInvalid, "the public key that the token has is damaged: make the token anew").WithCode(method.CodeProofMachine)
	}
	prints := make([]string, 0, len(proven))
	for _, k := range proven {
		_, fingerprint, err := line(k.Public)
		if err != nil {
			return err
		}
		if fingerprint == ssh.FingerprintSHA256(known) {
			v.key = k.Public
			return nil
		}
		prints = append(prints, fingerprint)
	}
	return fault.New(fault.ErrDenied, refusal, strings.Join(prints, " and ")).WithCode(method.CodeProofMachine)
}

// register admits the first machine: with the key that the token names, or with the
// registration secret.
func (v *verification) register(ans answer) error {
	onboarding := v.spec.GetOnboarding()
	if initial := onboarding.GetInitialPublicKey(); initial != "" {
		if err := v.pick(ans.Keys, initial, "the token waits for another key than this machine's (%s): register this one in spec.bound_keypair.onboarding.initial_public_key"); err != nil {
			return err
		}
	} else {
		v.key = ans.Keys[0].Public
		verifier := v.status.GetRegistrationVerifier()
		switch {
		case len(ans.Registration) == 0:
			return fault.New(fault.ErrDenied, "the token has no machine yet, and this one gave no registration secret: set teleport.join_params.%s to the one that making the token showed", SettingSecret).WithCode(method.CodeCredentials)
		case !verifies(verifier, message(purposeRegister, v.T, v.key), ans.Registration):
			return fault.New(fault.ErrDenied, "the registration secret is not the token's: correct teleport.join_params.%s, or make the token anew", SettingSecret).WithCode(method.CodeProofSignature)
		}
	}
	if until := onboarding.GetMustRegisterBefore(); until != nil && !v.Now.Before(until.AsTime()) {
		return fault.New(fault.ErrDenied, "no machine may register with the token any more, since %s: change spec.bound_keypair.onboarding.must_register_before, or make the token anew",
			until.AsTime().UTC().Format(time.RFC3339)).WithCode(method.CodeRegistrationClosed)
	}
	return nil
}

// describe fills in what is proven by now.
func (v *verification) describe() {
	v.claims = method.Claims{
		Attributes: map[string][]string{
			"public_key":     {v.fingerprint},
			"recovery_mode":  {types.BoundKeypairMode(v.spec)},
			"recovery_count": {strconv.FormatUint(uint64(v.status.GetRecoveryCount()), 10)},
		},
		// One token, one machine: its key may change.
		Machine: types.JoinMethodBoundKeypair + "/" + v.Token.GetMetadata().GetName(),
	}
	if host := v.status.GetBoundHostId(); host != "" {
		v.claims.Attributes[method.AttributeBoundHost] = []string{host}
	}
}

// checkState finds out copies. The state before the last is good too: the machine may
// have stopped between being admitted and saving the new one.
func (v *verification) checkState() error {
	if types.BoundKeypairMode(v.spec) == types.BoundKeypairInsecure || len(v.status.GetStateHash()) == 0 {
		return nil
	}
	last := subtle.ConstantTimeCompare(v.shown, v.status.GetStateHash())
	before := subtle.ConstantTimeCompare(v.shown, v.status.GetPreviousStateHash())
	if last|before == 1 {
		return nil
	}
	return fault.New(fault.ErrDenied, "the key of this machine is in use elsewhere, or its data directory is an old copy: the join state that it shows is not one of the last two. Find the other machine; then delete the token, make it anew and register the right one").WithCode(method.CodeStateForked)
}

// counts reports whether this join uses up one of the recovery limit: one that keeps
// an identity that is live does not.
func (v *verification) counts() bool {
	host := v.status.GetBoundHostId()
	return v.registers || host == "" || v.Current == nil || v.Current() != host
}

func (v *verification) checkLimit() error {
	if types.BoundKeypairMode(v.spec) != types.BoundKeypairStandard || !v.counts() {
		return nil
	}
	limit, used := types.BoundKeypairLimit(v.spec), v.status.GetRecoveryCount()
	if used < limit {
		return nil
	}
	return fault.New(fault.ErrDenied, "the machine of the token joined %d times without an identity, and spec.bound_keypair.recovery.limit is %d: if it is the right machine, raise the limit with `tctl edit token/%s`",
		used, limit, v.Token.GetMetadata().GetName()).WithCode(method.CodeRecoveryLimit)
}

// wantsRotation: the time to change keys has come and the key was not changed since. A
// key that the machine made for this very registration is new.
func (v *verification) wantsRotation() bool {
	after := v.spec.GetRotateAfter()
	if after == nil || v.Now.Before(after.AsTime()) || v.registers && v.spec.GetOnboarding().GetInitialPublicKey() == "" {
		return false
	}
	last := v.status.GetLastRotatedAt()
	return last == nil || last.AsTime().Before(after.AsTime())
}

// rotate asks for a new key, signed by both.
func (v *verification) rotate(ctx context.Context, ask method.Exchange) error {
	question, err := json.Marshal(rotation{Rotate: v.fingerprint})
	if err != nil {
		return err
	}
	raw, err := ask(ctx, question)
	if err != nil {
		return err
	}
	var r rotated
	if err := decode(raw, &r); err != nil {
		return malformed("with the new key is %w", err)
	}
	msg := message(purposeRotate, v.T, v.key, r.Public)
	if !verifies(r.Public, msg, r.Signature) || !verifies(v.key, msg, r.OldSignature) {
		return fault.New(fault.ErrDenied, "the new key is not signed by itself and by the old one: something between this machine and the Auth Service changed the answer").WithCode(method.CodeProofSignature)
	}
	if bytes.Equal(r.Public, v.key) {
		return malformed("offers the old key as the new one")
	}
	v.key, v.rotates = r.Public, true
	if _, v.fingerprint, err = line(v.key); err != nil {
		return err
	}
	v.claims.Attributes["public_key"] = []string{v.fingerprint}
	v.claims.Attributes["rotated"] = []string{"true"}
	return nil
}

// admit makes the next state, and says what the token is to remember.
func (v *verification) admit() (method.Claims, error) {
	next := admission{State: make([]byte, stateSize), Key: v.fingerprint}
	if _, err := rand.Read(next.State); err != nil {
		return v.claims, err
	}
	var err error
	if v.claims.State, err = json.Marshal(next); err != nil {
		return v.claims, err
	}
	text, _, err := line(v.key)
	if err != nil {
		return v.claims, err
	}
	sum := sha256.Sum256(next.State)
	counts, rotates, shown, now := v.counts(), v.rotates, v.shown, v.Now
	v.claims.Update = func(t *typesv1.Token, hostID string) {
		if t.Status == nil {
			t.Status = &typesv1.TokenStatus{}
		}
		if t.Status.BoundKeypair == nil {
			t.Status.BoundKeypair = &typesv1.BoundKeypairStatus{}
		}
		s := t.Status.BoundKeypair
		s.BoundPublicKey, s.BoundHostId = text, hostID
		s.RegistrationVerifier = nil
		s.PreviousStateHash, s.StateHash = shown, sum[:]
		if counts {
			s.RecoveryCount++
			s.LastRecoveredAt = timestamppb.New(now)
		}
		if rotates {
			s.LastRotatedAt = timestamppb.New(now)
		}
	}
	return v.claims, nil
}

package types

import (
	"bytes"

	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Modes of spec.bound_keypair.recovery.
const (
	// BoundKeypairStandard: joins without an identity are counted and limited.
	BoundKeypairStandard = "standard"
	// BoundKeypairRelaxed: they are not limited.
	BoundKeypairRelaxed = "relaxed"
	// BoundKeypairInsecure: copies of the machine are not noticed either.
	BoundKeypairInsecure = "insecure"
)

// Limits of a registration secret, in characters.
const (
	minRegistrationSecret = 16
	maxRegistrationSecret = 256
)

func boundKeypairMethod() JoinMethod {
	return JoinMethod{Name: JoinMethodBoundKeypair, Sections: []string{"bound_keypair"}, Check: checkBoundKeypair}
}

// BoundKeypairMode returns the recovery mode of a token, standard if it names none.
func BoundKeypairMode(s *typesv1.BoundKeypairJoin) string {
	if mode := s.GetRecovery().GetMode(); mode != "" {
		return mode
	}
	return BoundKeypairStandard
}

// BoundKeypairLimit returns how often the machine of a token may join without an
// identity, the first time included: 1 if the token does not say.
func BoundKeypairLimit(s *typesv1.BoundKeypairJoin) uint32 {
	return max(s.GetRecovery().GetLimit(), 1)
}

func checkBoundKeypair(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
	const at = "spec.bound_keypair."
	b := s.GetBoundKeypair()
	onboarding := b.GetOnboarding()
	if key := onboarding.GetInitialPublicKey(); key != "" {
		if err := checkBoundKey(key); err != nil {
			add(at+"onboarding.initial_public_key", "%s", err)
		}
		if onboarding.GetRegistrationSecret() != "" {
			add(at+"onboarding.registration_secret", "the token has initial_public_key already: a machine registers by one or the other")
		}
	}
	if secret := onboarding.GetRegistrationSecret(); secret != "" {
		if len(secret) < minRegistrationSecret || len(secret) > maxRegistrationSecret {
			add(at+"onboarding.registration_secret", "%d characters, expected %d to %d: leave it out to get a random one", len(secret), minRegistrationSecret, maxRegistrationSecret)
		}
		for _, r := range secret {
			if r <= ' ' || r > '~' {
				add(at+"onboarding.registration_secret", "has the character %q: use printable ASCII without spaces", r)
				break
			}
		}
	}
	switch mode := b.GetRecovery().GetMode(); mode {
	case "", BoundKeypairStandard, BoundKeypairRelaxed, BoundKeypairInsecure:
	default:
		add(at+"recovery.mode", "%q is not a mode: use %s, %s or %s", mode, BoundKeypairStandard, BoundKeypairRelaxed, BoundKeypairInsecure)
	}
	if t := onboarding.GetMustRegisterBefore(); t != nil && !t.IsValid() {
		add(at+"onboarding.must_register_before", "not a valid time: write it like 2030-01-02T15:04:05Z")
	}
	if t := b.GetRotateAfter(); t != nil && !t.IsValid() {
		add(at+"rotate_after", "not a valid time: write it like 2030-01-02T15:04:05Z")
	}
}

// checkBoundKey finds what is wrong with an authorized_keys line of a machine.
func checkBoundKey(text string) error {
	if len(text) > maxLabelValue {
		return fault.Invalid("%d bytes, the most is %d", len(text), maxLabelValue)
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return fault.Invalid("not one public key: expected the line that `teleport keypair create` prints")
	}
	if key.Type() != ssh.KeyAlgoED25519 || len(options) > 0 {
		return fault.Invalid("expected a line that begins with %s, as `teleport keypair create` prints it", ssh.KeyAlgoED25519)
	}
	return nil
}

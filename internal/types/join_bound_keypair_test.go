package types_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestBoundKeypairToken(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ6pnBFtDkFmGJRYmEzCtNC8SBsnWSEo6xbh4gO9jkFP"
	onboard := func(o *typesv1.BoundKeypairOnboarding) *typesv1.BoundKeypairJoin {
		return &typesv1.BoundKeypairJoin{Onboarding: o}
	}
	for name, c := range map[string]struct {
		spec *typesv1.BoundKeypairJoin
		want string
	}{
		"nothing":            {nil, ""},
		"key":                {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: key}), ""},
		"key with comment":   {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: key + " web-1\n"}), ""},
		"secret":             {onboard(&typesv1.BoundKeypairOnboarding{RegistrationSecret: "0123456789abcdef"}), ""},
		"recovery":           {&typesv1.BoundKeypairJoin{Recovery: &typesv1.BoundKeypairRecovery{Limit: 3, Mode: "standard"}}, ""},
		"relaxed":            {&typesv1.BoundKeypairJoin{Recovery: &typesv1.BoundKeypairRecovery{Mode: "relaxed"}}, ""},
		"insecure":           {&typesv1.BoundKeypairJoin{Recovery: &typesv1.BoundKeypairRecovery{Mode: "insecure"}}, ""},
		"key and secret":     {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: key, RegistrationSecret: "0123456789abcdef"}), "spec.bound_keypair.onboarding.registration_secret: "},
		"short secret":       {onboard(&typesv1.BoundKeypairOnboarding{RegistrationSecret: "short"}), "5 characters"},
		"secret with spaces": {onboard(&typesv1.BoundKeypairOnboarding{RegistrationSecret: "correct horse battery"}), "has the character ' '"},
		"not a key":          {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: "x"}), "spec.bound_keypair.onboarding.initial_public_key: not one public key"},
		"two keys":           {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: key + "\n" + key}), "not one public key"},
		"key with options":   {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: `from="10.0.0.1" ` + key}), "begins with ssh-ed25519"},
		"RSA": {onboard(&typesv1.BoundKeypairOnboarding{InitialPublicKey: "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC4JDXvGGuPVRHT+WtMUmuC2o8fWuFbZSKjcQ+H2P1i+9V3hxYDlpKnQkYIDL2tAKbSBhBj" +
			"Xz9oJzqkN1EEBm3LHKpmtgVaKn3bJQzjMBSFl7XUQ6cPB0yQFYI7qPWgHNCrsTkxXWQBPs6UmJj2hQCbGTk0Ww5BGDTNKxLNNwRI1Q=="}), "initial_public_key: "},
		"mode":        {&typesv1.BoundKeypairJoin{Recovery: &typesv1.BoundKeypairRecovery{Mode: "never"}}, `spec.bound_keypair.recovery.mode: "never" is not a mode`},
		"bad time":    {&typesv1.BoundKeypairJoin{RotateAfter: &timestamppb.Timestamp{Nanos: -1}}, "spec.bound_keypair.rotate_after: "},
		"bad time, 2": {onboard(&typesv1.BoundKeypairOnboarding{MustRegisterBefore: &timestamppb.Timestamp{Nanos: -1}}), "spec.bound_keypair.onboarding.must_register_before: "},
	} {
		t.Run(name, func(t *testing.T) {
			got := checkMachineSpec(t, types.JoinMethodBoundKeypair, func(s *typesv1.TokenSpec) { s.BoundKeypair = c.spec })
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if got := types.BoundKeypairLimit(nil); got != 1 {
		t.Errorf("the limit of a token that names none is %d, want 1", got)
	}
	if got := types.BoundKeypairMode(nil); got != types.BoundKeypairStandard {
		t.Errorf("the mode of a token that names none is %q", got)
	}
}

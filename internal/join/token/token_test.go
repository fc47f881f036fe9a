package token_test

import (
	"crypto/ed25519"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/internal/join/token"
	"teleport/internal/keys"
)

const secret = "0123456789abcdef0123456789abcdef"

func verifierOf(secret string) []byte {
	return keys.DeriveToken(secret).Private.Public().(ed25519.PublicKey)
}

func TestSuite(t *testing.T) {
	jointest.Run(t, jointest.Rig{
		Method: token.Method(),
		Good: func(*testing.T) *jointest.Setup {
			return &jointest.Setup{
				Spec:    &typesv1.TokenSpec{},
				Status:  &typesv1.TokenStatus{Verifier: verifierOf(secret)},
				Machine: method.Machine{Token: secret},
			}
		},
		Bad: []jointest.Case{
			{Name: "wrong secret", Bend: func(_ *testing.T, s *jointest.Setup) { s.Machine.Token = "ffff" + secret[4:] }, Code: token.CodeTokenProof},
			{Name: "no verifier", Bend: func(_ *testing.T, s *jointest.Setup) { s.Status = nil }, Code: token.CodeTokenProof},
			{Name: "short verifier", Bend: func(_ *testing.T, s *jointest.Setup) { s.Status.Verifier = s.Status.Verifier[:31] }, Code: token.CodeTokenProof},
			{Name: "bent on the way", Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Tamper = func(a []byte) []byte { a[0] ^= 1; return a }
			}, Code: token.CodeTokenProof},
		},
		NotApplicable: map[string]string{
			"expired":        "the record of the token expires, not the proof: package join looks at it",
			"future":         "the proof has no time",
			"wrong_account":  "the proof has no account",
			"wrong_audience": "the audience is the transcript: see the proof of another attempt",
			"cloud_down":     "no cloud is asked",
			"cloud_lies":     "no cloud is asked",
		},
	})
}

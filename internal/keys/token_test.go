package keys_test

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"strings"
	"testing"

	"teleport/internal/keys"
)

// TestDeriveToken holds the derivation against the libraries' and against fixed
// values: tokens that were issued must work for ever.
func TestDeriveToken(t *testing.T) {
	for _, tc := range []struct {
		name, secret, id string
		stretched        bool
	}{
		{"random_hex", "0123456789abcdef0123456789abcdef", "b33cbfd3b5dbd6aff32cb982", false},
		{"long_hex", strings.Repeat("ab", 40), "", false},
		{"short_hex", "0123456789abcdef0123456789abcde", "", true},
		{"word", "secret", "f6495540d588c8b5453537e7", true},
		{"unicode", strings.Repeat("é", 20), "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			root := []byte(tc.secret)
			if tc.stretched {
				root = must(pbkdf2.Key(sha512.New, tc.secret, []byte("teleport-join-token"), 210000, 32))
			}
			id := hex.EncodeToString(must(hkdf.Key(sha256.New, root, nil, "teleport-token-id", 12)))
			seed := must(hkdf.Key(sha256.New, root, nil, "teleport-token-key", 32))
			got := keys.DeriveToken(tc.secret)
			if got.ID != id {
				t.Errorf("DeriveToken(%q).ID = %s, want %s", tc.secret, got.ID, id)
			}
			if tc.id != "" && got.ID != tc.id {
				t.Errorf("DeriveToken(%q).ID = %s, want the fixed %s", tc.secret, got.ID, tc.id)
			}
			if !got.Private.Equal(ed25519.NewKeyFromSeed(seed)) {
				t.Errorf("DeriveToken(%q).Private is another key", tc.secret)
			}
			if keys.TokenID(tc.secret) != got.ID {
				t.Errorf("TokenID(%q) differs from DeriveToken's", tc.secret)
			}
			if strings.Contains(tc.secret, got.ID) {
				t.Error("the id is part of the secret")
			}
		})
	}
}

package keystore_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/keystore"
)

func TestSoftware(t *testing.T) {
	ks := keystore.Software()
	for _, alg := range []keys.Algorithm{keys.Ed25519, keys.ECDSAP256, keys.RSA2048} {
		t.Run(alg.String(), func(t *testing.T) {
			t.Parallel()
			ref, signer, err := ks.Generate(alg)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ks.Signer(ref)
			if err != nil {
				t.Fatal(err)
			}
			key, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
			if !ok || !key.Equal(again.Public()) {
				t.Error("Signer(ref) is another key")
			}
			digest, opts := sha256.Sum256([]byte("message")), crypto.SignerOpts(crypto.SHA256)
			if alg == keys.Ed25519 {
				opts = crypto.Hash(0)
			}
			if _, err := again.Sign(rand.Reader, digest[:], opts); err != nil {
				t.Errorf("Sign = %v", err)
			}
		})
	}
}

func TestSoftwareRefuses(t *testing.T) {
	ks := keystore.Software()
	for name, ref := range map[string][]byte{"empty": nil, "garbage": []byte("ref")} {
		if _, err := ks.Signer(ref); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Signer(%s) = %v, want ErrInvalid", name, err)
		}
	}
	if _, _, err := ks.Generate(0); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("Generate(0) = %v, want ErrUnsupported", err)
	}
}

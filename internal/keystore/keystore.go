// Package keystore is the socket for the private keys of authorities: software
// keys now, hardware modules and cloud key services by the same contract. A key
// is known by an opaque reference that may be stored; whether the reference holds
// the key itself is the keystore's business. It does not decide what is signed.
package keystore

import (
	"crypto"

	"teleport/internal/keys"
)

// Keystore makes private keys and signs with them.
type Keystore interface {
	// Generate makes a key pair and returns the reference to store. It may be
	// called from several goroutines at once.
	Generate(alg keys.Algorithm) (ref []byte, signer crypto.Signer, err error)
	// Signer returns the key that the reference names. The signer may be used
	// from several goroutines at once.
	Signer(ref []byte) (crypto.Signer, error)
}

// Software returns the keystore whose references are the private keys themselves,
// in PKCS#8 PEM. Who can read the store that keeps them has the keys.
func Software() Keystore { return software{} }

type software struct{}

func (software) Generate(alg keys.Algorithm) ([]byte, crypto.Signer, error) {
	signer, err := keys.Generate(alg)
	if err != nil {
		return nil, nil, err
	}
	ref, err := keys.MarshalPrivate(signer)
	if err != nil {
		return nil, nil, err
	}
	return ref, signer, nil
}

func (software) Signer(ref []byte) (crypto.Signer, error) { return keys.ParsePrivate(ref) }

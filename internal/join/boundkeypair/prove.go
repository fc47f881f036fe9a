package boundkeypair

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io/fs"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// prove returns the machine's half: the first question asks for the proof, a second
// one for a new key.
func prove(m method.Machine) method.Exchange {
	var k keyPair
	return func(ctx context.Context, question []byte) ([]byte, error) {
		var err error
		// What a rehearsal makes is nowhere but here.
		if !m.Rehearsal || len(question) == 0 {
			if k, err = loadKeys(ctx, m); err != nil {
				return nil, err
			}
		}
		var out any
		if len(question) == 0 {
			out, err = firstAnswer(ctx, m, &k)
		} else {
			out, err = rotate(m, &k, question)
		}
		if err != nil {
			return nil, err
		}
		return json.Marshal(out)
	}
}

func firstAnswer(ctx context.Context, m method.Machine, k *keyPair) (*answer, error) {
	state, err := loadState(m)
	if err != nil {
		return nil, err
	}
	a := &answer{State: state}
	// A machine that was admitted before needs no secret, and may have lost it.
	if state == nil {
		secret, tried, err := secretOf(ctx, m)
		if err != nil {
			return nil, err
		}
		if k.current == nil {
			if secret == "" {
				return nil, fault.New(fault.ErrInvalid, "this machine has no key to join with: there is no file %s, and %s. Run `teleport keypair create` and register the key on the token, or give the registration secret that making the token showed",
					k.path, tried).WithCode(method.CodeCredentials)
			}
			if k.current, err = k.make(""); err != nil {
				return nil, err
			}
		}
		if secret != "" {
			derived := keys.DeriveToken(secret).Private
			a.Registration = ed25519.Sign(derived, message(purposeRegister, m.T, public(k.current)))
		}
	}
	if k.current == nil {
		return nil, fault.New(fault.ErrInvalid, "this machine joined before and its key is gone: there is no file %s. Bring it back, or delete the token, make it anew and remove %s here", k.path, StateFile).WithCode(method.CodeCredentials)
	}
	for _, private := range []ed25519.PrivateKey{k.current, k.next} {
		if private != nil {
			a.Keys = append(a.Keys, signedKey{
				Public:    public(private),
				Signature: ed25519.Sign(private, message(purposeJoin, m.T, public(private), a.State)),
			})
		}
	}
	return a, nil
}

// rotate makes a key beside the bound one. Nothing is replaced before Auth has said
// that it bound the new one, so that a crash at any point leaves a key that is good.
func rotate(m method.Machine, k *keyPair, question []byte) (*rotated, error) {
	var q rotation
	if err := decode(question, &q); err != nil {
		return nil, fault.Invalid("the Auth Service sent a question of method bound_keypair that is %w", err)
	}
	if k.current == nil {
		return nil, fault.Invalid("the key %s disappeared during the join", k.path)
	}
	if k.next != nil {
		_, fingerprint, err := line(public(k.next))
		if err != nil {
			return nil, err
		}
		if fingerprint == q.Rotate {
			// The last rotation ended at Auth and not here.
			if err := k.promote(); err != nil {
				return nil, err
			}
		}
	}
	if k.next == nil {
		var err error
		if k.next, err = k.make(nextSuffix); err != nil {
			return nil, err
		}
	}
	msg := message(purposeRotate, m.T, public(k.current), public(k.next))
	return &rotated{Public: public(k.next), OldSignature: ed25519.Sign(k.current, msg), Signature: ed25519.Sign(k.next, msg)}, nil
}

// accepted keeps the new state, and then the new key if there is one. In this order,
// because a state goes with either key.
func accepted(m method.Machine, state []byte) error {
	var a admission
	if err := decode(state, &a); err != nil || len(a.State) != stateSize {
		return fault.Invalid("the Auth Service admitted this machine and sent a join state that is not of the expected form: install the same version on both")
	}
	if err := saveState(m, a.State); err != nil {
		return err
	}
	k := keyPair{path: keyPath(m)}
	next, err := readKey(k.path + nextSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no rotation
	}
	if err != nil {
		return err
	}
	k.next = next
	if _, fingerprint, err := line(public(next)); err != nil || fingerprint != a.Key {
		return err
	}
	return k.promote()
}

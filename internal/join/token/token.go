// Package token is the join method that proves knowledge of a secret: the machine
// signs the transcript with a key that the secret derives, and Auth knows only the
// public half of it. The secret goes nowhere.
package token

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Method returns the method.
func Method() method.Method {
	return method.Method{Name: types.JoinMethodToken, Prove: prove, Verify: verify}
}

// CodeTokenProof is the reason code of a proof that does not fit.
const CodeTokenProof = "token_proof"

func prove(m method.Machine) method.Exchange {
	return func(context.Context, []byte) ([]byte, error) {
		return keys.DeriveToken(m.Token).Private.Sign(rand.Reader, m.T[:], crypto.Hash(0))
	}
}

func verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	proof, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	verifier := a.Token.GetStatus().GetVerifier()
	if len(verifier) != ed25519.PublicKeySize || !ed25519.Verify(verifier, a.T[:], proof) {
		return method.Claims{}, fault.New(fault.ErrDenied, "the proof of the join token does not fit what was asked: something between this machine and the Auth Service changed the request, or the token is another one").WithCode(CodeTokenProof)
	}
	return method.Claims{}, nil
}

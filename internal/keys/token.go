package keys

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"

	"golang.org/x/crypto/pbkdf2"
)

// Parameters of DeriveToken. Changing one makes every issued token useless.
const (
	tokenSalt       = "teleport-join-token"
	tokenIterations = 210_000
	tokenIDInfo     = "teleport-token-id"
	tokenIDSize     = 12
	tokenKeyInfo    = "teleport-token-key"
	tokenRandomHex  = 32
)

// TokenKey is what the secret of a join token stands for: a public id, and a key
// that proves knowledge of the secret without sending it.
type TokenKey struct {
	// ID is 24 hexadecimal digits. It names the token and does not give it away.
	ID string
	// Private signs the transcript of a join; the Auth Service keeps the public half.
	Private ed25519.PrivateKey
}

// DeriveToken turns the secret of a join token into its id and key, the same on
// every machine. A secret of 32 or more hexadecimal digits in lower case is taken
// as random; anything else was chosen by a person and is stretched first, which
// takes about a tenth of a second. The empty secret derives a key that everybody
// knows: callers refuse it.
func DeriveToken(secret string) TokenKey {
	root := []byte(secret)
	if !randomHex(secret) {
		root = pbkdf2.Key(root, []byte(tokenSalt), tokenIterations, sha256.Size, sha512.New)
	}
	prk := hmacSHA256(make([]byte, sha256.Size), root)
	id := expand(prk, tokenIDInfo)
	return TokenKey{
		ID:      hex.EncodeToString(id[:tokenIDSize]),
		Private: ed25519.NewKeyFromSeed(expand(prk, tokenKeyInfo)),
	}
}

// TokenID returns the public id of the token with the secret.
func TokenID(secret string) string { return DeriveToken(secret).ID }

func randomHex(s string) bool {
	if len(s) < tokenRandomHex {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

// expand returns the first block of HKDF-Expand (RFC 5869 section 2.3), which is
// all that is needed here, and unlike the library's it cannot fail.
func expand(prk []byte, info string) []byte {
	return hmacSHA256(prk, append([]byte(info), 1))
}

func hmacSHA256(key, data []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(data)
	return mac.Sum(nil)
}

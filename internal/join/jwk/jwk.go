// Package jwk reads the public keys of token issuers (JSON Web Key Sets, RFC 7517)
// as strictly as they are relied on: the same code looks at a set when an
// administrator writes it into a token and when a machine's token is verified with
// it. It fetches nothing and verifies nothing: that is package jwt.
package jwk

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Limits of a key set.
const (
	// MaxSet is the length of a set, in bytes.
	MaxSet = 256 << 10
	// MaxKeys is how many keys a set may have.
	MaxKeys    = 128
	maxID      = 512
	minRSABits = 2048
	maxRSABits = 8192
)

// Key is one public key that signs tokens.
type Key struct {
	// ID is the kid, empty if the key has none.
	ID string
	// Algorithms are those of RFC 7518 and RFC 8037 that a signature by this key may
	// have: what its type and curve allow, or the only one that the set names for it.
	Algorithms []string
	// Public is *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
	Public crypto.PublicKey
}

// Parse reads a set that an administrator wrote. Whatever is wrong with any of its
// keys is an error: a private or secret key, a key that is not for signatures, or one
// that is too weak.
func Parse(text string) ([]Key, error) {
	return parse([]byte(text), true)
}

// ParsePublished reads a set that an issuer publishes: keys that are not for
// signatures or of types that we do not know are left out. It is an error if none is
// left.
func ParsePublished(data []byte) ([]Key, error) {
	return parse(data, false)
}

func parse(data []byte, strict bool) ([]Key, error) {
	if len(data) > MaxSet {
		return nil, fmt.Errorf("a key set of %d bytes, the most is %d", len(data), MaxSet)
	}
	o, err := Object(data)
	if err != nil {
		return nil, fmt.Errorf("expected a JSON Web Key Set, {\"keys\": [...]}: %w", err)
	}
	list, ok := o["keys"].([]any)
	if !ok {
		return nil, errors.New(`expected a JSON Web Key Set, {"keys": [...]}: it has no list "keys"`)
	}
	if len(list) > MaxKeys {
		return nil, fmt.Errorf("a set of %d keys, the most is %d", len(list), MaxKeys)
	}
	var keys []Key
	for i, v := range list {
		key, err := parseKey(v)
		switch {
		case err == nil:
			keys = append(keys, key)
		case strict:
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the set has no key that a signature can be verified with")
	}
	return keys, nil
}

func parseKey(v any) (Key, error) {
	o, ok := v.(map[string]any)
	if !ok {
		return Key{}, errors.New("not an object")
	}
	for _, secret := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if _, has := o[secret]; has {
			return Key{}, fmt.Errorf("it has %q, a part of a private or secret key, which does not belong here: give the public key", secret)
		}
	}
	kid, err := text(o, "kid")
	if err != nil || len(kid) > maxID {
		return Key{}, fmt.Errorf("kid: expected text of at most %d bytes", maxID)
	}
	use, err := text(o, "use")
	if err != nil || use != "" && use != "sig" {
		return Key{}, errors.New(`use: expected "sig", a key for signatures`)
	}
	if ops, has := o["key_ops"]; has {
		if list, ok := ops.([]any); !ok || !slices.Contains(list, any("verify")) {
			return Key{}, errors.New(`key_ops: expected a list with "verify"`)
		}
	}
	kty, err := text(o, "kty")
	if err != nil {
		return Key{}, err
	}
	key := Key{ID: kid}
	switch kty {
	case "RSA":
		key.Public, key.Algorithms, err = rsaKey(o)
	case "EC":
		key.Public, key.Algorithms, err = ecKey(o)
	case "OKP":
		key.Public, key.Algorithms, err = okpKey(o)
	default:
		err = fmt.Errorf("kty %q: expected RSA, EC or OKP", kty)
	}
	if err != nil {
		return Key{}, err
	}
	alg, err := text(o, "alg")
	if err != nil {
		return Key{}, err
	}
	if alg != "" {
		if !slices.Contains(key.Algorithms, alg) {
			return Key{}, fmt.Errorf("alg %q: expected one of %v for this key", alg, key.Algorithms)
		}
		key.Algorithms = []string{alg}
	}
	return key, nil
}

func rsaKey(o map[string]any) (crypto.PublicKey, []string, error) {
	n, err := octets(o, "n")
	if err != nil {
		return nil, nil, err
	}
	e, err := octets(o, "e")
	if err != nil {
		return nil, nil, err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, nil, fmt.Errorf("an RSA key of %d bits: expected %d to %d", bits, minRSABits, maxRSABits)
	}
	if modulus.Bit(0) == 0 {
		return nil, nil, errors.New("n: an even number is not the modulus of an RSA key")
	}
	if exponent.BitLen() > 31 || exponent.Int64() < 3 || exponent.Bit(0) == 0 {
		return nil, nil, errors.New("e: expected an odd exponent of 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, nil
}

func ecKey(o map[string]any) (crypto.PublicKey, []string, error) {
	crv, err := text(o, "crv")
	if err != nil {
		return nil, nil, err
	}
	var curve elliptic.Curve
	var alg string
	switch crv {
	case "P-256":
		curve, alg = elliptic.P256(), "ES256"
	case "P-384":
		curve, alg = elliptic.P384(), "ES384"
	case "P-521":
		curve, alg = elliptic.P521(), "ES512"
	default:
		return nil, nil, fmt.Errorf("crv %q: expected P-256, P-384 or P-521", crv)
	}
	x, err := octets(o, "x")
	if err != nil {
		return nil, nil, err
	}
	y, err := octets(o, "y")
	if err != nil {
		return nil, nil, err
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(x) != size || len(y) != size {
		return nil, nil, fmt.Errorf("x, y: expected %d bytes each for %s (RFC 7518, section 6.2.1.2)", size, crv)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, nil, fmt.Errorf("x, y: not a point of %s", crv)
	}
	return public, []string{alg}, nil
}

func okpKey(o map[string]any) (crypto.PublicKey, []string, error) {
	crv, err := text(o, "crv")
	if err != nil || crv != "Ed25519" {
		return nil, nil, errors.New("crv: expected Ed25519")
	}
	x, err := octets(o, "x")
	if err != nil {
		return nil, nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, nil, fmt.Errorf("x: expected %d bytes", ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(x), []string{"EdDSA"}, nil
}

// text returns a string of o, or "" if it has none of that name.
func text(o map[string]any, name string) (string, error) {
	v, has := o[name]
	if !has {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s: expected text", name)
	}
	return s, nil
}

func octets(o map[string]any, name string) ([]byte, error) {
	s, err := text(o, name)
	if err != nil {
		return nil, err
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) == 0 {
		return nil, fmt.Errorf("%s: expected base64url without padding", name)
	}
	return b, nil
}

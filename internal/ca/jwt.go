package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/keystore"
)

// tokenSigner signs tokens of applications; its key is nil if the cluster has no such
// authority.
type tokenSigner struct {
	key crypto.Signer
	// id is the thumbprint of the key, by which applications find it.
	id string
}

// coordinate is the length of each half of a key, and of a signature, on P-256.
const coordinate = 32

// SignToken signs the claims with the jwt authority: a JSON Web Token (RFC 7519) by ES256
// in the compact form.
func (s *Signer) SignToken(claims any) (string, error) {
	if s.tokens.key == nil {
		return "", errNoAuthority(TypeJWT)
	}
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": s.tokens.id, "typ": "JWT"})
	if err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	signed := encodeToken(header) + "." + encodeToken(body)
	digest := sha256.Sum256([]byte(signed))
	der, err := s.tokens.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 {
		return "", fault.Invalid("sign token: the key made no ECDSA signature")
	}
	raw := make([]byte, 2*coordinate)
	sig.R.FillBytes(raw[:coordinate])
	sig.S.FillBytes(raw[coordinate:])
	return signed + "." + encodeToken(raw), nil
}

func encodeToken(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// openJWT loads the first active key of the jwt authority.
func openJWT(ks keystore.Keystore, c *typesv1.CertAuthority) (tokenSigner, error) {
	pairs := c.GetSpec().GetActiveKeys().GetJwt()
	if len(pairs) == 0 {
		return tokenSigner{}, fault.Invalid("it has no active keys")
	}
	public, err := parsePublicPEM(pairs[0].GetPublicKey())
	if err != nil {
		return tokenSigner{}, err
	}
	key, err := ks.Signer(pairs[0].GetPrivateKey())
	if err != nil {
		return tokenSigner{}, fmt.Errorf("JWT key: %w", err)
	}
	if !samePublic(public, key.Public()) {
		return tokenSigner{}, fault.Invalid("its private key is not that of its public key")
	}
	id, err := thumbprint(public)
	return tokenSigner{key: key, id: id}, err
}

func parsePublicPEM(text string) (*ecdsa.PublicKey, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != pemPublic || strings.TrimSpace(string(rest)) != "" {
		return nil, fault.Invalid("public key is not one PEM block %q", pemPublic)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fault.Invalid("public key cannot be read: %w", err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve.Params().BitSize != 8*coordinate {
		return nil, fault.Invalid("public key is not one on P-256")
	}
	return ec, nil
}

// thumbprint names a key by itself (RFC 7638), as the list of keys that Proxies publish
// does.
func thumbprint(key *ecdsa.PublicKey) (string, error) {
	point, err := key.Bytes() // 4, X, Y
	if err != nil || len(point) != 1+2*coordinate {
		return "", fault.Invalid("public key has no coordinates")
	}
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + encodeToken(point[1:1+coordinate]) + `","y":"` + encodeToken(point[1+coordinate:]) + `"}`))
	return encodeToken(sum[:]), nil
}

package webapp

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// jwk is a public key as RFC 7517 and RFC 7518 section 6.2 have it.
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// ServeKeys answers with the keys that sign the tokens of applications (a JWK Set,
// RFC 7517 section 5).
func (h *Handler) ServeKeys(w http.ResponseWriter, _ *http.Request) {
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, ca := range h.cfg.Cache.Authorities() {
		if ca.GetSpec().GetType() != types.CAJWT {
			continue
		}
		for _, half := range []*typesv1.CertAuthorityKeys{ca.GetSpec().GetActiveKeys(), ca.GetSpec().GetAdditionalTrustedKeys()} {
			for _, pair := range half.GetJwt() {
				if key, err := publicJWK(pair.GetPublicKey()); err == nil {
					set.Keys = append(set.Keys, key)
				}
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	// Applications look again when they meet a key that they do not know.
	w.Header().Set("Cache-Control", "public, max-age=300")
	_ = json.NewEncoder(w).Encode(set)
}

// publicJWK makes a JWK of a key on P-256; its id is its thumbprint (RFC 7638).
func publicJWK(text string) (jwk, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return jwk{}, fmt.Errorf("no PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return jwk{}, err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve.Params().BitSize != 256 {
		return jwk{}, fmt.Errorf("no key on P-256")
	}
	point, err := key.Bytes() // 4, X, Y
	if err != nil {
		return jwk{}, err
	}
	encode := base64.RawURLEncoding.EncodeToString
	k := jwk{KeyType: "EC", Curve: "P-256", X: encode(point[1:33]), Y: encode(point[33:65]), Use: "sig", Algorithm: "ES256"}
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + k.X + `","y":"` + k.Y + `"}`))
	k.KeyID = encode(sum[:])
	return k, nil
}

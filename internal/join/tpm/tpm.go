// Package tpm is the join method of machines with a TPM 2.0: the chip proves which
// chip it is, by the endorsement key (EK) that its maker put there. The exchange:
//
//	machine                                                Auth
//	                                                    <- (empty question)
//	EK and its certificate, a new attestation key (AK),
//	a quote by the AK over the transcript               ->
//	                                                    <- a secret for that EK and that AK
//	the secret                                          ->
//
// The secret (TPM 2.0 Library part 1, "Credential Protection") comes out only of the
// chip that has both keys. The AK signs nothing but what its chip made, so its quote
// ties the transcript, and with it the keys that get certificates, to that chip: who
// passes the secret on to another machine has no quote of it for a join of its own.
package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// SettingDevice is the setting of teleport.join_params with the device of the TPM, or
// with "unix:/path" for the socket of one in software.
const SettingDevice = "tpm.device"

// DefaultDevice is the kernel's resource manager in front of the TPM.
const DefaultDevice = "/dev/tpmrm0"

// Method returns the method.
func Method() method.Method {
	return method.Method{Name: types.JoinMethodTPM, Attests: true, Prove: prove, Verify: verify}
}

// Limits of the messages, in bytes.
const (
	maxAnswer      = 32 << 10
	maxCertificate = 8 << 10
	maxPublic      = 2 << 10
	maxQuote       = 2 << 10
	secretSize     = 32
)

// attestation is the machine's first answer; keys and quote are as the TPM has them.
type attestation struct {
	// EK is a TPMT_PUBLIC, Certificate the DER of its certificate, if it has one.
	EK          []byte `json:"ek"`
	Certificate []byte `json:"certificate,omitempty"`
	// AK is a TPMT_PUBLIC.
	AK []byte `json:"ak"`
	// Quote is a TPMS_ATTEST, Signature a TPMT_SIGNATURE over it.
	Quote     []byte `json:"quote"`
	Signature []byte `json:"signature"`
}

// credential is Auth's second question.
type credential struct {
	IDObject  []byte `json:"id_object"`
	EncSecret []byte `json:"enc_secret"`
}

// activation is the machine's second answer.
type activation struct {
	Secret []byte `json:"secret"`
}

const purpose = "teleport tpm join"

// digest is what the AK quotes.
func digest(t [32]byte) []byte {
	sum := sha256.Sum256(append(append([]byte(purpose), 0), t[:]...))
	return sum[:]
}

// decode reads one JSON value, strictly.
func decode(data []byte, into any) error {
	if len(data) > maxAnswer {
		return fmt.Errorf("longer than %d bytes", maxAnswer)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return errors.New("not of the expected form")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("followed by something else")
	}
	return nil
}

// publicKey is a public area: a key of a TPM with what the TPM says about it.
type publicKey struct {
	area tpm2.TPMTPublic
	key  crypto.PublicKey
	name []byte
}

// parsePublic reads a TPMT_PUBLIC, strictly. What the library makes of hostile bytes is
// not left to chance: a panic in it is an error.
func parsePublic(data []byte) (p *publicKey, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, errors.New("cannot be read")
		}
	}()
	if len(data) == 0 || len(data) > maxPublic {
		return nil, fmt.Errorf("has %d bytes, expected 1 to %d", len(data), maxPublic)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
	if err != nil || !bytes.Equal(tpm2.Marshal(*area), data) {
		return nil, errors.New("is not a TPMT_PUBLIC")
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, errors.New("has no name")
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, errors.New("has no public key of a known kind")
	}
	if err := keys.Check(key); err != nil {
		return nil, err
	}
	if ec, ok := key.(*ecdsa.PublicKey); ok {
		if _, err := ec.ECDH(); err != nil {
			return nil, errors.New("has a point that is not on its curve")
		}
	}
	return &publicKey{area: *area, key: key, name: name.Buffer}, nil
}

// fixed reports whether the key was made in a TPM and can never leave it.
func (p *publicKey) fixed() bool {
	a := p.area.ObjectAttributes
	return a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.Restricted && !a.EncryptedDuplication
}

// hash is the name of an endorsement key in rules: SHA-256 of its SubjectPublicKeyInfo.
func hash(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fault.Invalid("endorsement key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// serialText writes a serial number as rules have it: bytes with colons.
func serialText(n *big.Int) string {
	raw := n.Bytes()
	if len(raw) == 0 {
		raw = []byte{0}
	}
	var out bytes.Buffer
	for i, b := range raw {
		if i > 0 {
			out.WriteByte(':')
		}
		out.WriteString(hex.EncodeToString([]byte{b}))
	}
	return out.String()
}

package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"math/big"
	"strconv"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

func verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	raw, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	p, err := parseProof(raw)
	if err != nil {
		return method.Claims{}, err
	}
	if err := p.checkQuote(a.T); err != nil {
		return method.Claims{}, err
	}
	claims, err := p.claims(a)
	if err != nil {
		return method.Claims{}, err
	}
	// Only now it is proven that the EK is in this machine, so a refusal by the rules,
	// which names what was proven, comes after it.
	if err := p.challenge(ctx, ask); err != nil {
		return method.Claims{}, err
	}
	return claims, a.Allowed(claims)
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

// proof is a parsed first answer.
type proof struct {
	attestation
	ek, ak *publicKey
	cert   *x509.Certificate
}

func parseProof(raw []byte) (*proof, error) {
	p := &proof{}
	if err := decode(raw, &p.attestation); err != nil {
		return nil, malformed("the answer of method tpm is %w: install the same version on both sides", err)
	}
	var err error
	if p.ek, err = parsePublic(p.EK); err != nil {
		return nil, malformed("the endorsement key %w", err)
	}
	if p.ak, err = parsePublic(p.AK); err != nil {
		return nil, malformed("the attestation key %w", err)
	}
	if !p.ek.fixed() || !p.ek.area.ObjectAttributes.Decrypt || p.ek.area.ObjectAttributes.SignEncrypt {
		return nil, fault.New(fault.ErrDenied, "the endorsement key is not one that a TPM keeps to itself").WithCode(method.CodeProofMachine)
	}
	if err := p.checkAK(); err != nil {
		return nil, err
	}
	if len(p.Certificate) == 0 {
		return p, nil
	}
	if p.cert, err = parseEKCertificate(p.Certificate); err != nil {
		return nil, malformed("the certificate of the endorsement key %w", err)
	}
	if !sameKey(p.cert, p.ek.key) {
		return nil, fault.New(fault.ErrDenied, "the certificate is not that of the endorsement key").WithCode(method.CodeProofMachine)
	}
	return p, nil
}

// checkAK refuses an attestation key that could sign anything but what its TPM made, or
// that could be anywhere but in it. That these attributes are true is what the secret
// proves: it comes out for this very public area.
func (p *proof) checkAK() error {
	attributes := p.ak.area.ObjectAttributes
	if !p.ak.fixed() || !attributes.SignEncrypt || attributes.Decrypt {
		return fault.New(fault.ErrDenied, "the attestation key is not restricted to its TPM").WithCode(method.CodeProofMachine)
	}
	params, err := p.ak.area.Parameters.ECCDetail()
	if err != nil || p.ak.area.NameAlg != tpm2.TPMAlgSHA256 || params.CurveID != tpm2.TPMECCNistP256 || params.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return malformed("the attestation key is not for ECDSA on P-256 with SHA-256")
	}
	if scheme, err := params.Scheme.Details.ECDSA(); err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return malformed("the attestation key is not for ECDSA on P-256 with SHA-256")
	}
	return nil
}

// checkQuote verifies that the AK signed a quote over this attempt.
func (p *proof) checkQuote(t [32]byte) error {
	signature, err := parseSignature(p.Signature)
	if err != nil {
		return malformed("the signature of the quote %w", err)
	}
	key, ok := p.ak.key.(*ecdsa.PublicKey)
	sum := sha256.Sum256(p.Quote)
	if !ok || len(p.Quote) > maxQuote || !ecdsa.VerifyASN1(key, sum[:], signature) {
		return fault.New(fault.ErrDenied, "the quote is not signed by the attestation key").WithCode(method.CodeProofSignature)
	}
	data, err := quotedData(p.Quote)
	if err != nil {
		return malformed("the quote %w", err)
	}
	if subtle.ConstantTimeCompare(data, digest(t)) != 1 {
		return fault.New(fault.ErrDenied, "the quote of the TPM was made for another join: something between this machine and the Auth Service changed the request, or passes on another machine's").WithCode(method.CodeProofAttempt)
	}
	return nil
}

// parseSignature reads a TPMT_SIGNATURE of ECDSA with SHA-256 (TPM 2.0 Library part 2,
// section 11.3.4) and returns it in ASN.1. The text of an error follows its noun.
func parseSignature(data []byte) ([]byte, error) {
	input := cryptobyte.String(data)
	var algorithm, hashAlgorithm uint16
	var r, s cryptobyte.String
	if !input.ReadUint16(&algorithm) || !input.ReadUint16(&hashAlgorithm) || !input.ReadUint16LengthPrefixed(&r) || !input.ReadUint16LengthPrefixed(&s) || !input.Empty() {
		return nil, errors.New("is not a TPMT_SIGNATURE")
	}
	if algorithm != uint16(tpm2.TPMAlgECDSA) || hashAlgorithm != uint16(tpm2.TPMAlgSHA256) || len(r) > 32 || len(s) > 32 {
		return nil, errors.New("is not of ECDSA with SHA-256")
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
}

// quotedData returns the data that a TPMS_ATTEST of a quote carries (TPM 2.0 Library
// part 2, section 10.12.12). A restricted key signs bytes that begin so only when the
// TPM made them.
func quotedData(quote []byte) ([]byte, error) {
	input := cryptobyte.String(quote)
	var magic uint32
	var kind uint16
	var signer, data cryptobyte.String
	if !input.ReadUint32(&magic) || !input.ReadUint16(&kind) || !input.ReadUint16LengthPrefixed(&signer) || !input.ReadUint16LengthPrefixed(&data) {
		return nil, errors.New("is not a TPMS_ATTEST")
	}
	if magic != uint32(tpm2.TPMGeneratedValue) || kind != uint16(tpm2.TPMSTAttestQuote) {
		return nil, errors.New("is not a quote that a TPM made")
	}
	return data, nil
}

// claims checks the certificate, if authorities are given, and returns what the proof
// says if the challenge is met.
func (p *proof) claims(a method.Attempt) (method.Claims, error) {
	id, err := hash(p.ek.key)
	if err != nil {
		return method.Claims{}, err
	}
	spec := a.Token.GetSpec().GetTpm()
	chained := len(spec.GetEkcertAllowedCas()) > 0
	if chained {
		if p.cert == nil {
			return method.Claims{}, fault.New(fault.ErrDenied, "the TPM has no certificate for its endorsement key, and the token wants one (spec.tpm.ekcert_allowed_cas): use a token with ek_public_hash alone").WithCode(method.CodeProofIssuer)
		}
		var authorities []*x509.Certificate
		for _, text := range spec.GetEkcertAllowedCas() {
			ca, err := types.ParseTPMCA(text)
			if err != nil {
				return method.Claims{}, fault.New(fault.ErrInvalid, "spec.tpm.ekcert_allowed_cas of the token: %w", err).WithCode(method.CodeProofIssuer)
			}
			authorities = append(authorities, ca)
		}
		if err := checkChain(p.cert, authorities, a.Now); err != nil {
			return method.Claims{}, err
		}
	}
	c := method.Claims{
		Attributes: map[string][]string{"ek_public_hash": {id}, "ek_certificate_verified": {strconv.FormatBool(chained)}},
		Machine:    "tpm/" + id,
	}
	// Nobody vouches for the number on a certificate without a chain: it may be compared
	// only where the key is compared as well.
	if p.cert != nil && (chained || hashInEveryRule(spec)) {
		c.Attributes["ek_certificate_serial"] = []string{serialText(p.cert.SerialNumber)}
	}
	return c, nil
}

func hashInEveryRule(spec *typesv1.TPMJoin) bool {
	for _, rule := range spec.GetAllow() {
		if rule.GetEkPublicHash() == "" {
			return false
		}
	}
	return true
}

// challenge sends a secret that only the TPM with this EK and this AK can read.
func (p *proof) challenge(ctx context.Context, ask method.Exchange) error {
	secret := make([]byte, secretSize)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	question, err := p.seal(secret)
	if err != nil {
		return malformed("the endorsement key %w", err)
	}
	raw, err := ask(ctx, question)
	if err != nil {
		return err
	}
	var answer activation
	if err := decode(raw, &answer); err != nil {
		return malformed("the second answer of method tpm is %w", err)
	}
	if len(answer.Secret) != secretSize || subtle.ConstantTimeCompare(answer.Secret, secret) != 1 {
		return fault.New(fault.ErrDenied, "the machine could not read what was encrypted for its TPM: the attestation key and the endorsement key are not in the same one").WithCode(method.CodeProofMachine)
	}
	return nil
}

// seal encrypts the secret for the EK, under the name of the AK.
func (p *proof) seal(secret []byte) (question []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			question, err = nil, errors.New("cannot be encrypted for")
		}
	}()
	area := p.ek.area
	if _, err := area.NameAlg.Hash(); err != nil {
		return nil, errors.New("has a name of an unknown kind")
	}
	key, err := tpm2.ImportEncapsulationKey(&area)
	if err != nil {
		return nil, errors.New("cannot be encrypted for")
	}
	idObject, encSecret, err := tpm2.CreateCredential(rand.Reader, key, p.ak.name, secret)
	if err != nil {
		return nil, errors.New("cannot be encrypted for")
	}
	return json.Marshal(credential{IDObject: bytes.Clone(idObject), EncSecret: bytes.Clone(encSecret)})
}

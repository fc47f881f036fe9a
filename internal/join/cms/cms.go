// Package cms reads the signed documents that clouds give to their machines (CMS, RFC
// 5652, also called PKCS#7), as strictly as they are relied on. A message has exactly
// one signer, and what comes out are the bytes that were verified together with the
// certificate that verified them: there is no way to read one certificate and trust
// another. It builds no chains and knows no cloud; parsing is smallstep/pkcs7's, inside
// limits of ours.
package cms

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"

	"github.com/smallstep/pkcs7"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// Limits of a message.
const (
	// MaxMessage is the length of a message, in bytes.
	MaxMessage = 24 << 10
	// MaxCertificates is how many certificates it may carry.
	MaxCertificates = 8

	maxDepth      = 16
	maxElements   = 2048
	maxAttributes = 16
	minRSABits    = 2048
	maxRSABits    = 4096
)

// Message is a message that parses. Nobody has checked its signature.
type Message struct {
	p7 *pkcs7.PKCS7
}

// Signed is a message whose signature was verified.
type Signed struct {
	// Content is the very text that was verified.
	Content []byte
	// Signer is the certificate whose key verified it. Whether that certificate is to be
	// trusted is for the caller to find out.
	Signer *x509.Certificate
	// Others are the other certificates of the message. The signature does not cover
	// them: they are good for building a chain and for nothing else.
	Others []*x509.Certificate
}

// Parse reads a message in BER or DER. The error has the code proof_malformed.
func Parse(message []byte) (*Message, error) {
	if len(message) > MaxMessage {
		return nil, malformed("the signed document has %d bytes: the most is %d", len(message), MaxMessage)
	}
	if err := bounded(message); err != nil {
		return nil, malformed("the signed document: %w", err)
	}
	p7, err := pkcs7.Parse(message)
	if err != nil {
		return nil, malformed("the signed document does not parse: %w", err)
	}
	if len(p7.Signers) != 1 {
		return nil, malformed("the signed document has %d signers: expected 1", len(p7.Signers))
	}
	if len(p7.Certificates) > MaxCertificates {
		return nil, malformed("the signed document has %d certificates: the most is %d", len(p7.Certificates), MaxCertificates)
	}
	if len(p7.Content) == 0 {
		return nil, malformed("the signed document has no content")
	}
	if err := checkSigner(p7); err != nil {
		return nil, malformed("the signed document: %w", err)
	}
	return &Message{p7: p7}, nil
}

// Untrusted returns the content before anybody verified it. It is for one purpose: to
// choose among certificates that are pinned.
func (m *Message) Untrusted() []byte { return m.p7.Content }

// Verify checks the signature with the one certificate of the message that its signer
// names. The error has the code proof_signature.
func (m *Message) Verify() (Signed, error) {
	return m.verify(m.p7.Certificates)
}

// VerifyBy checks the signature with the one of the given certificates that the signer
// names; those of the message count for nothing. The error has the code
// proof_signature.
func (m *Message) VerifyBy(pinned []*x509.Certificate) (Signed, error) {
	return m.verify(pinned)
}

func (m *Message) verify(certificates []*x509.Certificate) (Signed, error) {
	named := m.p7.Signers[0].IssuerAndSerialNumber
	var signer *x509.Certificate
	var others []*x509.Certificate
	for _, c := range certificates {
		if !bytes.Equal(c.RawIssuer, named.IssuerName.FullBytes) || c.SerialNumber.Cmp(named.SerialNumber) != 0 {
			others = append(others, c)
			continue
		}
		if signer != nil {
			return Signed{}, unsigned("two certificates have the name and number of the signer")
		}
		signer = c
	}
	if signer == nil {
		return Signed{}, unsigned("the certificate of its signer is not there")
	}
	if err := checkKey(signer); err != nil {
		return Signed{}, unsigned("its signer: %w", err)
	}
	// The library looks the certificate up again: it sees this one only.
	one := *m.p7
	one.Certificates = []*x509.Certificate{signer}
	if err := one.Verify(); err != nil {
		return Signed{}, unsigned("%s", reason(err))
	}
	return Signed{Content: one.Content, Signer: signer, Others: others}, nil
}

// reason says in one line why a signature does not verify.
func reason(err error) string {
	var content *pkcs7.MessageDigestMismatchError
	var when *pkcs7.SigningTimeNotValidError
	switch {
	case errors.As(err, &content):
		return "its content is not what was signed"
	case errors.As(err, &when):
		return "it was made at a time when the certificate of its signer was not valid"
	}
	return "it is not by the key of the certificate that it names"
}

// digests are the algorithms that may stand as the digest of a signature, by what they
// are meant to be: Azure writes the algorithm of the signature where that of the digest
// belongs.
func digests() []algorithm {
	return []algorithm{
		{pkcs7.OIDDigestAlgorithmSHA256, []asn1.ObjectIdentifier{pkcs7.OIDEncryptionAlgorithmRSASHA256, pkcs7.OIDDigestAlgorithmECDSASHA256}},
		{pkcs7.OIDDigestAlgorithmSHA384, []asn1.ObjectIdentifier{pkcs7.OIDEncryptionAlgorithmRSASHA384, pkcs7.OIDDigestAlgorithmECDSASHA384}},
		{pkcs7.OIDDigestAlgorithmSHA512, []asn1.ObjectIdentifier{pkcs7.OIDEncryptionAlgorithmRSASHA512, pkcs7.OIDDigestAlgorithmECDSASHA512}},
	}
}

type algorithm struct {
	digest asn1.ObjectIdentifier
	// signatures are those made with the digest.
	signatures []asn1.ObjectIdentifier
}

// checkSigner checks what the signer says about its signature, and writes the digest's
// proper name where Azure has another.
func checkSigner(p7 *pkcs7.PKCS7) error {
	s := &p7.Signers[0]
	found := slices.IndexFunc(digests(), func(a algorithm) bool {
		return s.DigestAlgorithm.Algorithm.Equal(a.digest) || slices.ContainsFunc(a.signatures, s.DigestAlgorithm.Algorithm.Equal)
	})
	if found < 0 {
		return errors.New("digest " + s.DigestAlgorithm.Algorithm.String() + ": expected SHA-256, SHA-384 or SHA-512")
	}
	digest := digests()[found]
	s.DigestAlgorithm.Algorithm = digest.digest
	if sig := s.DigestEncryptionAlgorithm.Algorithm; !sig.Equal(pkcs7.OIDEncryptionAlgorithmRSA) && !slices.ContainsFunc(digest.signatures, sig.Equal) {
		return errors.New("signature algorithm " + sig.String() + " does not go with its digest")
	}
	if len(s.EncryptedDigest) == 0 || len(s.EncryptedDigest) > maxRSABits/8 {
		return errors.New("the signature has a length that no signature has")
	}
	if s.AuthenticatedAttributes == nil {
		// Without attributes the content itself is signed. What is the form of signed
		// attributes may be those of another message, and no content (RFC 5652, section 5.4).
		if p7.Content[0] == asn1.TagSet|0x20 {
			return errors.New("the content is a set of attributes")
		}
		return nil
	}
	if len(s.AuthenticatedAttributes) > maxAttributes {
		return errors.New("too many attributes")
	}
	seen := map[string][]byte{}
	for _, a := range s.AuthenticatedAttributes {
		if _, twice := seen[a.Type.String()]; twice {
			return errors.New("attribute " + a.Type.String() + " stands twice")
		}
		var value asn1.RawValue
		if rest, err := asn1.Unmarshal(a.Value.Bytes, &value); err != nil || len(rest) > 0 {
			return errors.New("attribute " + a.Type.String() + ": expected one value")
		}
		seen[a.Type.String()] = a.Value.Bytes
	}
	var kind asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(seen[pkcs7.OIDAttributeContentType.String()], &kind); err != nil || !kind.Equal(pkcs7.OIDData) {
		return errors.New("the signature is not over data")
	}
	if seen[pkcs7.OIDAttributeMessageDigest.String()] == nil {
		return errors.New("the signature is not over the content: it has no message digest")
	}
	return nil
}

// checkKey refuses keys that are weak, or so large that checking a signature is an
// attack.
func checkKey(c *x509.Certificate) error {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fault.Invalid("an RSA key of %d bits: expected %d to %d", bits, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey: // x509 parses the NIST curves only
		if bits := key.Curve.Params().BitSize; bits < 256 {
			return fault.Invalid("a curve of %d bits: expected 256 or more", bits)
		}
	default:
		return fault.Invalid("a key of another kind than RSA and ECDSA")
	}
	return nil
}

// Certificate parses a certificate that came next to a message, inside the same limits.
func Certificate(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxMessage {
		return nil, malformed("a certificate of %d bytes: the most is %d", len(der), MaxMessage)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, malformed("a certificate does not parse: %w", err)
	}
	if err := checkKey(c); err != nil {
		return nil, malformed("a certificate has %w", err)
	}
	return c, nil
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

func unsigned(format string, args ...any) error {
	return fault.New(fault.ErrDenied, "the signature of the document is not good: "+format, args...).WithCode(method.CodeProofSignature)
}

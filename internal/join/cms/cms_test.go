package cms_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"teleport/internal/fault"
	"teleport/internal/join/cms"
	"teleport/internal/join/method"
	"teleport/test/openssl"
)

var content = []byte(`{"instanceId":"i-0123456789abcdef0"}`)

func signer(t *testing.T, rsa bool) *openssl.Certificate {
	t.Helper()
	s := openssl.Spec{Subject: "/CN=signer"}
	if rsa {
		s.NewKey = openssl.RSA2048()
	}
	return openssl.SelfSigned(t, s)
}

func TestVerify(t *testing.T) {
	rsa, ec := signer(t, true), signer(t, false)
	for _, c := range []struct {
		name string
		by   *openssl.Certificate
		args []string
	}{
		{"rsa sha256", rsa, nil},
		{"rsa sha384", rsa, []string{"-md", "sha384"}},
		{"rsa sha512", rsa, []string{"-md", "sha512"}},
		{"rsa without attributes", rsa, []string{"-noattr"}},
		{"ecdsa sha256", ec, nil},
		{"ecdsa sha512", ec, []string{"-md", "sha512"}},
		{"ber in pieces", rsa, []string{"-stream", "-indef"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := cms.Parse(c.by.SignCMS(t, content, c.args...))
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Verify()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Content, content) || !got.Signer.Equal(c.by.Certificate) || len(got.Others) != 0 {
				t.Errorf("Verify() = %q by %s and %d others", got.Content, got.Signer.Subject, len(got.Others))
			}
			if _, err := m.VerifyBy([]*x509.Certificate{c.by.Certificate}); err != nil {
				t.Errorf("VerifyBy the signer: %v", err)
			}
		})
	}
}

// TestBagTrick: a message that carries the certificate of somebody to be trusted, in
// front, and is signed by the key of another. The library alone says that it is good,
// and its first certificate is the trusted one; here the certificate that comes out is
// the one that signed, whatever else there is. SPIRE (#6998) and others fell for it.
func TestBagTrick(t *testing.T) {
	root := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=root", Extensions: openssl.Authority()})
	trusted := root.Issue(t, openssl.Spec{Subject: "/CN=metadata.azure.com", Extensions: []string{"subjectAltName=DNS:metadata.azure.com"}})
	attacker := root.Issue(t, openssl.Spec{Subject: "/CN=attacker.example.com", Extensions: []string{"subjectAltName=DNS:attacker.example.com"}})
	more := filepath.Join(t.TempDir(), "more.pem")
	if err := os.WriteFile(more, append(bytes.Clone(trusted.PEM), root.PEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	signed := attacker.SignCMS(t, content, "-certfile", more)
	for _, order := range [][]*openssl.Certificate{{trusted, attacker, root}, {attacker, trusted, root}, {root, trusted, attacker}} {
		message := reorder(t, signed, order...)

		// The premise: without care, this is accepted.
		p7, err := pkcs7.Parse(message)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(root.Certificate)
		if err := p7.VerifyWithChain(pool); err != nil {
			t.Fatalf("the trick does not even work on the library: %v", err)
		}
		if !p7.Certificates[0].Equal(order[0].Certificate) {
			t.Fatal("the certificates are not in the order that the test wants")
		}

		m, err := cms.Parse(message)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Verify()
		if err != nil {
			t.Fatal(err)
		}
		if !got.Signer.Equal(attacker.Certificate) {
			t.Errorf("Signer = %s, and %s signed", got.Signer.Subject, attacker.Subject)
		}
		if _, err := m.VerifyBy([]*x509.Certificate{trusted.Certificate}); fault.Code(err) != method.CodeProofSignature {
			t.Errorf("VerifyBy(trusted) = %v, want code %s", err, method.CodeProofSignature)
		}
	}
}

// TestNamesake: a certificate with the issuer and number of the pinned one, and another
// key, inside the message.
func TestNamesake(t *testing.T) {
	pinned := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=AWS", Serial: 4711})
	namesake := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=AWS", Serial: 4711})
	m, err := cms.Parse(namesake.SignCMS(t, content))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.VerifyBy([]*x509.Certificate{pinned.Certificate}); fault.Code(err) != method.CodeProofSignature {
		t.Errorf("VerifyBy(pinned) = %v, want code %s", err, method.CodeProofSignature)
	}
	m, err = cms.Parse(namesake.SignCMS(t, content, "-certfile", pinned.File))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(); fault.Code(err) != method.CodeProofSignature {
		t.Errorf("Verify() with two certificates of one name = %v, want code %s", err, method.CodeProofSignature)
	}
}

func TestParseRefuses(t *testing.T) {
	a, b := signer(t, true), signer(t, false)
	good := a.SignCMS(t, content)
	many := filepath.Join(t.TempDir(), "many.pem")
	var pems []byte
	for range cms.MaxCertificates {
		pems = append(pems, signer(t, false).PEM...)
	}
	if err := os.WriteFile(many, pems, 0o600); err != nil {
		t.Fatal(err)
	}
	named := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=named", Extensions: openssl.Authority()})
	sha1 := a.SignCMS(t, content, "-md", "sha1")
	deep := bytes.Repeat([]byte{0x30, 0x80}, 4000)
	wide := append([]byte{0x30, 0x82, 0x20, 0x00}, bytes.Repeat([]byte{0x05, 0x00}, 0x1000)...)
	for name, message := range map[string][]byte{
		"nothing":           nil,
		"too long":          a.SignCMS(t, bytes.Repeat([]byte{'a'}, cms.MaxMessage)),
		"bytes after":       append(bytes.Clone(good), 0),
		"cut":               good[:len(good)-1],
		"deep":              deep,
		"wide":              wide,
		"two signers":       a.SignCMS(t, content, "-signer", b.File, "-inkey", b.Key),
		"no content":        detached(t, a),
		"sha1":              sha1,
		"many certificates": a.SignCMS(t, content, "-certfile", many),
		"key id signer":     named.SignCMS(t, content, "-keyid"),
		"attributes only":   a.SignCMS(t, []byte{0x31, 0x02, 0x05, 0x00}, "-noattr"),
		"no signer":         certsOnly(t, a),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := cms.Parse(message); fault.Code(err) != method.CodeProofMalformed || !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("Parse = %v, want code %s", err, method.CodeProofMalformed)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	a := signer(t, true)
	good := a.SignCMS(t, content)
	weak := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=weak", NewKey: []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"}})
	curve := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=weak", NewKey: []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-224"}})
	over := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=over", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	bent := bytes.Replace(good, []byte("i-0123456789abcdef0"), []byte("i-0123456789abcdef1"), 1)
	broken := bytes.Clone(good)
	broken[len(broken)-7] ^= 1
	for name, message := range map[string][]byte{
		"other content":          bent,
		"other signature":        broken,
		"no certificate":         a.SignCMS(t, content, "-nocerts"),
		"rsa of 1024 bits":       weak.SignCMS(t, content),
		"p-224":                  curve.SignCMS(t, content),
		"signed after its end":   over.SignCMS(t, content),
		"without attributes":     bytes.Replace(a.SignCMS(t, content, "-noattr"), []byte("def0"), []byte("def1"), 1),
		"attributes taken away":  rewrite(t, good, func(d *signedData) { d.SignerInfos[0].Attributes = nil }),
		"certificate of another": reorder(t, good, signer(t, true)),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := cms.Parse(message)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Verify(); fault.Code(err) != method.CodeProofSignature || !errors.Is(err, fault.ErrDenied) {
				t.Errorf("Verify = %v, want code %s", err, method.CodeProofSignature)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
}

// TestSignatureInPlaceOfDigest: Azure names the signature's algorithm where the
// digest's belongs.
func TestSignatureInPlaceOfDigest(t *testing.T) {
	a := signer(t, true)
	m, err := cms.Parse(swapDigest(t, a.SignCMS(t, content), pkcs7.OIDEncryptionAlgorithmRSASHA256))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Verify(); err != nil || !got.Signer.Equal(a.Certificate) {
		t.Errorf("Verify = %v", err)
	}
	for _, oid := range []asn1.ObjectIdentifier{
		pkcs7.OIDEncryptionAlgorithmRSA, // the library would take it for SHA-1
		pkcs7.OIDEncryptionAlgorithmRSASHA1, pkcs7.OIDDigestAlgorithmSHA1, pkcs7.OIDEncryptionAlgorithmRSAMD5,
	} {
		if _, err := cms.Parse(swapDigest(t, a.SignCMS(t, content), oid)); fault.Code(err) != method.CodeProofMalformed {
			t.Errorf("digest %s: %v, want code %s", oid, err, method.CodeProofMalformed)
		}
	}
	// A digest that is not the one the signature names.
	if _, err := cms.Parse(swapSignature(t, a.SignCMS(t, content), pkcs7.OIDEncryptionAlgorithmRSASHA512)); fault.Code(err) != method.CodeProofMalformed {
		t.Errorf("SHA-256 with a signature by SHA-512: %v, want code %s", err, method.CodeProofMalformed)
	}
}

func TestAttributes(t *testing.T) {
	a := signer(t, true)
	for name, bend := range map[string]func([]cmsAttribute) []cmsAttribute{
		"twice":     func(l []cmsAttribute) []cmsAttribute { return append(l, l[0]) },
		"no digest": func(l []cmsAttribute) []cmsAttribute { return without(l, pkcs7.OIDAttributeMessageDigest) },
		"no type":   func(l []cmsAttribute) []cmsAttribute { return without(l, pkcs7.OIDAttributeContentType) },
		"two values": func(l []cmsAttribute) []cmsAttribute {
			l[0].Value.Bytes = append(l[0].Value.Bytes, l[0].Value.Bytes...)
			l[0].Value.FullBytes = nil
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := cms.Parse(rewrite(t, a.SignCMS(t, content), func(d *signedData) {
				d.SignerInfos[0].Attributes = bend(d.SignerInfos[0].Attributes)
			})); fault.Code(err) != method.CodeProofMalformed {
				t.Errorf("Parse = %v, want code %s", err, method.CodeProofMalformed)
			}
		})
	}
}

func TestCertificate(t *testing.T) {
	if _, err := cms.Certificate(signer(t, false).Raw); err != nil {
		t.Error(err)
	}
	weak := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=weak", NewKey: []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"}})
	ed := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=ed", NewKey: []string{"-algorithm", "ed25519"}})
	for name, der := range map[string][]byte{"weak": weak.Raw, "ed25519": ed.Raw, "noise": []byte("noise"), "long": make([]byte, cms.MaxMessage+1)} {
		if _, err := cms.Certificate(der); fault.Code(err) != method.CodeProofMalformed {
			t.Errorf("%s: %v, want code %s", name, err, method.CodeProofMalformed)
		}
	}
}

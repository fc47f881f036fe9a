package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// maker is an authority that makes EK certificates.
type maker struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newMaker(t testing.TB) maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return maker{cert, key}
}

func (m maker) issue(t testing.TB, public crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x73dfdc), Subject: pkix.Name{CommonName: "ek"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate()},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, m.cert, public, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ext(t testing.TB, id asn1.ObjectIdentifier, critical bool, value any) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: id, Critical: critical, Value: der}
}

// directoryName is a GeneralName with the maker's attributes.
func directoryName(t testing.TB) asn1.RawValue {
	t.Helper()
	inner, err := asn1.Marshal(pkix.Name{CommonName: "id:474F4F47"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: inner}
}

func TestEKCertificate(t *testing.T) {
	m := newMaker(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := func(*x509.Certificate) {}
	for name, c := range map[string]struct {
		change  func(*x509.Certificate)
		public  crypto.PublicKey
		refused string // part of the text; empty if it is taken
		chain   bool   // whether the chain is good
	}{
		"good": {change: good, chain: true},
		"critical maker's name": {chain: true, change: func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, ext(t, oidSubjectAltName(), true, []asn1.RawValue{directoryName(t)}))
		}},
		"critical other name": {change: func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, ext(t, oidSubjectAltName(), true, []asn1.RawValue{directoryName(t), {Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{5, 0}}}))
		}},
		"critical and unknown": {change: func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, ext(t, asn1.ObjectIdentifier{1, 2, 3, 4}, true, "x"))
		}},
		"no usage": {refused: "what its key is for", change: func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }},
		"empty usage": {refused: "not", change: func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = nil
			c.ExtraExtensions = append(c.ExtraExtensions, ext(t, oidExtKeyUsage(), false, []asn1.ObjectIdentifier{}))
		}},
		"other usage": {refused: "tcg-kp-EKCertificate", change: func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = nil
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}},
		"platform usage": {refused: "tcg-kp-EKCertificate", change: func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 2}}
		}},
		"any usage": {refused: "tcg-kp-EKCertificate", change: func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = nil
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}},
		"authority": {refused: "authority", change: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }},
		"small key": {refused: "RSA key size", change: good, public: small.Public()},
	} {
		t.Run(name, func(t *testing.T) {
			public := c.public
			if public == nil {
				public = key.Public()
			}
			cert, err := parseEKCertificate(m.issue(t, public, c.change))
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %v, want a refusal with %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := checkChain(cert, []*x509.Certificate{m.cert}, time.Now()); (err == nil) != c.chain {
				t.Fatalf("checkChain: %v, want good: %v", err, c.chain)
			}
		})
	}
}

func TestSerialText(t *testing.T) {
	for n, want := range map[int64]string{0: "00", 2: "02", 0x73dfdc: "73:df:dc", 0x1000: "10:00"} {
		if got := serialText(big.NewInt(n)); got != want {
			t.Errorf("serialText(%d) = %q, want %q", n, got, want)
		}
	}
}

// A certificate in an NV index is padded to the size of the index.
func TestFirstDER(t *testing.T) {
	der := newMaker(t).cert.Raw
	if got := firstDER(append(bytes.Clone(der), make([]byte, 300)...)); !bytes.Equal(got, der) {
		t.Errorf("got %d bytes, want %d", len(got), len(der))
	}
	for _, bad := range [][]byte{nil, {0}, {0x30}, der[:50], {0xff, 0xff, 0xff, 0xff}} {
		if got := firstDER(bad); got != nil {
			t.Errorf("firstDER(%x) = %x", bad, got)
		}
	}
}

func FuzzEKCertificate(f *testing.F) {
	m := newMaker(f)
	f.Add(m.issue(f, m.key.Public(), func(*x509.Certificate) {}))
	f.Add(m.issue(f, m.key.Public(), func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, ext(f, oidSubjectAltName(), true, []asn1.RawValue{directoryName(f)}))
	}))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		cert, err := parseEKCertificate(firstDER(data))
		if err != nil {
			return
		}
		_ = checkChain(cert, []*x509.Certificate{m.cert}, time.Now())
		serialText(cert.SerialNumber)
	})
}

func FuzzPublic(f *testing.F) {
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Add(tpm2.Marshal(tpm2.ECCEKTemplate))
	f.Add([]byte{0, 0x23, 0, 0x0b})
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parsePublic(data)
		if err != nil {
			return
		}
		p := &proof{ek: key, ak: key}
		_ = p.checkAK()
		_, _ = p.seal(make([]byte, secretSize))
	})
}

func FuzzQuote(f *testing.F) {
	f.Add([]byte("\xffTCG\x80\x18\x00\x02ab\x00\x01c"), []byte("\x00\x18\x00\x0b\x00\x01a\x00\x01b"))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(_ *testing.T, quote, signature []byte) {
		_, _ = quotedData(quote)
		_, _ = parseSignature(signature)
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"ek":"AQ==","ak":"AQ==","quote":"AQ==","signature":"AQ=="}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parseProof(data) })
}

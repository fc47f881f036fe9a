package types_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestTPMRules(t *testing.T) {
	hash := strings.Repeat("a1", 32)
	authority, leaf := makeCertificate(t, true), makeCertificate(t, false)
	for name, c := range map[string]struct {
		spec *typesv1.TPMJoin
		want string
	}{
		"hash":                 {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}, ""},
		"hash in upper case":   {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: strings.ToUpper(hash)}}}, ""},
		"hash and serial":      {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{Description: "rack 1", EkPublicHash: hash, EkCertificateSerial: "73:df:DC"}}}, ""},
		"serial and authority": {&typesv1.TPMJoin{EkcertAllowedCas: []string{authority}, Allow: []*typesv1.TPMRule{{EkCertificateSerial: "73"}}}, ""},
		"serial alone":         {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: hash}, {EkCertificateSerial: "73"}}}, "spec.tpm.allow[1].ek_certificate_serial: a serial number means nothing"},
		"description alone":    {&typesv1.TPMJoin{EkcertAllowedCas: []string{authority}, Allow: []*typesv1.TPMRule{{Description: "any"}}}, "spec.tpm.allow[0]: the rule would admit too much: give ek_public_hash or ek_certificate_serial"},
		"no rule":              {&typesv1.TPMJoin{EkcertAllowedCas: []string{authority}}, "spec.tpm.allow: missing"},
		"short hash":           {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: hash[:62]}}}, "spec.tpm.allow[0].ek_public_hash: "},
		"glob":                 {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: "*"}}}, "spec.tpm.allow[0].ek_public_hash: "},
		"decimal serial":       {&typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: hash, EkCertificateSerial: "1234567"}}}, "spec.tpm.allow[0].ek_certificate_serial: "},
		"not PEM":              {&typesv1.TPMJoin{EkcertAllowedCas: []string{authority, "x"}, Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}, "spec.tpm.ekcert_allowed_cas[1]: expected one certificate in PEM"},
		"two in one":           {&typesv1.TPMJoin{EkcertAllowedCas: []string{authority + authority}, Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}, "spec.tpm.ekcert_allowed_cas[0]: expected one"},
		"no authority":         {&typesv1.TPMJoin{EkcertAllowedCas: []string{leaf}, Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}, "is not that of an authority"},
		"too many authorities": {&typesv1.TPMJoin{EkcertAllowedCas: repeat(authority, 65), Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}, "65 certificates, the most is 64"},
	} {
		t.Run(name, func(t *testing.T) {
			got := checkMachineSpec(t, types.JoinMethodTPM, func(s *typesv1.TokenSpec) { s.Tpm = c.spec })
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func makeCertificate(t *testing.T, authority bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: authority, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

package types

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Limits of spec.tpm.ekcert_allowed_cas.
const (
	maxTPMCAs     = 64
	maxTPMCABytes = 8 << 10
)

func tpmMethod() JoinMethod {
	m := ruleMethod(JoinMethodTPM, "tpm", "spec.tpm.allow",
		func(s *typesv1.TokenSpec) []*typesv1.TPMRule { return s.GetTpm().GetAllow() },
		RuleField{Name: "ek_public_hash", Trust: true, Match: strings.EqualFold, Check: checkEKHash},
		RuleField{Name: "ek_certificate_serial", Trust: true, Match: strings.EqualFold, Check: checkEKSerial},
	)
	m.Check = checkTPM
	return m
}

func checkTPM(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
	cas := s.GetTpm().GetEkcertAllowedCas()
	if len(cas) > maxTPMCAs {
		add("spec.tpm.ekcert_allowed_cas", "%d certificates, the most is %d", len(cas), maxTPMCAs)
		return
	}
	for i, text := range cas {
		if _, err := ParseTPMCA(text); err != nil {
			add(fmt.Sprintf("spec.tpm.ekcert_allowed_cas[%d]", i), "%s", err)
		}
	}
	for i, rule := range s.GetTpm().GetAllow() {
		// Without either, any TPM may have any number written on a certificate of its own.
		if rule.GetEkCertificateSerial() != "" && rule.GetEkPublicHash() == "" && len(cas) == 0 {
			add(fmt.Sprintf("spec.tpm.allow[%d].ek_certificate_serial", i), "a serial number means nothing without who gave it: give spec.tpm.ekcert_allowed_cas, or ek_public_hash as well")
		}
		if len(rule.GetDescription()) > maxDescription {
			add(fmt.Sprintf("spec.tpm.allow[%d].description", i), "%d bytes, the most is %d", len(rule.GetDescription()), maxDescription)
		}
	}
}

// ParseTPMCA reads one certificate of spec.tpm.ekcert_allowed_cas.
func ParseTPMCA(text string) (*x509.Certificate, error) {
	if len(text) > maxTPMCABytes {
		return nil, fault.Invalid("%d bytes, the most is %d", len(text), maxTPMCABytes)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fault.Invalid("expected one certificate in PEM, the chain of a TPM's maker one certificate an entry")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fault.Invalid("the certificate is damaged")
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return nil, fault.Invalid("the certificate of %q is not that of an authority", cert.Subject)
	}
	return cert, nil
}

func checkEKHash(s string) error {
	if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
		return fault.Invalid("%.80q is not the SHA-256 of a key: expected 64 hexadecimal digits, as `teleport tpm identify` prints them", s)
	}
	return nil
}

func checkEKSerial(s string) error {
	parts := strings.Split(s, ":")
	for _, p := range parts {
		if b, err := hex.DecodeString(p); err != nil || len(b) != 1 {
			return fault.Invalid("%.80q is not a serial number: expected hexadecimal bytes with colons, such as 73:df:dc, as `teleport tpm identify` prints them", s)
		}
	}
	return nil
}

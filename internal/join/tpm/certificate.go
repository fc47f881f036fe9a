package tpm

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// Object identifiers of what an EK certificate has (TCG EK Credential Profile 2.5,
// section 3.2).
func oidEKCertificate() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 23, 133, 8, 1} }

func oidSubjectAltName() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 5, 29, 17}
}
func oidExtKeyUsage() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, 37} }

// parseEKCertificate reads the certificate of an EK, with the two extensions that the
// standard library leaves to us: the key usage of the TCG, and a critical alternative
// name that has a directory name only. The text of an error follows "the certificate".
func parseEKCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, errors.New("is too long")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("is not an X.509 certificate in DER")
	}
	if err := keys.Check(cert.PublicKey); err != nil {
		return nil, err
	}
	if cert.IsCA {
		return nil, errors.New("is that of an authority")
	}
	if !slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidExtKeyUsage()) }) {
		return nil, errors.New("does not say what its key is for: an endorsement key has the usage tcg-kp-EKCertificate")
	}
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate().Equal) {
		return nil, errors.New("is not that of an endorsement key: it has not the usage tcg-kp-EKCertificate")
	}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, func(id asn1.ObjectIdentifier) bool {
		return id.Equal(oidSubjectAltName()) && directoryNameOnly(cert)
	})
	return cert, nil
}

// directoryNameOnly reports whether the alternative names are directory names, which
// say the maker and model of a TPM and are not used for anything here.
func directoryNameOnly(cert *x509.Certificate) bool {
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName()) })
	if i < 0 {
		return false
	}
	input := cryptobyte.String(cert.Extensions[i].Value)
	var names cryptobyte.String
	if !input.ReadASN1(&names, cryptobyteasn1.SEQUENCE) || !input.Empty() || names.Empty() {
		return false
	}
	for !names.Empty() {
		// GeneralName ::= CHOICE { ... directoryName [4] Name ... } (RFC 5280 section 4.2.1.6)
		var name cryptobyte.String
		if !names.ReadASN1(&name, cryptobyteasn1.Tag(4).ContextSpecific().Constructed()) {
			return false
		}
	}
	return true
}

func sameKey(cert *x509.Certificate, key crypto.PublicKey) bool {
	own, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(key)
}

// checkChain verifies that one of the authorities made the certificate.
func checkChain(cert *x509.Certificate, authorities []*x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fault.New(fault.ErrDenied, "the certificate of the TPM's endorsement key ended at %s: use ek_public_hash in the rule, and no ekcert_allowed_cas", cert.NotAfter.UTC().Format(time.RFC3339)).WithCode(method.CodeProofExpired)
	case now.Before(cert.NotBefore):
		return fault.New(fault.ErrDenied, "the certificate of the TPM's endorsement key begins at %s, which is in the future: check the clock of the Auth Service", cert.NotBefore.UTC().Format(time.RFC3339)).WithCode(method.CodeProofNotYetValid)
	}
	roots := x509.NewCertPool()
	for _, a := range authorities {
		roots.AddCert(a)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fault.New(fault.ErrDenied, "no certificate of spec.tpm.ekcert_allowed_cas made that of this TPM's endorsement key: its issuer is %.256q", cert.Issuer).WithCode(method.CodeProofIssuer)
	}
	return nil
}

// firstDER returns the certificate in the content of an NV index, which may be padded
// behind it, or nil.
func firstDER(data []byte) []byte {
	input := cryptobyte.String(data)
	var element cryptobyte.String
	if !input.ReadASN1Element(&element, cryptobyteasn1.SEQUENCE) {
		return nil
	}
	return element
}

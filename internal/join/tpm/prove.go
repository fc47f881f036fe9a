package tpm

import (
	"context"
	"encoding/json"

	"github.com/google/go-tpm/tpm2"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// prove returns the machine's half. The TPM is open only while a question is answered:
// in between, the template of the attestation key is all that is kept, because the TPM
// makes the same key of it again.
func prove(m method.Machine) method.Exchange {
	var template *tpm2.TPMTPublic
	return func(_ context.Context, question []byte) ([]byte, error) {
		d, err := open(m.Settings[SettingDevice])
		if err != nil {
			return nil, err
		}
		defer d.Close()
		if template == nil {
			made, err := newAKTemplate()
			if err != nil {
				return nil, err
			}
			template = &made
			return attest(d, made, m.T)
		}
		return answerCredential(d, *template, question)
	}
}

func attest(d *device, template tpm2.TPMTPublic, t [32]byte) ([]byte, error) {
	ek, err := d.loadEK()
	if err != nil {
		return nil, err
	}
	d.release(ek)
	ak, err := d.makeAK(template)
	if err != nil {
		return nil, err
	}
	defer d.flush(ak.ObjectHandle)
	area, err := ak.OutPublic.Contents()
	if err != nil {
		return nil, d.failed("show its attestation key", err)
	}
	a := attestation{EK: ek.area, Certificate: ek.certificate, AK: tpm2.Marshal(*area)}
	if a.Quote, a.Signature, err = d.quote(ak, digest(t)); err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

func answerCredential(d *device, template tpm2.TPMTPublic, question []byte) ([]byte, error) {
	var c credential
	if err := decode(question, &c); err != nil {
		return nil, fault.Invalid("the Auth Service sent a credential for the TPM that is %w", err)
	}
	ek, err := d.loadEK()
	if err != nil {
		return nil, err
	}
	defer d.release(ek)
	ak, err := d.makeAK(template)
	if err != nil {
		return nil, err
	}
	defer d.flush(ak.ObjectHandle)
	secret, err := d.activate(ek, ak, c)
	if err != nil {
		return nil, err
	}
	return json.Marshal(activation{Secret: secret}) //nolint:gosec // the answer is to have it
}

// Identity is what the rules of a token know a TPM by.
type Identity struct {
	// PublicHash is ek_public_hash.
	PublicHash string
	// CertificateSerial is ek_certificate_serial; empty without a certificate.
	CertificateSerial string
	// Certificate is the DER of the certificate of the endorsement key, or nil.
	Certificate []byte
}

// Identify reads the identity of this machine's TPM: the device is a path, "unix:/path"
// of a socket, or empty for DefaultDevice.
func Identify(path string) (*Identity, error) {
	d, err := open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	ek, err := d.loadEK()
	if err != nil {
		return nil, err
	}
	defer d.release(ek)
	id := &Identity{Certificate: ek.certificate}
	if id.PublicHash, err = hash(ek.public.key); err != nil {
		return nil, err
	}
	if len(ek.certificate) == 0 {
		return id, nil
	}
	cert, err := parseEKCertificate(ek.certificate)
	if err != nil {
		return nil, fault.New(fault.ErrInvalid, "the certificate in the TPM %w", err).WithCode(method.CodeCredentials)
	}
	if !sameKey(cert, ek.public.key) {
		return nil, fault.New(fault.ErrInvalid, "the certificate in the TPM is for another endorsement key than the one that its standard template makes").WithCode(method.CodeCredentials)
	}
	id.CertificateSerial = serialText(cert.SerialNumber)
	return id, nil
}

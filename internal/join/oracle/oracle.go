// Package oracle is the join method of compute instances in Oracle Cloud (OCI). The
// platform gives every instance a certificate that names its tenancy, compartment and
// OCID; the machine signs the transcript with its key, in one answer:
//
//	machine                                                       Auth
//	                                                           <- (empty question)
//	certificate, intermediates, signature over T, and a
//	signature of a request for the region's root certificates  ->
//
// Oracle hands out the roots only to its own principals, and Auth is none. So the
// machine signs the request for them and does not send it: Auth writes that request
// itself, to a host from its own table, adds the signature, and asks. Nothing of the
// machine's decides where the request goes or what it asks for.
package oracle

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Method returns the method. The root certificates of the regions are kept in it.
func Method() method.Method {
	v := &verifier{regions: map[string]*rootCache{}}
	return method.Method{Name: types.JoinMethodOracle, Attests: true, Prove: prove, Verify: v.verify}
}

// Limits of an answer.
const (
	maxAnswer       = 48 << 10
	maxCertificate  = 8 << 10
	maxIntermediate = 4
	maxKeyID        = 12 << 10
	maxSignature    = 512
)

// answer is what the machine sends.
type answer struct {
	// Certificate and Intermediates are DER.
	Certificate   []byte   `json:"certificate"`
	Intermediates [][]byte `json:"intermediates"`
	// Signature is RSA-PSS with SHA-256 over the transcript, by the certificate's key.
	Signature []byte `json:"signature"`
	// Request is the signature of the request for the roots.
	Request signedRequest `json:"request"`
}

// signedRequest are the parts of a signed request that Auth cannot write itself.
type signedRequest struct {
	// Date is the request's Date header.
	Date string `json:"date"`
	// KeyID names the principal.
	KeyID     string `json:"key_id"`
	Signature []byte `json:"signature"`
}

const purpose = "teleport oracle join"

// digest is what the certificate's key signs.
func digest(t [32]byte) [32]byte {
	return sha256.Sum256(append(append([]byte(purpose), 0), t[:]...))
}

// pssOptions: the salt is as long as the hash.
func pssOptions() *rsa.PSSOptions { return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} }

// rootsPath is where a region's Auth service has the root certificates.
const rootsPath = "/v1/instancePrincipalRootCACertificates"

// signedHeaders are the parts of a request without a body that Oracle wants signed.
const signedHeaders = "date (request-target) host"

// signingString is what the signature of the request for the roots covers
// (draft-cavage-http-signatures-08 section 2.3), for the headers above.
func signingString(date, host string) string {
	return "date: " + date + "\n(request-target): get " + rootsPath + "\nhost: " + host
}

// authorization is the header that carries a signature.
func authorization(keyID, headers string, signature []byte) string {
	return `Signature version="1",headers="` + headers + `",keyId="` + keyID + `",algorithm="rsa-sha256",signature="` +
		base64.StdEncoding.EncodeToString(signature) + `"`
}

// authHost is the host of the region's Auth service.
func authHost(r types.OracleRegion) string { return "auth." + r.Name + "." + r.Domain }

// instance is what a certificate says about its machine.
type instance struct {
	ID, Compartment, Tenancy string
	Region                   types.OracleRegion
}

// Attributes of a certificate's subject, in its units (OU) "name:value".
const (
	unitInstance    = "opc-instance"
	unitCompartment = "opc-compartment"
	unitTenant      = "opc-tenant"
	unitCertType    = "opc-certtype"
)

// parseInstance reads the subject: each attribute once, each OCID of its type, and all
// in one realm, in a region that we know.
func parseInstance(units []string) (instance, error) {
	found := map[string]string{}
	for _, unit := range units {
		name, value, ok := strings.Cut(unit, ":")
		if !ok {
			continue
		}
		switch name {
		case unitInstance, unitCompartment, unitTenant, unitCertType:
			if _, twice := found[name]; twice {
				return instance{}, fault.Invalid("names %s twice", name)
			}
			found[name] = value
		}
	}
	if found[unitCertType] != "instance" {
		return instance{}, fault.Invalid("is not that of an instance: %s is %.64q, expected \"instance\"", unitCertType, found[unitCertType])
	}
	realms := map[string]bool{}
	var region string
	for _, want := range []struct{ unit, kind string }{{unitInstance, "instance"}, {unitCompartment, "compartment"}, {unitTenant, "tenancy"}} {
		id, err := types.ParseOCID(found[want.unit])
		if err != nil {
			return instance{}, fault.Invalid("has a bad %s: %w", want.unit, err)
		}
		// The root compartment of a tenancy is the tenancy.
		if id.Type != want.kind && (want.unit != unitCompartment || id.Type != "tenancy") {
			return instance{}, fault.Invalid("has the OCID of a %s as %s", id.Type, want.unit)
		}
		realms[id.Realm] = true
		if want.unit == unitInstance {
			region = id.Region
		}
	}
	r, ok := types.FindOracleRegion(region)
	if !ok {
		return instance{}, fault.Invalid("is of the region %.64q, which this version does not know", region)
	}
	if len(realms) != 1 || !realms[r.Realm] {
		return instance{}, fault.Invalid("has OCIDs of another realm than that of its region %s", r.Name)
	}
	return instance{ID: found[unitInstance], Compartment: found[unitCompartment], Tenancy: found[unitTenant], Region: r}, nil
}

// parseCertificate reads one certificate with a key that is cheap to verify with.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) == 0 || len(der) > maxCertificate {
		return nil, fault.Invalid("has %d bytes, expected 1 to %d", len(der), maxCertificate)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Invalid("is not a certificate in DER")
	}
	if err := keys.Check(cert.PublicKey); err != nil {
		return nil, err
	}
	return cert, nil
}

// decode reads one JSON value, strictly.
func decode(data []byte, into any) error {
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

package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"

	"teleport/internal/fault"
)

// Identities are in one private extension, under an arc that is nobody's.
func extensionOID() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 9999, 2, 1} }

// EncodeTLS writes the identity into a certificate template: its subject and one
// extension that is not critical. Validity, keys and names are the signer's.
func (id *Identity) EncodeTLS(t *x509.Certificate) error {
	if err := id.Check(); err != nil {
		return err
	}
	if id.Host != nil && id.Host.OpenSSH {
		return errNoTLS(id.Host)
	}
	value, err := marshal(id.payload())
	if err != nil {
		return err
	}
	t.Subject = id.subject()
	t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: extensionOID(), Value: value})
	return nil
}

// FromTLS reads the identity of a certificate whose signature was checked, with
// the times between which the certificate is valid. Whether the authority that
// signed it may name such an identity is for the caller (package ca) to say.
func FromTLS(c *x509.Certificate) (*Identity, error) {
	if c == nil {
		return nil, fault.Invalid("certificate is missing")
	}
	if c.IsCA {
		return nil, fault.Invalid("the certificate is an authority's, not a holder's")
	}
	var value []byte
	found := 0
	for _, e := range c.Extensions {
		if e.Id.Equal(extensionOID()) {
			found++
			value = e.Value
		}
	}
	if found != 1 {
		return nil, fault.Invalid("the certificate names its holder %d times, expected once", found)
	}
	var p payload
	if err := unmarshal(value, &p); err != nil {
		return nil, err
	}
	id, err := p.identity()
	if err != nil {
		return nil, err
	}
	if id.Host != nil && id.Host.OpenSSH {
		return nil, errNoTLS(id.Host)
	}
	if !sameSubject(c.Subject, id.subject()) {
		return nil, fault.Invalid("the subject of the certificate does not fit its holder %q", id.Name())
	}
	id.Issued, id.Expires = c.NotBefore, c.NotAfter
	return id, nil
}

func errNoTLS(h *Host) error {
	return fault.Invalid("OpenSSH server %q has no TLS certificate", h.ID)
}

// subject returns the distinguished name: for those who look at certificates with
// other tools, and for authorities of other systems.
func (id *Identity) subject() pkix.Name {
	if id.User != nil {
		return pkix.Name{CommonName: id.User.Name, Organization: slices.Clone(id.User.Roles)}
	}
	name := pkix.Name{CommonName: id.Host.ID + "." + id.Cluster}
	if id.Host.Service != "" {
		name.Organization = []string{string(id.Host.Service)}
		return name
	}
	for _, r := range id.Host.Roles {
		name.Organization = append(name.Organization, string(r))
	}
	return name
}

// sameSubject compares common name and the O attributes, and lets got have nothing
// else. DER sorts a set, so the order of the O attributes says nothing.
func sameSubject(got, want pkix.Name) bool {
	if got.CommonName != want.CommonName || len(got.Names) != 1+len(want.Organization) {
		return false
	}
	return slices.Equal(slices.Sorted(slices.Values(got.Organization)), slices.Sorted(slices.Values(want.Organization)))
}

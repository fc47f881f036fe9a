package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// What certificates may carry besides the identity.
const (
	permitPTY     = "permit-pty"
	permitPorts   = "permit-port-forwarding"
	permitAgent   = "permit-agent-forwarding"
	permitX11     = "permit-X11-forwarding"
	sourceAddress = "source-address"
)

// checkTLS is the last look at a certificate before it leaves the signer: whatever
// the code before it did, only these shapes get out.
func checkTLS(cert *x509.Certificate, id *identity.Identity, issuer *x509.Certificate, key crypto.PublicKey) error {
	switch {
	case cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature:
		return fault.Invalid("it could sign other certificates")
	case !samePublic(cert.PublicKey, key):
		return fault.Invalid("it is for another key")
	case !bytes.Equal(cert.RawIssuer, issuer.RawSubject):
		return fault.Invalid("it names another issuer")
	case cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 159:
		return fault.Invalid("its serial number is out of range")
	case len(cert.EmailAddresses)+len(cert.URIs) > 0 || len(cert.UnhandledCriticalExtensions) > 0:
		return fault.Invalid("it carries names or extensions that nobody asked for")
	case cert.NotBefore.Before(issuer.NotBefore) || cert.NotAfter.After(issuer.NotAfter) || !cert.NotAfter.After(cert.NotBefore):
		return fault.Invalid("its validity is not within its issuer's")
	}
	if err := keys.Check(cert.PublicKey); err != nil {
		return err
	}
	got, err := identity.FromTLS(cert)
	if err != nil {
		return err
	}
	if !sameIdentity(got, id) {
		return fault.Invalid("it names another holder")
	}
	if id.User != nil {
		if len(cert.DNSNames)+len(cert.IPAddresses) > 0 || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
			return fault.Invalid("a user certificate must name no host and serve nothing")
		}
		return nil
	}
	return checkHostTLS(cert, id)
}

func checkHostTLS(cert *x509.Certificate, id *identity.Identity) error {
	if cert.NotAfter.Sub(cert.NotBefore) > MaxHostTTL+2*backdate {
		return fault.Invalid("a host certificate is good for at most %s", MaxHostTTL)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		return fault.Invalid("a host certificate is for TLS servers and clients")
	}
	for _, n := range cert.DNSNames {
		if err := checkPrincipal(n, id.Host); err != nil {
			return err
		}
	}
	return nil
}

// checkSSH is the last look at an SSH certificate before it leaves the signer.
func checkSSH(wire []byte, id *identity.Identity, issuer, key ssh.PublicKey) error {
	cert, err := ParseSSHCertificate(wire)
	if err != nil {
		return err
	}
	if !sameSSH(cert.SignatureKey, issuer) || !sameSSH(cert.Key, key) {
		return fault.Invalid("it is for another key or by another authority")
	}
	got, err := identity.FromSSH(cert)
	if err != nil {
		return err
	}
	if !sameIdentity(got, id) {
		return fault.Invalid("it names another holder")
	}
	if err := checkShape(cert); err != nil {
		return err
	}
	if err := checkExtensions(cert); err != nil {
		return err
	}
	if id.User != nil {
		return nil
	}
	if len(cert.CriticalOptions) > 0 {
		return fault.Invalid("a host certificate has no options")
	}
	if limit := maxSSHHostTTL(id.Host); time.Duration(cert.ValidBefore-cert.ValidAfter)*time.Second > limit+2*backdate {
		return fault.Invalid("a host certificate is good for at most %s", limit)
	}
	for _, n := range cert.ValidPrincipals {
		if err := checkPrincipal(n, id.Host); err != nil {
			return err
		}
	}
	return nil
}

// checkShape refuses an SSH certificate whose form alone makes it untrustworthy,
// whoever signed it. The verifying side asks the same.
func checkShape(cert *ssh.Certificate) error {
	if err := keys.CheckSSH(cert.Key); err != nil {
		return err
	}
	if err := keys.CheckSSH(cert.SignatureKey); err != nil {
		return err
	}
	if len(cert.ValidPrincipals) == 0 {
		return fault.Invalid("SSH certificate has no principals, so it is nobody's")
	}
	for _, p := range cert.ValidPrincipals {
		if !plainPrincipal(p, cert.CertType) {
			return fault.Invalid("SSH certificate has a malformed principal %q", clip(p))
		}
	}
	for name := range cert.CriticalOptions {
		if name != sourceAddress || cert.CertType != ssh.UserCert {
			return fault.Invalid("SSH certificate has an unknown critical option %q", clip(name))
		}
	}
	return nil
}

// checkExtensions refuses extensions that the signer does not hand out. Readers
// ignore the ones they do not know, as the format has it.
func checkExtensions(cert *ssh.Certificate) error {
	for name, value := range cert.Extensions {
		ours := strings.HasSuffix(name, identity.SSHExtensionSuffix)
		permit := value == "" && (name == permitPTY || name == permitPorts || name == permitAgent || name == permitX11)
		if !ours && (cert.CertType != ssh.UserCert || !permit && types.ValidCertExtension(name) != nil) {
			return fault.Invalid("SSH certificate has an unknown extension %q", clip(name))
		}
	}
	return nil
}

func plainPrincipal(p string, certType uint32) bool {
	if certType == ssh.UserCert {
		return types.ValidLogin(p) == nil
	}
	return validName(p)
}

// checkPrincipal refuses names that a host may not carry.
func checkPrincipal(name string, h *identity.Host) error {
	if identity.ReservedName(name) && (h.Service == "" || name != identity.ServerName(h.Service)) {
		return fault.Denied("host name %q is reserved for services of the cluster", name)
	}
	return checkForeign(name, h.ID)
}

// checkForeign refuses a name whose first part is the id of another host: ids are
// UUIDs, and nothing else may look like one.
func checkForeign(name, hostID string) error {
	first, _, _ := strings.Cut(name, ".")
	if len(first) != 36 {
		return nil
	}
	if _, err := uuid.Parse(first); err == nil && !strings.EqualFold(first, hostID) {
		return fault.Denied("host name %q is the id of another host", name)
	}
	return nil
}

// sameIdentity compares all but the times.
func sameIdentity(a, b *identity.Identity) bool {
	x, y := *a, *b
	x.Issued, x.Expires, y.Issued, y.Expires = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return reflect.DeepEqual(normal(x), normal(y))
}

// normal makes empty and absent lists the same.
func normal(id identity.Identity) identity.Identity {
	if id.User == nil {
		return id
	}
	u := *id.User
	if len(u.Roles) == 0 {
		u.Roles = nil
	}
	if len(u.Logins) == 0 {
		u.Logins = nil
	}
	if len(u.Traits) == 0 {
		u.Traits = nil
	}
	if u.Database != nil && len(u.Database.Roles) == 0 {
		d := *u.Database
		d.Roles, u.Database = nil, &d
	}
	id.User = &u
	return id
}

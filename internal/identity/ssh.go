package identity

import (
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// SSHExtensionSuffix ends the names of the SSH extensions that are ours. Others,
// such as permit-pty, say what the holder may do and are not part of the identity.
const SSHExtensionSuffix = "@teleport"

const (
	extCluster = "teleport-cluster" + SSHExtensionSuffix
	extHost    = "teleport-host" + SSHExtensionSuffix
	extUser    = "teleport-user" + SSHExtensionSuffix
	extRoles   = "teleport-roles" + SSHExtensionSuffix
	extTraits  = "teleport-traits" + SSHExtensionSuffix
	extDevice  = "teleport-mfa-device" + SSHExtensionSuffix
)

// EncodeSSH writes the identity into an SSH certificate: type, key id, extensions
// and, for a user, the principals. A host's principals, keys and validity are the
// signer's. A user without logins is refused: readers of SSH certificates take an
// empty list for anybody.
func (id *Identity) EncodeSSH(c *ssh.Certificate) error {
	if err := id.Check(); err != nil {
		return err
	}
	if c.Extensions == nil {
		c.Extensions = map[string]string{}
	}
	parts := map[string]any{extCluster: id.Cluster}
	if u := id.User; u != nil {
		if u.Routed() {
			return fault.Invalid("a certificate of user %q for one application or database is no SSH certificate", u.Name)
		}
		if len(u.Logins) == 0 {
			return fault.Invalid("user %q has no logins, so there is no SSH certificate for them", u.Name)
		}
		c.CertType, c.KeyId = ssh.UserCert, u.Name
		c.ValidPrincipals = slices.Clone(u.Logins)
		parts[extUser] = u.Name
		if len(u.Roles) > 0 {
			parts[extRoles] = u.Roles
		}
		if len(u.Traits) > 0 {
			parts[extTraits] = u.Traits
		}
		if u.MFADevice != "" {
			parts[extDevice] = u.MFADevice
		}
	} else {
		c.CertType, c.KeyId = ssh.HostCert, id.Host.ID+"."+id.Cluster
		parts[extHost] = id.payload().Host
	}
	for name, part := range parts {
		value, err := marshal(part)
		if err != nil {
			return err
		}
		c.Extensions[name] = string(value)
	}
	return nil
}

// FromSSH reads the identity of a certificate whose signature was checked, with
// the times between which the certificate is valid. Whether the authority that
// signed it may name such an identity is for the caller (package ca) to say.
func FromSSH(c *ssh.Certificate) (*Identity, error) {
	if c == nil {
		return nil, fault.Invalid("certificate is missing")
	}
	id := &Identity{}
	var keyID string
	var known []string
	if err := extension(c, extCluster, &id.Cluster); err != nil {
		return nil, err
	}
	switch c.CertType {
	case ssh.UserCert:
		u, err := userFromSSH(c)
		if err != nil {
			return nil, err
		}
		id.User, keyID = u, u.Name
		known = []string{extCluster, extUser, extRoles, extTraits, extDevice}
	case ssh.HostCert:
		var h hostPayload
		if err := extension(c, extHost, &h); err != nil {
			return nil, err
		}
		id.Host = h.host()
		keyID = h.ID + "." + id.Cluster
		known = []string{extCluster, extHost}
	default:
		return nil, fault.Invalid("SSH certificate has an unknown type %d", c.CertType)
	}
	for name := range c.Extensions {
		if strings.HasSuffix(name, SSHExtensionSuffix) && !slices.Contains(known, name) {
			return nil, fault.Invalid("SSH certificate has an unknown extension %q", clip(name))
		}
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if c.KeyId != keyID {
		return nil, fault.Invalid("SSH certificate has the key id %q, expected %q", clip(c.KeyId), clip(keyID))
	}
	var err error
	id.Issued, id.Expires, err = SSHTimes(c)
	if err != nil {
		return nil, err
	}
	return id, nil
}

func userFromSSH(c *ssh.Certificate) (*User, error) {
	u := &User{Logins: slices.Clone(c.ValidPrincipals)}
	if len(u.Logins) == 0 {
		return nil, fault.Invalid("SSH certificate has no principals, so it is nobody's")
	}
	if err := extension(c, extUser, &u.Name); err != nil {
		return nil, err
	}
	if _, ok := c.Extensions[extRoles]; ok {
		if err := extension(c, extRoles, &u.Roles); err != nil {
			return nil, err
		}
	}
	if _, ok := c.Extensions[extTraits]; ok {
		if err := extension(c, extTraits, &u.Traits); err != nil {
			return nil, err
		}
	}
	if _, ok := c.Extensions[extDevice]; ok {
		if err := extension(c, extDevice, &u.MFADevice); err != nil {
			return nil, err
		}
		if u.MFADevice == "" {
			return nil, fault.Invalid("SSH certificate has an empty extension %q", extDevice)
		}
	}
	for name, size := range map[string]int{extRoles: len(u.Roles), extTraits: len(u.Traits)} {
		if _, ok := c.Extensions[name]; ok && size == 0 {
			return nil, fault.Invalid("SSH certificate has an empty extension %q", name)
		}
	}
	return u, nil
}

func extension(c *ssh.Certificate, name string, v any) error {
	value, ok := c.Extensions[name]
	if !ok {
		return fault.Invalid("SSH certificate has no extension %q: it was not made by a Teleport cluster", name)
	}
	return unmarshal([]byte(value), v)
}

// SSHTimes returns the times between which the certificate is valid. Certificates
// without an end are refused.
func SSHTimes(c *ssh.Certificate) (from, to time.Time, err error) {
	const most = math.MaxInt64 / 2
	if c.ValidAfter > most || c.ValidBefore > most {
		return from, to, fault.Invalid("SSH certificate has no bounded validity")
	}
	return time.Unix(int64(c.ValidAfter), 0).UTC(), time.Unix(int64(c.ValidBefore), 0).UTC(), nil
}

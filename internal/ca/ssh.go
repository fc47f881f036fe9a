package ca

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

const maxSSHCertificate = 64 << 10

// ParseSSHCertificate reads an SSH certificate in wire format. It checks no
// signature.
func ParseSSHCertificate(wire []byte) (*ssh.Certificate, error) {
	if len(wire) > maxSSHCertificate {
		return nil, fault.Invalid("SSH certificate is %d bytes long, at most %d are read", len(wire), maxSSHCertificate)
	}
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, fault.Invalid("SSH certificate cannot be read: %w", err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fault.Invalid("SSH certificate is missing: a plain %s key was given", key.Type())
	}
	return cert, nil
}

// VerifySSHUser returns whose key it is, if it is a user certificate of the
// cluster that may log in as login. That the peer holds the key is for the SSH
// handshake to prove. A certificate that is bound to source addresses is refused,
// since none is known here: use AuthenticateSSH.
func (t *Trust) VerifySSHUser(key ssh.PublicKey, login string, now time.Time) (*identity.Identity, error) {
	return t.verifySSHUser(key, login, nil, now)
}

// AuthenticateSSH is VerifySSHUser for the PublicKeyCallback of an SSH server: it
// also holds the certificate against the address that the peer comes from, and
// returns the certificate's own permissions, which the server must return.
func (t *Trust) AuthenticateSSH(conn ssh.ConnMetadata, key ssh.PublicKey, now time.Time) (*identity.Identity, *ssh.Permissions, error) {
	id, err := t.verifySSHUser(key, conn.User(), conn.RemoteAddr(), now)
	if err != nil {
		return nil, nil, err
	}
	permissions := &ssh.Permissions{}
	if cert, ok := key.(*ssh.Certificate); ok {
		*permissions = cert.Permissions
	}
	return id, permissions, nil
}

func (t *Trust) verifySSHUser(key ssh.PublicKey, login string, from net.Addr, now time.Time) (*identity.Identity, error) {
	cert, err := t.user.verifySSH(key, ssh.UserCert, now)
	if err != nil {
		return nil, err
	}
	if err := checkSource(cert, from); err != nil {
		return nil, err
	}
	id, err := t.readSSH(cert, &t.user)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(id.User.Logins, login) {
		return nil, fault.Denied("certificate of user %q is not good for login %q, only for %s", id.User.Name, login, strings.Join(id.User.Logins, ", "))
	}
	return id, nil
}

// VerifySSHHost returns whose key it is, if it is a host certificate of the
// cluster for the name. Those of OpenSSH servers are not: see VerifyOpenSSH.
func (t *Trust) VerifySSHHost(key ssh.PublicKey, name string, now time.Time) (*identity.Identity, error) {
	id, err := t.verifySSHHost(key, name, now)
	if err == nil && id.Host.OpenSSH {
		return nil, fault.Unauthenticated("host certificate of %q is that of an OpenSSH server, one of a process of the cluster is needed", id.Host.ID)
	}
	return id, err
}

func (t *Trust) verifySSHHost(key ssh.PublicKey, name string, now time.Time) (*identity.Identity, error) {
	cert, err := t.host.verifySSH(key, ssh.HostCert, now)
	if err != nil {
		return nil, err
	}
	id, err := t.readSSH(cert, &t.host)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(cert.ValidPrincipals, strings.ToLower(name)) {
		return nil, fault.Unauthenticated("host certificate of %q is not for %q, only for %s", id.Host.ID, name, strings.Join(cert.ValidPrincipals, ", "))
	}
	return id, nil
}

// verifySSH is the only place where an SSH certificate is believed. The order
// matters: form first, then the authority by the bytes of its key, then the
// library's checks including the signature.
func (a *anchors) verifySSH(key ssh.PublicKey, certType uint32, now time.Time) (*ssh.Certificate, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert == nil {
		return nil, fault.Unauthenticated("a plain SSH key was shown, a %s certificate of the cluster is needed", a.typ)
	}
	if cert.Key == nil || cert.SignatureKey == nil || cert.Signature == nil {
		return nil, fault.Unauthenticated("SSH certificate is incomplete")
	}
	if cert.CertType != certType {
		return nil, fault.Unauthenticated("SSH certificate %q is not a %s certificate", clip(cert.KeyId), a.typ)
	}
	if err := checkShape(cert); err != nil {
		return nil, fault.Unauthenticated("SSH certificate %q: %w", clip(cert.KeyId), err)
	}
	if !a.trustsSSH(cert.SignatureKey) {
		return nil, fault.Unauthenticated("SSH certificate %q is not signed by the %s certificate authority of the cluster", clip(cert.KeyId), a.typ)
	}
	from, to, err := identity.SSHTimes(cert)
	if err != nil {
		return nil, fault.Unauthenticated("SSH certificate %q: %w", clip(cert.KeyId), err)
	}
	if err := checkTimes(from, to, now); err != nil {
		return nil, err
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{sourceAddress},
		Clock:                    func() time.Time { return now },
	}
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return nil, fault.Unauthenticated("SSH certificate %q: %w", clip(cert.KeyId), err)
	}
	return cert, nil
}

func (t *Trust) readSSH(cert *ssh.Certificate, by *anchors) (*identity.Identity, error) {
	id, err := identity.FromSSH(cert)
	if err != nil {
		return nil, fault.Unauthenticated("SSH certificate %q: %w", clip(cert.KeyId), err)
	}
	return t.accept(id, by)
}

// checkSource holds the source-address option against the peer's address. An
// entry that is not an address or a network matches nothing.
func checkSource(cert *ssh.Certificate, from net.Addr) error {
	list, ok := cert.CriticalOptions[sourceAddress]
	if !ok {
		return nil
	}
	var addr netip.Addr
	if tcp, isTCP := from.(*net.TCPAddr); isTCP {
		addr, _ = netip.AddrFromSlice(tcp.IP)
		addr = addr.Unmap()
	}
	for entry := range strings.SplitSeq(list, ",") {
		if prefix, err := netip.ParsePrefix(entry); err == nil && addr.IsValid() && prefix.Contains(addr) {
			return nil
		}
		if exact, err := netip.ParseAddr(entry); err == nil && addr.IsValid() && exact.Unmap() == addr {
			return nil
		}
	}
	return fault.Denied("SSH certificate %q may not be used from here: it is bound to %s", clip(cert.KeyId), list)
}

// HostKeyCallback returns the check of an SSH client for a host that is called by
// all of the names and runs the service of the role, whatever address it was
// dialled at: a certificate of that service, or that of a process that holds the
// role. For an OpenSSH server a Proxy answers, with a certificate that says so.
// Without a name it is nobody's.
func (t *Trust) HostKeyCallback(role types.SystemRole, names ...string) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if len(names) == 0 {
			return fault.Unauthenticated("no host name to hold the host certificate against")
		}
		for _, name := range names {
			id, err := t.verifySSHHost(key, name, time.Now())
			if err != nil {
				return err
			}
			if id.Host.OpenSSH && id.Host.Proxy == "" {
				return fault.Unauthenticated("%q is an OpenSSH server of the cluster: connect to it through a Proxy, which lets you in", id.Host.ID)
			}
			if !runs(id.Host, role) {
				return fault.Unauthenticated("host certificate of %q is not for the %s service: this is another service of the cluster", id.Host.ID, role)
			}
		}
		return nil
	}
}

// AnyHostKeyCallback is HostKeyCallback for clients to which every host with the
// role is as good as another.
func (t *Trust) AnyHostKeyCallback(role types.SystemRole) ssh.HostKeyCallback {
	return func(hostport string, addr net.Addr, key ssh.PublicKey) error {
		cert, ok := key.(*ssh.Certificate)
		if !ok || cert == nil || len(cert.ValidPrincipals) == 0 {
			return fault.Unauthenticated("an SSH key without a host certificate of the cluster was shown")
		}
		return t.HostKeyCallback(role, cert.ValidPrincipals[0])(hostport, addr, key)
	}
}

// runs reports whether a certificate speaks for the service: a certificate for one
// service does not speak for the others of its process.
func runs(h *identity.Host, role types.SystemRole) bool {
	return h.Serves(role) || h.OpenSSH && h.Proxy != "" && role == types.RoleNode || h.Service == "" && h.Has(role)
}

// KnownHosts returns lines for OpenSSH's known_hosts that trust the host authority
// for the patterns. Patterns that could break out of their field are left out, and
// without a pattern there are no lines.
func (t *Trust) KnownHosts(patterns ...string) []string {
	patterns = slices.DeleteFunc(slices.Clone(patterns), func(p string) bool { return !validPattern(p) })
	if len(patterns) == 0 {
		return nil
	}
	var out []string
	for _, key := range t.host.ssh {
		out = append(out, "@cert-authority "+strings.Join(patterns, ",")+" "+authorizedKey(key))
	}
	return out
}

func validPattern(p string) bool {
	for _, r := range p {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_*?[]:", r) {
			return false
		}
	}
	return p != ""
}

// clip shortens what a stranger wrote, for an error.
func clip(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}

// validName reports whether a host principal is a host name or an address.
func validName(p string) bool {
	if addr, err := netip.ParseAddr(p); err == nil {
		return addr.Zone() == ""
	}
	return identity.CheckHostname(p) == nil
}

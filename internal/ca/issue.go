package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// MaxHostTTL is the longest life of a host certificate, and the usual one.
const MaxHostTTL = 7 * 24 * time.Hour

const maxPrincipals = 64

// HostRequest asks for the certificates of a process.
type HostRequest struct {
	// Identity is a host's. Issued and Expires are not read.
	Identity identity.Identity
	// TLSKey is a SubjectPublicKeyInfo, DER.
	TLSKey []byte
	// SSHKey is in wire format; nil for no SSH certificate.
	SSHKey []byte
	// Principals are DNS names and addresses that the TLS certificate carries besides
	// the names of the host itself. Whether the host may have them was decided
	// before: they are only checked for form here.
	Principals []string
	// TTL is at most MaxHostTTL; zero means MaxHostTTL.
	TTL time.Duration
}

// UserRequest asks for the certificates of a user.
type UserRequest struct {
	// Identity is a user's. Issued and Expires are not read.
	Identity identity.Identity
	// TLSKey is a SubjectPublicKeyInfo, DER.
	TLSKey []byte
	// SSHKey is in wire format; nil for no SSH certificate.
	SSHKey []byte
	// TTL is how long the certificates are good for; it must be positive.
	TTL time.Duration
	// NoLogins says that the user has no logins and that this is meant: only the
	// TLS certificate is made, since an SSH certificate without principals is
	// good for every login in some readers' eyes.
	NoLogins bool
	// What the holder may ask of an SSH session.
	PermitPTY             bool
	PermitPortForwarding  bool
	PermitAgentForwarding bool
	PermitX11Forwarding   bool
	// Extensions are more extensions of the SSH certificate, by name
	// (types.ValidCertExtension).
	Extensions map[string]string
	// Sources are the networks that the SSH certificate may be used from; empty
	// means that it does not say.
	Sources []netip.Prefix
}

// Host signs the certificates of a process: TLS in DER, and SSH in wire format or
// nil if no SSH key was given. The name of a service (identity.ServerName) is only
// in a certificate for that service.
func (s *Signer) Host(req HostRequest) (tlsDER, sshWire []byte, err error) {
	id := req.Identity
	if id.Host == nil || id.User != nil {
		return nil, nil, fault.Invalid("a host certificate needs the identity of a host")
	}
	if err := s.checkRequest(&id); err != nil {
		return nil, nil, err
	}
	ttl := req.TTL
	if ttl == 0 {
		ttl = MaxHostTTL
	}
	if ttl < 0 || ttl > MaxHostTTL {
		return nil, nil, fault.Invalid("host certificate of %s asked for, at most %s are given", ttl, MaxHostTTL)
	}
	names, err := hostNames(&id, req.Principals)
	if err != nil {
		return nil, nil, err
	}
	tlsKey, sshKey, err := s.subjectKeys(req.TLSKey, req.SSHKey)
	if err != nil {
		return nil, nil, err
	}
	from, to, err := s.validity(s.host, ttl)
	if err != nil {
		return nil, nil, err
	}
	template := leaf(from, to, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	for _, n := range names {
		if addr, err := netip.ParseAddr(n); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	template.DNSNames = append(template.DNSNames, appNames(&id, req.Principals)...)
	cert, err := s.makeTLS(s.host, &id, template, tlsKey)
	if err != nil || sshKey == nil {
		return cert, nil, err
	}
	// The additional names are those that TLS clients use; as principals they would
	// let a Proxy pass for any SSH server that it names itself after.
	own, err := hostNames(&id, nil)
	if err != nil {
		return nil, nil, err
	}
	sshWire, err = s.makeSSH(s.host, &id, &ssh.Certificate{
		Key: sshKey, ValidPrincipals: own, ValidAfter: uint64(from.Unix()), ValidBefore: uint64(to.Unix()),
	})
	if err != nil {
		return nil, nil, err
	}
	return cert, sshWire, nil
}

// User signs the certificates of a user: TLS in DER, and SSH in wire format or nil
// if no SSH key was given or the user has no logins.
func (s *Signer) User(req UserRequest) (tlsDER, sshWire []byte, err error) {
	id := req.Identity
	if id.User == nil || id.Host != nil {
		return nil, nil, fault.Invalid("a user certificate needs the identity of a user")
	}
	if err := s.checkRequest(&id); err != nil {
		return nil, nil, err
	}
	if req.TTL <= 0 {
		return nil, nil, fault.Invalid("user certificate of %s asked for: it must be longer than nothing", req.TTL)
	}
	if none := len(id.User.Logins) == 0; none != req.NoLogins {
		return nil, nil, fault.Invalid("user %q has %d logins, but the request says otherwise: give the user a role with logins", id.User.Name, len(id.User.Logins))
	}
	tlsKey, sshKey, err := s.subjectKeys(req.TLSKey, req.SSHKey)
	if err != nil {
		return nil, nil, err
	}
	from, to, err := s.validity(s.user, req.TTL)
	if err != nil {
		return nil, nil, err
	}
	cert, err := s.makeTLS(s.user, &id, leaf(from, to, x509.ExtKeyUsageClientAuth), tlsKey)
	if err != nil || sshKey == nil || req.NoLogins {
		return cert, nil, err
	}
	permissions, err := req.permissions()
	if err != nil {
		return nil, nil, err
	}
	// In an SSH certificate the address is a critical option, which every server heeds.
	if ip := id.User.SourceIP; ip != "" {
		user := *id.User
		user.SourceIP = ""
		id.User = &user
	}
	sshWire, err = s.makeSSH(s.user, &id, &ssh.Certificate{
		Key: sshKey, ValidAfter: uint64(from.Unix()), ValidBefore: uint64(to.Unix()), Permissions: permissions,
	})
	if err != nil {
		return nil, nil, err
	}
	return cert, sshWire, nil
}

// checkRequest refuses an identity that this signer may not name.
func (s *Signer) checkRequest(id *identity.Identity) error {
	if err := id.Check(); err != nil {
		return err
	}
	if id.Cluster != s.cluster {
		return fault.Invalid("certificate for cluster %q asked for, this one is %q", id.Cluster, s.cluster)
	}
	return nil
}

// subjectKeys reads the keys that are to be certified.
func (s *Signer) subjectKeys(tlsDER, sshWire []byte) (crypto.PublicKey, ssh.PublicKey, error) {
	tlsKey, err := keys.ParsePublicTLS(tlsDER)
	if err != nil {
		return nil, nil, err
	}
	var sshKey ssh.PublicKey
	if sshWire != nil {
		if sshKey, err = keys.ParsePublicSSH(sshWire); err != nil {
			return nil, nil, err
		}
	}
	if s.ownKey(tlsKey, sshKey) {
		return nil, nil, fault.Denied("certificate for the key of a certificate authority asked for")
	}
	return tlsKey, sshKey, nil
}

func (s *Signer) makeTLS(a authority, id *identity.Identity, template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	if err := id.EncodeTLS(template); err != nil {
		return nil, err
	}
	cert, err := a.signTLS(template, key)
	if err != nil {
		return nil, err
	}
	if err := checkTLS(cert, id, a.cert, key); err != nil {
		return nil, fmt.Errorf("certificate was not handed out: %w", err)
	}
	return cert.Raw, nil
}

func (s *Signer) makeSSH(a authority, id *identity.Identity, cert *ssh.Certificate) ([]byte, error) {
	if err := id.EncodeSSH(cert); err != nil {
		return nil, err
	}
	if err := a.signSSH(cert); err != nil {
		return nil, err
	}
	wire := cert.Marshal()
	if err := checkSSH(wire, id, a.ssh.PublicKey(), cert.Key); err != nil {
		return nil, fmt.Errorf("certificate was not handed out: %w", err)
	}
	return wire, nil
}

func leaf(from, to time.Time, usage ...x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}
}

// hostNames returns the names in the certificates of a host, in lower case since
// SSH compares them byte by byte: its own, that of its service, and the extra ones.
func hostNames(id *identity.Identity, extra []string) ([]string, error) {
	if len(extra) > maxPrincipals {
		return nil, fault.Limit("host %q asks for %d extra names, at most %d are given", id.Host.ID, len(extra), maxPrincipals)
	}
	h := id.Host
	names := []string{h.ID + "." + id.Cluster, h.ID, h.Name, h.Name + "." + id.Cluster}
	for _, n := range extra {
		if addr, err := netip.ParseAddr(n); err == nil {
			if addr.Zone() != "" || addr.IsUnspecified() {
				return nil, fault.Invalid("address %q cannot be the name of a host", n)
			}
			names = append(names, addr.Unmap().String())
			continue
		}
		if err := identity.CheckHostname(n); err != nil {
			return nil, err
		}
		if identity.ReservedName(n) {
			return nil, fault.Denied("host name %q is reserved for services of the cluster", n)
		}
		names = append(names, n)
	}
	if h.Service != "" {
		names = append(names, identity.ServerName(h.Service))
	}
	var out []string
	for _, n := range names {
		n = strings.ToLower(n)
		if err := checkForeign(n, h.ID); err != nil {
			return nil, err
		}
		if len(n) <= 253 && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// appNames returns the names of the applications that a Proxy shows its certificate
// for: any one under the names that the Proxy has itself. Nothing in the cluster
// believes a certificate for such a name alone.
func appNames(id *identity.Identity, principals []string) []string {
	if id.Host.Service != types.RoleProxy {
		return nil
	}
	var out []string
	for _, n := range principals {
		wildcard := "*." + strings.ToLower(n)
		if _, err := netip.ParseAddr(n); err == nil || len(wildcard) > 253 || slices.Contains(out, wildcard) {
			continue
		}
		out = append(out, wildcard)
	}
	return out
}

func (req UserRequest) permissions() (ssh.Permissions, error) {
	p := ssh.Permissions{Extensions: map[string]string{}}
	for name, on := range map[string]bool{
		permitPTY: req.PermitPTY, permitPorts: req.PermitPortForwarding, permitAgent: req.PermitAgentForwarding,
		permitX11: req.PermitX11Forwarding,
	} {
		if on {
			p.Extensions[name] = ""
		}
	}
	for name, value := range req.Extensions {
		if err := types.ValidCertExtension(name); err != nil {
			return p, err
		}
		p.Extensions[name] = value
	}
	sources := req.Sources
	if ip := req.Identity.User.SourceIP; ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil || len(sources) > 0 {
			return p, fault.Invalid("source address %q with %d networks: one address or networks may be named", ip, len(sources))
		}
		sources = []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
	}
	if len(sources) == 0 {
		return p, nil
	}
	list := make([]string, 0, len(sources))
	for _, prefix := range sources {
		if !prefix.IsValid() || prefix != prefix.Masked() {
			return p, fault.Invalid("source network %q is not a network", prefix)
		}
		list = append(list, prefix.String())
	}
	p.CriticalOptions = map[string]string{sourceAddress: strings.Join(list, ",")}
	return p, nil
}

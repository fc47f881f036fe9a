package ca

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Longest lives of the certificates for servers that run only OpenSSH.
const (
	// MaxOpenSSHServerTTL is that of a server's own: nothing of ours may be left there
	// that renews it.
	MaxOpenSSHServerTTL = 365 * 24 * time.Hour
	// MaxOpenSSHProxyTTL is that of a Proxy that answers for one.
	MaxOpenSSHProxyTTL = time.Hour
	// MaxOpenSSHLoginTTL is that of one login.
	MaxOpenSSHLoginTTL = 5 * time.Minute
)

// maxSSHHostTTL returns the longest life of a host's SSH certificate.
func maxSSHHostTTL(h *identity.Host) time.Duration {
	switch {
	case !h.OpenSSH:
		return MaxHostTTL
	case h.Proxy != "":
		return MaxOpenSSHProxyTTL
	}
	return MaxOpenSSHServerTTL
}

// OpenSSHHostRequest asks for the host certificate of an OpenSSH server, or of the
// Proxy that answers for it.
type OpenSSHHostRequest struct {
	// ID and Name are those of the server's resource.
	ID, Name string
	// Proxy is the id of the Proxy that the key belongs to; empty for the server's own.
	Proxy string
	// SSHKey is in wire format.
	SSHKey []byte
	// Principals are more names and addresses of the server. Whether it may have them
	// was decided before. A Proxy has none.
	Principals []string
	TTL        time.Duration
}

// OpenSSHHost signs it with the host authority, and returns it in wire format.
func (s *Signer) OpenSSHHost(req OpenSSHHostRequest) ([]byte, error) {
	id := identity.Identity{Cluster: s.cluster, Host: &identity.Host{
		ID: req.ID, Name: req.Name, Roles: []types.SystemRole{types.RoleNode}, OpenSSH: true, Proxy: req.Proxy,
	}}
	if err := s.checkRequest(&id); err != nil {
		return nil, err
	}
	if limit := maxSSHHostTTL(id.Host); req.TTL <= 0 || req.TTL > limit {
		return nil, fault.Invalid("host certificate of %s asked for, at most %s are given", req.TTL, limit)
	}
	if req.Proxy != "" && len(req.Principals) > 0 {
		return nil, fault.Invalid("a Proxy answers for an OpenSSH server by its name and id, and by no other name")
	}
	key, err := keys.ParsePublicSSH(req.SSHKey)
	if err != nil {
		return nil, err
	}
	if s.ownKey(nil, key) {
		return nil, fault.Denied("certificate for the key of a certificate authority asked for")
	}
	names, err := hostNames(&id, req.Principals)
	if err != nil {
		return nil, err
	}
	from, to, err := s.validity(s.host, req.TTL)
	if err != nil {
		return nil, err
	}
	return s.makeSSH(s.host, &id, &ssh.Certificate{
		Key: key, ValidPrincipals: names, ValidAfter: uint64(from.Unix()), ValidBefore: uint64(to.Unix()),
	})
}

// OpenSSHLoginRequest asks for the certificate of one login to an OpenSSH server.
type OpenSSHLoginRequest struct {
	// User is the name that the server writes to its log, Login the one account that
	// the certificate is good for.
	User, Login string
	// SSHKey is in wire format.
	SSHKey []byte
	// Sources are the addresses that the login comes from; at least one.
	Sources []netip.Addr
	TTL     time.Duration
	// What the server may let the session do.
	PermitPTY             bool
	PermitPortForwarding  bool
	PermitAgentForwarding bool
	PermitX11Forwarding   bool
}

// maxSources bounds the addresses that a login may come from.
const maxSources = 16

// OpenSSHLogin signs it with the openssh authority and returns it in wire format. It
// names nobody as the cluster's own certificates do, so that no reader of those takes
// it for one.
func (s *Signer) OpenSSHLogin(req OpenSSHLoginRequest) ([]byte, error) {
	if s.openssh == nil {
		return nil, fault.Unsupported("the cluster has no certificate authority of type %s: start the Auth Service again, which makes it", TypeOpenSSH)
	}
	if req.TTL <= 0 || req.TTL > MaxOpenSSHLoginTTL {
		return nil, fault.Invalid("certificate of %s for a login asked for, at most %s are given", req.TTL, MaxOpenSSHLoginTTL)
	}
	user := identity.Identity{Cluster: s.cluster, User: &identity.User{Name: req.User, Logins: []string{req.Login}}}
	if err := user.Check(); err != nil {
		return nil, err
	}
	key, err := keys.ParsePublicSSH(req.SSHKey)
	if err != nil {
		return nil, err
	}
	if s.ownKey(nil, key) {
		return nil, fault.Denied("certificate for the key of a certificate authority asked for")
	}
	if len(req.Sources) == 0 || len(req.Sources) > maxSources {
		return nil, fault.Invalid("a login comes from 1 to %d addresses, not from %d", maxSources, len(req.Sources))
	}
	var sources []string
	for _, a := range req.Sources {
		if a = a.Unmap().WithZone(""); !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return nil, fault.Invalid("address %q cannot be where a login comes from", a)
		}
		sources = append(sources, netip.PrefixFrom(a, a.BitLen()).String())
	}
	now := s.now()
	cert := &ssh.Certificate{
		CertType: ssh.UserCert, Key: key, KeyId: req.User, ValidPrincipals: []string{req.Login},
		ValidAfter: uint64(now.Add(-backdate).Unix()), ValidBefore: uint64(now.Add(req.TTL).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{sourceAddress: strings.Join(sources, ",")}, Extensions: map[string]string{}},
	}
	for name, on := range map[string]bool{
		permitPTY: req.PermitPTY, permitPorts: req.PermitPortForwarding, permitAgent: req.PermitAgentForwarding,
		permitX11: req.PermitX11Forwarding,
	} {
		if on {
			cert.Extensions[name] = ""
		}
	}
	if err := signSSH(s.openssh, cert); err != nil {
		return nil, err
	}
	if err := s.checkLogin(cert); err != nil {
		return nil, err
	}
	return cert.Marshal(), nil
}

// checkLogin is the last look at what the openssh authority signed.
func (s *Signer) checkLogin(cert *ssh.Certificate) error {
	if err := checkShape(cert); err != nil {
		return err
	}
	if err := checkExtensions(cert); err != nil {
		return err
	}
	if !sameSSH(cert.SignatureKey, s.openssh.PublicKey()) || len(cert.ValidPrincipals) != 1 || cert.CertType != ssh.UserCert {
		return fault.Invalid("certificate was not handed out: it is not one for a login")
	}
	return nil
}

// OpenSSHKeys returns the keys that OpenSSH servers trust for logins, the active ones
// first, as lines of the file that their TrustedUserCAKeys names.
func (t *Trust) OpenSSHKeys() []string {
	out := make([]string, 0, len(t.openssh.ssh))
	for _, key := range t.openssh.ssh {
		out = append(out, authorizedKey(key))
	}
	return out
}

// OpenSSHServerKey returns the check of an SSH client for the OpenSSH server of the id:
// a host certificate of the cluster for the server's own key. seen is told when it ends.
func (t *Trust) OpenSSHServerKey(id string, seen func(expires time.Time)) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		got, err := t.verifySSHHost(key, id, time.Now())
		if err != nil {
			return err
		}
		if h := got.Host; !h.OpenSSH || h.Proxy != "" || h.ID != id {
			return fault.Unauthenticated("host certificate of %q is not that of the OpenSSH server %q", h.ID, id)
		}
		seen(got.Expires)
		return nil
	}
}

// VerifySSHUserFrom is VerifySSHUser for a certificate that is used from the address.
func (t *Trust) VerifySSHUserFrom(key ssh.PublicKey, login string, from netip.AddrPort, now time.Time) (*identity.Identity, error) {
	return t.verifySSHUser(key, login, net.TCPAddrFromAddrPort(from), now)
}

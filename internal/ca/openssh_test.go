package ca_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

const proxyID = "11111111-2222-4333-8444-555555555555"

// opensshWorld is a world whose cluster has an openssh authority.
func opensshWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, cluster)
	w.cas = append(w.cas, must(ca.Generate(keystore.Software(), cluster, ca.TypeOpenSSH, w.now)))
	w.load(t)
	return w
}

func (w *world) opensshHost(t *testing.T, change func(*ca.OpenSSHHostRequest)) (*ssh.Certificate, error) {
	t.Helper()
	req := ca.OpenSSHHostRequest{ID: hostID, Name: "Db1", SSHKey: w.ssh.PublicKey().Marshal(), TTL: time.Hour}
	if change != nil {
		change(&req)
	}
	wire, err := w.signer.OpenSSHHost(req)
	if err != nil {
		return nil, err
	}
	return ca.ParseSSHCertificate(wire)
}

func toProxy(r *ca.OpenSSHHostRequest) { r.Proxy = proxyID }

func TestOpenSSHHostCertificates(t *testing.T) {
	w := opensshWorld(t)
	server, err := w.opensshHost(t, func(r *ca.OpenSSHHostRequest) {
		r.Principals, r.TTL = []string{"10.0.0.7", "db1.example.net"}, ca.MaxOpenSSHServerTTL
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{hostID + "." + cluster, hostID, "db1", "db1." + cluster, "10.0.0.7", "db1.example.net"}; !slices.Equal(server.ValidPrincipals, want) {
		t.Errorf("names of the server = %v, want %v", server.ValidPrincipals, want)
	}
	standIn, err := w.opensshHost(t, toProxy)
	if err != nil {
		t.Fatal(err)
	}
	_, agent := w.host(t, types.RoleNode, nil)

	check := func(name string, err error, good bool) {
		t.Helper()
		if (err == nil) != good || err != nil && !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("%s = %v, want accepted: %v", name, err, good)
		}
	}
	user := func(cert *ssh.Certificate, role types.SystemRole, names ...string) error {
		return w.trust.HostKeyCallback(role, names...)("", nil, cert)
	}
	proxy := func(cert *ssh.Certificate, id string) error {
		return w.trust.OpenSSHServerKey(id, func(time.Time) {})("", nil, cert)
	}
	// What users believe: a Proxy that answers for exactly this server.
	check("Proxy for the server, to a user", user(standIn, types.RoleNode, "db1", hostID), true)
	check("Proxy for the server, under another name", user(standIn, types.RoleNode, "db2"), false)
	check("Proxy for the server, by another id", user(standIn, types.RoleNode, "db1", proxyID), false)
	check("Proxy for the server, as a Proxy", user(standIn, types.RoleProxy, "db1"), false)
	check("the server, to a user", user(server, types.RoleNode, "db1"), false)
	// What Proxies believe: the server itself.
	check("the server, to a Proxy", proxy(server, hostID), true)
	check("another server, to a Proxy", proxy(server, proxyID), false)
	check("a Proxy, to a Proxy", proxy(standIn, hostID), false)
	check("an agent of the same id, to a Proxy", proxy(agent, hostID), false)
	// What everybody else believes: neither. They are no process of the cluster.
	for name, cert := range map[string]*ssh.Certificate{"server": server, "standIn": standIn} {
		_, err := w.trust.VerifySSHHost(cert, hostID, w.now)
		check(name+" as a host", err, false)
		for _, role := range []types.SystemRole{types.RoleProxy, types.RoleAuth} {
			check(name+" as "+string(role), w.trust.AnyHostKeyCallback(role)("", nil, cert), false)
		}
	}
	// Time.
	w.now = w.now.Add(2 * time.Hour)
	short, err := w.opensshHost(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if short.ValidAfter < uint64(time.Now().Unix()) {
		t.Fatal("the test's clock does not move")
	}
	check("a certificate of later", proxy(short, hostID), false)
}

func TestOpenSSHHostRequestsThatAreRefused(t *testing.T) {
	w := opensshWorld(t)
	for name, change := range map[string]func(*ca.OpenSSHHostRequest){
		"two_years":            func(r *ca.OpenSSHHostRequest) { r.TTL = 2 * ca.MaxOpenSSHServerTTL },
		"no_time":              func(r *ca.OpenSSHHostRequest) { r.TTL = 0 },
		"proxy_for_a_day":      func(r *ca.OpenSSHHostRequest) { toProxy(r); r.TTL = 24 * time.Hour },
		"proxy_with_names":     func(r *ca.OpenSSHHostRequest) { toProxy(r); r.Principals = []string{"db2"} },
		"id_of_another":        func(r *ca.OpenSSHHostRequest) { r.Principals = []string{proxyID} },
		"name_of_a_service":    func(r *ca.OpenSSHHostRequest) { r.Principals = []string{"proxy.teleport.cluster.local"} },
		"name_that_is_an_id":   func(r *ca.OpenSSHHostRequest) { r.Name = proxyID },
		"many_names_in_one":    func(r *ca.OpenSSHHostRequest) { r.Principals = []string{"a,b"} },
		"no_key":               func(r *ca.OpenSSHHostRequest) { r.SSHKey = nil },
		"key_of_the_authority": func(r *ca.OpenSSHHostRequest) { r.SSHKey = authorityKey(t, w.cas[2]).Marshal() },
		"proxy_without_id":     func(r *ca.OpenSSHHostRequest) { r.Proxy = "a b" },
	} {
		t.Run(name, func(t *testing.T) {
			if cert, err := w.opensshHost(t, change); err == nil {
				t.Errorf("got a certificate for %v", cert.ValidPrincipals)
			}
		})
	}
}

func (w *world) login(change func(*ca.OpenSSHLoginRequest)) ([]byte, error) {
	req := ca.OpenSSHLoginRequest{
		User: "alice", Login: "root", SSHKey: w.ssh.PublicKey().Marshal(), Sources: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.7")},
		TTL: 3 * time.Minute, PermitPTY: true, PermitAgentForwarding: true,
	}
	if change != nil {
		change(&req)
	}
	return w.signer.OpenSSHLogin(req)
}

func TestOpenSSHLogin(t *testing.T) {
	w := opensshWorld(t)
	cert := must(ca.ParseSSHCertificate(must(w.login(nil))))
	if cert.KeyId != "alice" || !slices.Equal(cert.ValidPrincipals, []string{"root"}) || cert.CriticalOptions["source-address"] != "192.0.2.7/32" {
		t.Errorf("certificate = %q for %v from %q", cert.KeyId, cert.ValidPrincipals, cert.CriticalOptions)
	}
	if life := time.Duration(cert.ValidBefore-cert.ValidAfter) * time.Second; life > 5*time.Minute {
		t.Errorf("it lives for %s", life)
	}
	if _, pty := cert.Extensions["permit-pty"]; !pty || len(cert.Extensions) != 2 {
		t.Errorf("extensions = %v", cert.Extensions)
	}
	if lines := w.trust.OpenSSHKeys(); len(lines) != 1 || !strings.HasPrefix(lines[0], "ssh-ed25519 ") {
		t.Errorf("keys to trust = %q", lines)
	} else if key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(lines[0])); err != nil || string(key.Marshal()) != string(cert.SignatureKey.Marshal()) {
		t.Errorf("the key to trust did not sign: %v", err)
	}
	// No agent believes it, whatever it is asked as.
	if id, err := w.trust.VerifySSHUserFrom(cert, "root", netip.MustParseAddrPort("192.0.2.7:1"), w.now); err == nil {
		t.Errorf("the cluster itself believes it: %v", id.User)
	}
	for name, change := range map[string]func(*ca.OpenSSHLoginRequest){
		"no_sources":       func(r *ca.OpenSSHLoginRequest) { r.Sources = nil },
		"any_source":       func(r *ca.OpenSSHLoginRequest) { r.Sources = []netip.Addr{netip.IPv4Unspecified()} },
		"invalid_source":   func(r *ca.OpenSSHLoginRequest) { r.Sources = []netip.Addr{{}} },
		"no_login":         func(r *ca.OpenSSHLoginRequest) { r.Login = "" },
		"two_logins":       func(r *ca.OpenSSHLoginRequest) { r.Login = "root,admin" },
		"hour":             func(r *ca.OpenSSHLoginRequest) { r.TTL = time.Hour },
		"no_time":          func(r *ca.OpenSSHLoginRequest) { r.TTL = 0 },
		"unprintable_user": func(r *ca.OpenSSHLoginRequest) { r.User = "a\nb" },
		"key_of_authority": func(r *ca.OpenSSHLoginRequest) { r.SSHKey = authorityKey(t, w.cas[1]).Marshal() },
	} {
		if wire, err := w.login(change); err == nil || wire != nil {
			t.Errorf("%s: got a certificate", name)
		}
	}
	if _, err := newWorld(t, cluster).login(nil); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("a cluster without the authority: %v", err)
	}
}

// A certificate that is bound to an address is good from there only.
func TestVerifySSHUserFrom(t *testing.T) {
	w := opensshWorld(t)
	_, cert := w.user(t, func(r *ca.UserRequest) { r.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	for addr, good := range map[string]bool{"192.0.2.9:5": true, "192.0.3.9:5": false} {
		if _, err := w.trust.VerifySSHUserFrom(cert, "root", netip.MustParseAddrPort(addr), w.now); (err == nil) != good {
			t.Errorf("from %s: %v, want accepted: %v", addr, err, good)
		}
	}
	if _, err := w.trust.VerifySSHUserFrom(cert, "root", netip.AddrPort{}, w.now); err == nil {
		t.Error("from nowhere: accepted")
	}
}

func TestAuthoritiesShareNoKey(t *testing.T) {
	w := opensshWorld(t)
	w.cas[2].GetSpec().GetActiveKeys().GetSsh()[0] = w.cas[1].GetSpec().GetActiveKeys().GetSsh()[0]
	if _, err := ca.NewTrust(w.cas); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "same SSH key") {
		t.Errorf("trust in an openssh authority with the key of users = %v", err)
	}
}

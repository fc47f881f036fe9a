package ca_test

import (
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// fakeKey is a key of somebody else's making that claims to be the authority.
type fakeKey struct {
	ssh.PublicKey
}

func (fakeKey) Verify([]byte, *ssh.Signature) error { return nil }

// TestVerifySSHRefuses is the corpus of SSH certificates that must not be
// believed, most of them signed by a real authority key that was misused.
func TestVerifySSHRefuses(t *testing.T) {
	w, twin, foreign := newWorld(t, cluster), newWorld(t, cluster), newWorld(t, "evil.com")
	_, _, hostKey := authoritySigners(t, w.cas[0])
	_, _, userKey := authoritySigners(t, w.cas[1])
	_, good := w.user(t, nil)
	_, goodHost := w.host(t, types.RoleNode, nil)
	_, twinUser := twin.user(t, nil)
	_, foreignUser := foreign.user(t, nil)
	forgeSSH := func(by ssh.Signer, from *ssh.Certificate, change func(*ssh.Certificate)) *ssh.Certificate {
		c := *from
		c.Extensions = map[string]string{}
		for k, v := range from.Extensions {
			c.Extensions[k] = v
		}
		if change != nil {
			change(&c)
		}
		if err := c.SignCert(rand.Reader, by); err != nil {
			t.Fatal(err)
		}
		return &c
	}
	changed := func(f func(*ssh.Certificate)) *ssh.Certificate { c := *good; f(&c); return &c }

	for name, key := range map[string]ssh.PublicKey{
		"nil":                    nil,
		"nil_certificate":        (*ssh.Certificate)(nil),
		"plain_key":              w.ssh.PublicKey(),
		"authority_key":          userKey.PublicKey(),
		"host_certificate":       goodHost,
		"user_by_host_authority": forgeSSH(hostKey, good, nil),
		"user_by_own_key":        forgeSSH(w.ssh, good, nil),
		"twin_cluster":           twinUser,
		"foreign_cluster":        foreignUser,
		"names_foreign_cluster":  forgeSSH(userKey, foreignUser, nil),
		"empty_principals":       forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = nil }),
		"comma_in_principal":     forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"deploy,root"} }),
		"comma_among_principals": forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root", "a,b"} }),
		"blank_principal":        forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root", ""} }),
		"other_principal":        forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"alice"} }),
		"principal_in_capitals":  forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"ROOT"} }),
		"wildcard_principal":     forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"*"} }),
		"no_end":                 forgeSSH(userKey, good, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }),
		"force_command":          forgeSSH(userKey, good, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "true"} }),
		"unknown_option":         forgeSSH(userKey, good, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x@y": ""} }),
		"source_unknown_here":    forgeSSH(userKey, good, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "0.0.0.0/0"} }),
		"unknown_extension":      forgeSSH(userKey, good, func(c *ssh.Certificate) { c.Extensions["teleport-admin@teleport"] = `"x"` }),
		"other_key_id":           forgeSSH(userKey, good, func(c *ssh.Certificate) { c.KeyId = "bob" }),
		"unknown_type":           forgeSSH(userKey, good, func(c *ssh.Certificate) { c.CertType = 7 }),
		"host_type_by_user_ca":   forgeSSH(userKey, goodHost, nil),
		"nested_certificate":     changed(func(c *ssh.Certificate) { c.Key = good }),
		"nested_twice":           changed(func(c *ssh.Certificate) { c.Key = &ssh.Certificate{Key: good} }),
		"signed_by_certificate":  changed(func(c *ssh.Certificate) { c.SignatureKey = good }),
		"certificate_as_ca_key": changed(func(c *ssh.Certificate) {
			c.SignatureKey = &ssh.Certificate{Key: userKey.PublicKey(), SignatureKey: userKey.PublicKey(), Signature: good.Signature}
		}),
		"ca_key_claimed":   changed(func(c *ssh.Certificate) { c.SignatureKey = fakeKey{w.ssh.PublicKey()} }),
		"ca_key_nested":    changed(func(c *ssh.Certificate) { c.SignatureKey = &ssh.Certificate{Key: good} }),
		"no_signature":     changed(func(c *ssh.Certificate) { c.Signature = nil }),
		"no_signature_key": changed(func(c *ssh.Certificate) { c.SignatureKey = nil }),
		"no_key":           changed(func(c *ssh.Certificate) { c.Key = nil }),
		"other_signature":  changed(func(c *ssh.Certificate) { c.Signature = forgeSSH(w.ssh, good, nil).Signature }),
		"other_serial":     changed(func(c *ssh.Certificate) { c.Serial++ }),
		"longer":           changed(func(c *ssh.Certificate) { c.ValidBefore++ }),
		"more_principals":  changed(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root", "alice", "bob"} }),
	} {
		t.Run(name, func(t *testing.T) {
			id, err := w.trust.VerifySSHUser(key, "root", w.now)
			if id != nil || !errors.Is(err, fault.ErrUnauthenticated) && !errors.Is(err, fault.ErrDenied) {
				t.Errorf("VerifySSHUser = %+v, %v; want a refusal", id, err)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
	hosts := map[string]ssh.PublicKey{
		"user_certificate":       good,
		"host_by_user_authority": forgeSSH(userKey, goodHost, nil),
		"host_by_own_key":        forgeSSH(w.ssh, goodHost, nil),
		"empty_principals":       forgeSSH(hostKey, goodHost, func(c *ssh.Certificate) { c.ValidPrincipals = nil }),
		"comma_in_principal":     forgeSSH(hostKey, goodHost, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"web1,db1", "web1"} }),
		"wildcard_principal":     forgeSSH(hostKey, goodHost, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"web1", "*"} }),
		"source_address":         forgeSSH(hostKey, goodHost, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "0.0.0.0/0"} }),
		"plain_key":              w.ssh.PublicKey(),
	}
	for name, key := range hosts {
		t.Run("host_"+name, func(t *testing.T) {
			if id, err := w.trust.VerifySSHHost(key, "web1", w.now); id != nil || !errors.Is(err, fault.ErrUnauthenticated) {
				t.Errorf("VerifySSHHost = %+v, %v; want ErrUnauthenticated", id, err)
			}
		})
	}
	for _, name := range []string{"", "web2", "web", "web1.", "web1,web2", "*"} {
		if id, err := w.trust.VerifySSHHost(goodHost, name, w.now); id != nil || !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("VerifySSHHost(%q) = %+v, %v; want ErrUnauthenticated", name, id, err)
		}
	}
	for _, login := range []string{"", "Root", "root,alice", "bob"} {
		if id, err := w.trust.VerifySSHUser(good, login, w.now); id != nil || !errors.Is(err, fault.ErrDenied) {
			t.Errorf("VerifySSHUser(%q) = %+v, %v; want ErrDenied", login, id, err)
		}
	}
	if id, err := w.trust.VerifySSHUser(good, "root", w.now); err != nil || id.User.Name != "alice" {
		t.Errorf("VerifySSHUser of a good certificate = %+v, %v", id, err)
	}
}

// conn is what an SSH server knows of its client.
type conn struct {
	ssh.ConnMetadata
	user string
	addr net.Addr
}

func (c conn) User() string         { return c.user }
func (c conn) RemoteAddr() net.Addr { return c.addr }

func TestAuthenticateSSH(t *testing.T) {
	w := newWorld(t, cluster)
	_, bound := w.user(t, func(r *ca.UserRequest) {
		r.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	})
	_, free := w.user(t, nil)
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for _, tc := range []struct {
		name string
		key  ssh.PublicKey
		addr net.Addr
		ok   bool
	}{
		{"inside", bound, tcp("10.1.2.3:22"), true},
		{"inside_v6", bound, tcp("[2001:db8::1]:22"), true},
		{"inside_mapped", bound, &net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3"), Port: 22}, true},
		{"outside", bound, tcp("192.168.1.1:22"), false},
		{"no_address", bound, nil, false},
		{"unix_socket", bound, &net.UnixAddr{Name: "10.1.2.3"}, false},
		{"not_bound", free, nil, true},
		{"plain_key", w.ssh.PublicKey(), tcp("10.1.2.3:22"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, permissions, err := w.trust.AuthenticateSSH(conn{user: "root", addr: tc.addr}, tc.key, w.now)
			if (err == nil) != tc.ok {
				t.Fatalf("AuthenticateSSH = %+v, %v; want success: %v", id, err, tc.ok)
			}
			if err != nil {
				return
			}
			if _, ok := permissions.Extensions["permit-pty"]; !ok || tc.key == bound && permissions.CriticalOptions["source-address"] == "" {
				t.Errorf("permissions = %+v, want the certificate's own", permissions)
			}
		})
	}
}

func TestHostKeyCallback(t *testing.T) {
	w := newWorld(t, cluster)
	has := func(roles ...types.SystemRole) func(*ca.HostRequest) {
		return func(r *ca.HostRequest) { r.Identity.Host.Roles = roles }
	}
	const id = hostID
	for _, tc := range []struct {
		name    string
		service types.SystemRole
		change  func(*ca.HostRequest)
		wanted  types.SystemRole
		names   []string
		ok, any bool
	}{
		{"service", types.RoleNode, nil, types.RoleNode, []string{"web1", id}, true, true},
		{"any_case_with_cluster", types.RoleNode, nil, types.RoleNode, []string{"WEB1." + cluster, id + "." + cluster}, true, true},
		{"process_with_the_role", "", has(types.RoleNode), types.RoleNode, []string{"web1", id}, true, true},
		{"process_without_the_role", "", has(types.RoleProxy), types.RoleNode, []string{"web1", id}, false, false},
		{"other_service_of_the_process", types.RoleProxy, nil, types.RoleNode, []string{"web1", id}, false, false},
		{"first_name_only", types.RoleNode, nil, types.RoleNode, []string{"web1", "web2"}, false, true},
		{"second_name_only", types.RoleNode, nil, types.RoleNode, []string{"web2", id}, false, true},
		{"empty_name", types.RoleNode, nil, types.RoleNode, []string{"web1", ""}, false, true},
		{"no_name", types.RoleNode, nil, types.RoleNode, nil, false, true},
		{"no_role", types.RoleNode, nil, "", []string{"web1"}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, cert := w.host(t, tc.service, tc.change)
			if err := w.trust.HostKeyCallback(tc.wanted, tc.names...)("", nil, cert); (err == nil) != tc.ok || err != nil && !errors.Is(err, fault.ErrUnauthenticated) {
				t.Errorf("HostKeyCallback = %v, want success: %v", err, tc.ok)
			}
			if err := w.trust.AnyHostKeyCallback(tc.wanted)("", nil, cert); (err == nil) != tc.any {
				t.Errorf("AnyHostKeyCallback = %v, want success: %v", err, tc.any)
			}
		})
	}
	for name, key := range map[string]ssh.PublicKey{"plain_key": w.ssh.PublicKey(), "nil": nil, "nil_certificate": (*ssh.Certificate)(nil), "no_principals": &ssh.Certificate{}} {
		if err := w.trust.AnyHostKeyCallback(types.RoleNode)("", nil, key); !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("%s: AnyHostKeyCallback = %v, want ErrUnauthenticated", name, err)
		}
	}
}

package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

func user() *identity.Identity {
	return &identity.Identity{Cluster: "example.com", User: &identity.User{
		Name: "alice@example.com", Roles: []string{"access", "editor"}, Logins: []string{"root", "alice"},
		Traits: map[string][]string{"team": {"red", "blü <b>"}, "none": {}}, MFADevice: "6f1c0e7d-4b0a",
	}}
}

// forApp and forDatabase are certificates that are good for one resource.
func forApp(change func(*identity.AppRoute)) *identity.Identity {
	id := user()
	id.User.Logins = nil
	id.User.App = &identity.AppRoute{Name: "grafana", PublicAddr: "grafana.example.com", SessionID: "6f1c0e7d-4b0a"}
	if change != nil {
		change(id.User.App)
	}
	return id
}

func forDatabase(change func(*identity.DatabaseRoute)) *identity.Identity {
	id := user()
	id.User.Logins = nil
	id.User.Database = &identity.DatabaseRoute{Service: "pg-1", Protocol: "postgres", User: "alice@\"x", Name: "main db", Roles: []string{"reader", "writer"}}
	if change != nil {
		change(id.User.Database)
	}
	return id
}

func host() *identity.Identity {
	return &identity.Identity{Cluster: "example.com", Host: &identity.Host{
		ID: "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f", Name: "web1", Generation: 3,
		Roles: []types.SystemRole{types.RoleNode, types.RoleProxy}, Service: types.RoleProxy,
	}}
}

func TestRoundTripTLS(t *testing.T) {
	process := host()
	process.Host.Service = ""
	bare := &identity.Identity{Cluster: "c", User: &identity.User{Name: "nobody"}}
	for name, id := range map[string]*identity.Identity{
		"user": user(), "host": host(), "process": process, "bare": bare, "app": forApp(nil), "db": forDatabase(nil),
		"app_bare": forApp(func(a *identity.AppRoute) { *a = identity.AppRoute{Name: "grafana"} }),
		"db_bare":  forDatabase(func(d *identity.DatabaseRoute) { *d = identity.DatabaseRoute{Service: "pg", Protocol: "postgres"} }),
	} {
		t.Run(name, func(t *testing.T) {
			cert := sign(t, encode(t, id))
			got, err := identity.FromTLS(cert)
			if err != nil {
				t.Fatal(err)
			}
			want := *id
			want.Issued, want.Expires = cert.NotBefore, cert.NotAfter
			if d := cmp.Diff(&want, got); d != "" {
				t.Errorf("FromTLS(EncodeTLS(id)) (-want +got):\n%s", d)
			}
			for _, e := range cert.Extensions {
				if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 9999, 2, 1}) && e.Critical {
					t.Error("the extension is critical: other readers would refuse the certificate")
				}
			}
		})
	}
}

func TestRoundTripSSH(t *testing.T) {
	bare := &identity.Identity{Cluster: "c", User: &identity.User{Name: "bob", Logins: []string{"bob"}}}
	for name, id := range map[string]*identity.Identity{"user": user(), "host": host(), "bare": bare} {
		t.Run(name, func(t *testing.T) {
			c := sshCert(t, id)
			got, err := identity.FromSSH(c)
			if err != nil {
				t.Fatal(err)
			}
			want := *id
			want.Issued, want.Expires = time.Unix(1000, 0).UTC(), time.Unix(2000, 0).UTC()
			if d := cmp.Diff(&want, got); d != "" {
				t.Errorf("FromSSH(EncodeSSH(id)) (-want +got):\n%s", d)
			}
		})
	}
}

// TestCheck holds what no certificate may say against both encoders.
func TestCheck(t *testing.T) {
	u, h := func(f func(*identity.User)) *identity.Identity { id := user(); f(id.User); return id },
		func(f func(*identity.Host)) *identity.Identity { id := host(); f(id.Host); return id }
	both := user()
	both.Host = host().Host
	cluster := func(c string) *identity.Identity { id := user(); id.Cluster = c; return id }
	for name, id := range map[string]*identity.Identity{
		"nil":              nil,
		"nobody":           {Cluster: "c"},
		"both":             both,
		"no_cluster":       cluster(""),
		"cluster_newline":  cluster("a\nb"),
		"cluster_wildcard": cluster("*.example.com"),
		"cluster_address":  cluster("127.0.0.1"),
		"cluster_dot":      cluster("example.com."),
		"cluster_dash":     cluster("-x"),
		"cluster_long":     cluster(strings.Repeat("a.", 127) + "a"),
		"no_user":          u(func(u *identity.User) { u.Name = "" }),
		"user_escape":      u(func(u *identity.User) { u.Name = "a\x1b[2J" }),
		"user_not_utf8":    u(func(u *identity.User) { u.Name = "a\xff" }),
		"user_bidi":        u(func(u *identity.User) { u.Name = "a\u202eb" }),
		"user_long":        u(func(u *identity.User) { u.Name = strings.Repeat("a", 257) }),
		"login_comma":      u(func(u *identity.User) { u.Logins = []string{"deploy,root"} }),
		"device_escape":    u(func(u *identity.User) { u.MFADevice = "a\x1b[2J" }),
		"device_long":      u(func(u *identity.User) { u.MFADevice = strings.Repeat("a", 65) }),
		"login_space":      u(func(u *identity.User) { u.Logins = []string{"root "} }),
		"login_empty":      u(func(u *identity.User) { u.Logins = []string{""} }),
		"login_dash":       u(func(u *identity.User) { u.Logins = []string{"-oProxyCommand"} }),
		"login_nul":        u(func(u *identity.User) { u.Logins = []string{"root\x00"} }),
		"login_newline":    u(func(u *identity.User) { u.Logins = []string{"root\n"} }),
		"login_wildcard":   u(func(u *identity.User) { u.Logins = []string{"*"} }),
		"login_twice":      u(func(u *identity.User) { u.Logins = []string{"a", "a"} }),
		"login_dot":        u(func(u *identity.User) { u.Logins = []string{"."} }),
		"login_unicode":    u(func(u *identity.User) { u.Logins = []string{"rооt"} }),
		"role_empty":       u(func(u *identity.User) { u.Roles = []string{""} }),
		"role_twice":       u(func(u *identity.User) { u.Roles = []string{"a", "a"} }),
		"role_newline":     u(func(u *identity.User) { u.Roles = []string{"a\nb"} }),
		"trait_key":        u(func(u *identity.User) { u.Traits = map[string][]string{"": {"a"}} }),
		"trait_value":      u(func(u *identity.User) { u.Traits = map[string][]string{"a": {"\x07"}} }),
		"trait_many":       u(func(u *identity.User) { u.Traits = map[string][]string{"a": make([]string, 500)} }),
		"no_host_id":       h(func(h *identity.Host) { h.ID = "" }),
		"host_id_dot":      h(func(h *identity.Host) { h.ID = "a.b" }),
		"host_id_path":     h(func(h *identity.Host) { h.ID = "../x" }),
		"host_name_comma":  h(func(h *identity.Host) { h.Name = "a,b" }),
		"host_name_space":  h(func(h *identity.Host) { h.Name = "a b" }),
		"host_reserved":    h(func(h *identity.Host) { h.Name = "Auth.Teleport.Cluster.Local" }),
		"host_address":     h(func(h *identity.Host) { h.Name = "10.0.0.1" }),
		"no_roles":         h(func(h *identity.Host) { h.Roles, h.Service = nil, "" }),
		"role_unknown":     h(func(h *identity.Host) { h.Roles = []types.SystemRole{"Root", types.RoleProxy} }),
		"role_case":        h(func(h *identity.Host) { h.Roles = []types.SystemRole{"node", types.RoleProxy} }),
		"role_repeated":    h(func(h *identity.Host) { h.Roles = []types.SystemRole{types.RoleProxy, types.RoleProxy} }),
		"service_not_held": h(func(h *identity.Host) { h.Service = types.RoleAuth }),
		"app_login":        u(func(u *identity.User) { u.App = &identity.AppRoute{Name: "a"} }),
		"db_login":         u(func(u *identity.User) { u.Database = &identity.DatabaseRoute{Service: "a", Protocol: "tls"} }),
		"app_and_db": u(func(u *identity.User) {
			u.Logins, u.App, u.Database = nil, &identity.AppRoute{Name: "a"}, &identity.DatabaseRoute{Service: "a", Protocol: "tls"}
		}),
		"app_no_name":     forApp(func(a *identity.AppRoute) { a.Name = "" }),
		"app_name":        forApp(func(a *identity.AppRoute) { a.Name = "a.b" }),
		"app_addr":        forApp(func(a *identity.AppRoute) { a.PublicAddr = "a b" }),
		"app_addr_ip":     forApp(func(a *identity.AppRoute) { a.PublicAddr = "10.0.0.1" }),
		"app_session":     forApp(func(a *identity.AppRoute) { a.SessionID = "../x" }),
		"db_no_service":   forDatabase(func(d *identity.DatabaseRoute) { d.Service = "" }),
		"db_service":      forDatabase(func(d *identity.DatabaseRoute) { d.Service = "a/b" }),
		"db_no_protocol":  forDatabase(func(d *identity.DatabaseRoute) { d.Protocol = "" }),
		"db_user_escape":  forDatabase(func(d *identity.DatabaseRoute) { d.User = "a\x1b[2J" }),
		"db_name_newline": forDatabase(func(d *identity.DatabaseRoute) { d.Name = "a\nb" }),
		"db_user_long":    forDatabase(func(d *identity.DatabaseRoute) { d.User = strings.Repeat("a", 257) }),
		"db_role_empty":   forDatabase(func(d *identity.DatabaseRoute) { d.Roles = []string{""} }),
		"db_role_twice":   forDatabase(func(d *identity.DatabaseRoute) { d.Roles = []string{"a", "a"} }),
		"db_roles_many":   forDatabase(func(d *identity.DatabaseRoute) { d.Roles = make([]string, 129) }),
	} {
		t.Run(name, func(t *testing.T) {
			if err := id.Check(); !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrLimit) {
				t.Errorf("Check = %v, want ErrInvalid or ErrLimit", err)
			}
			if err := id.EncodeTLS(&x509.Certificate{}); err == nil {
				t.Error("EncodeTLS = nil, want an error")
			}
			if err := id.EncodeSSH(&ssh.Certificate{}); err == nil {
				t.Error("EncodeSSH = nil, want an error")
			}
		})
	}
}

func TestEncodeLimit(t *testing.T) {
	id := user()
	id.User.Traits = map[string][]string{}
	for i := range 20 {
		id.User.Traits[fmt.Sprint(i)] = []string{strings.Repeat("x", 1000)}
	}
	if err := id.EncodeTLS(&x509.Certificate{}); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("EncodeTLS of 20 kB = %v, want ErrLimit", err)
	}
	if err := id.EncodeSSH(&ssh.Certificate{}); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("EncodeSSH of 20 kB = %v, want ErrLimit", err)
	}
}

func TestEncodeSSHWithoutLogins(t *testing.T) {
	id := user()
	id.User.Logins = nil
	if err := id.EncodeSSH(&ssh.Certificate{}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("EncodeSSH of a user without logins = %v, want ErrInvalid", err)
	}
}

// TestRouted: a certificate for one resource says so, and is no SSH certificate.
func TestRouted(t *testing.T) {
	var nobody *identity.User
	if nobody.Routed() || user().User.Routed() || !forApp(nil).User.Routed() || !forDatabase(nil).User.Routed() {
		t.Error("Routed is wrong")
	}
	for _, id := range []*identity.Identity{forApp(nil), forDatabase(nil)} {
		if err := id.EncodeSSH(&ssh.Certificate{}); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("EncodeSSH of a routed identity = %v, want ErrInvalid", err)
		}
	}
}

func TestFromTLSRefuses(t *testing.T) {
	payload := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte(s) }
	}
	good := string(encode(t, user()).ExtraExtensions[0].Value)
	for name, change := range map[string]func(*x509.Certificate){
		"no_extension":  func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"empty":         payload(""),
		"garbage":       payload("\x30\x00"),
		"null":          payload("null"),
		"space":         payload(good + " "),
		"trailing":      payload(good + good),
		"unknown_field": payload(strings.Replace(good, `"v":1`, `"v":1,"admin":true`, 1)),
		"repeated":      payload(strings.Replace(good, `"v":1`, `"v":1,"v":1`, 1)),
		"field_case":    payload(strings.Replace(good, `"cluster"`, `"Cluster"`, 1)),
		"escaped":       payload(strings.Replace(good, `"root"`, `"\u0072oot"`, 1)),
		"version":       payload(strings.Replace(good, `"v":1`, `"v":2`, 1)),
		"both":          payload(strings.Replace(good, `"user":`, `"host":{"id":"a","name":"b","roles":["Node"]},"user":`, 1)),
		"other_user":    payload(strings.Replace(good, `"alice@example.com"`, `"root"`, 1)),
		"long":          payload(good + strings.Repeat(" ", 20<<10)),
		"deep":          payload(strings.Repeat("[", 10000)),
		"common_name":   func(c *x509.Certificate) { c.Subject.CommonName = "bob" },
		"more_roles":    func(c *x509.Certificate) { c.Subject.Organization = append(c.Subject.Organization, "admin") },
		"fewer_roles":   func(c *x509.Certificate) { c.Subject.Organization = nil },
		"more_subject":  func(c *x509.Certificate) { c.Subject.Country = []string{"XX"} },
		"authority":     func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			template := encode(t, user())
			change(template)
			if id, err := identity.FromTLS(sign(t, template)); err == nil {
				t.Errorf("FromTLS = %+v, want an error", id)
			}
		})
	}
	if _, err := identity.FromTLS(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("FromTLS(nil) = %v, want ErrInvalid", err)
	}
	twice := sign(t, encode(t, user()))
	twice.Extensions = append(twice.Extensions, twice.Extensions...)
	if _, err := identity.FromTLS(twice); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("FromTLS with the extension twice = %v, want ErrInvalid", err)
	}
}

func TestFromSSHRefuses(t *testing.T) {
	set := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.Extensions[name] = value }
	}
	for name, change := range map[string]func(*ssh.Certificate){
		"no_cluster":     func(c *ssh.Certificate) { delete(c.Extensions, "teleport-cluster@teleport") },
		"no_user":        func(c *ssh.Certificate) { delete(c.Extensions, "teleport-user@teleport") },
		"no_principals":  func(c *ssh.Certificate) { c.ValidPrincipals = nil },
		"comma":          func(c *ssh.Certificate) { c.ValidPrincipals = []string{"deploy,root"} },
		"key_id":         func(c *ssh.Certificate) { c.KeyId = "bob" },
		"type":           func(c *ssh.Certificate) { c.CertType = 3 },
		"as_host":        func(c *ssh.Certificate) { c.CertType = ssh.HostCert },
		"unknown_ours":   set("teleport-admin@teleport", `"yes"`),
		"host_extension": set("teleport-host@teleport", `{"id":"a","name":"b","roles":["Node"]}`),
		"bare_user":      set("teleport-user@teleport", "alice@example.com"),
		"empty_roles":    set("teleport-roles@teleport", "[]"),
		"null_roles":     set("teleport-roles@teleport", "null"),
		"spaced_roles":   set("teleport-roles@teleport", `["access", "editor"]`),
		"null_traits":    set("teleport-traits@teleport", "null"),
		"trailing":       set("teleport-user@teleport", `"alice@example.com"""`),
		"no_end":         func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity },
		"huge_start":     func(c *ssh.Certificate) { c.ValidAfter = 1 << 63 },
	} {
		t.Run(name, func(t *testing.T) {
			c := sshCert(t, user())
			change(c)
			if id, err := identity.FromSSH(c); err == nil {
				t.Errorf("FromSSH = %+v, want an error", id)
			}
		})
	}
	if _, err := identity.FromSSH(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("FromSSH(nil) = %v, want ErrInvalid", err)
	}
	c := sshCert(t, user())
	c.Extensions["permit-pty"] = ""
	c.Extensions["something@example.com"] = "x"
	if _, err := identity.FromSSH(c); err != nil {
		t.Errorf("FromSSH with foreign extensions = %v, want nil", err)
	}
}

func TestNames(t *testing.T) {
	if got := identity.ServerName(types.RoleAuth); got != "auth.teleport.cluster.local" {
		t.Errorf("ServerName(Auth) = %q", got)
	}
	for name, want := range map[string]bool{
		"auth.teleport.cluster.local": true, "AUTH.TELEPORT.CLUSTER.LOCAL.": true, "teleport.cluster.local": true,
		"x.y.teleport.cluster.local": true, "teleport.cluster.local.example.com": false, "myteleport.cluster.local": false, "": false,
	} {
		if got := identity.ReservedName(name); got != want {
			t.Errorf("ReservedName(%q) = %v, want %v", name, got, want)
		}
	}
	for _, ok := range []string{"web1", "Web_1.example.com", "a-b", strings.Repeat("a", 63)} {
		if err := identity.CheckHostname(ok); err != nil {
			t.Errorf("CheckHostname(%q) = %v, want nil", ok, err)
		}
	}
	if user().Name() != "alice@example.com" || host().Name() != host().Host.ID || (*identity.Identity)(nil).Name() != "" {
		t.Error("Name is not the user's name or the host's id")
	}
	var none *identity.Host
	if none.Has(types.RoleNode) || none.Serves(types.RoleNode) || !host().Host.Has(types.RoleNode) || host().Host.Serves(types.RoleNode) {
		t.Error("Has or Serves is wrong")
	}
}

func FuzzFromTLS(f *testing.F) {
	for _, id := range []*identity.Identity{user(), host(), forApp(nil), forDatabase(nil)} {
		c := &x509.Certificate{}
		if err := id.EncodeTLS(c); err != nil {
			f.Fatal(err)
		}
		f.Add(c.ExtraExtensions[0].Value, c.Subject.CommonName)
	}
	f.Fuzz(func(t *testing.T, value []byte, name string) {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		c.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 9999, 2, 1}, Value: value}}
		// The subject cannot be guessed, so let it fit whatever was read.
		for range 2 {
			id, err := identity.FromTLS(c)
			if err == nil {
				again := &x509.Certificate{}
				if err := id.EncodeTLS(again); err != nil || string(again.ExtraExtensions[0].Value) != string(value) {
					t.Errorf("accepted %q is written differently (%v)", value, err)
				}
			}
			c.Subject.Organization = []string{"access", "editor"}
			c.Subject.Names = make([]pkix.AttributeTypeAndValue, 3)
		}
	})
}

func FuzzFromSSH(f *testing.F) {
	for _, id := range []*identity.Identity{user(), host()} {
		c := &ssh.Certificate{ValidAfter: 1, ValidBefore: 2}
		if err := id.EncodeSSH(c); err != nil {
			f.Fatal(err)
		}
		e := c.Extensions
		f.Add(c.CertType, c.KeyId, strings.Join(c.ValidPrincipals, "\n"), e["teleport-cluster@teleport"], e["teleport-user@teleport"],
			e["teleport-roles@teleport"], e["teleport-traits@teleport"], e["teleport-host@teleport"])
	}
	f.Fuzz(func(t *testing.T, typ uint32, keyID, principals, cluster, user, roles, traits, host string) {
		c := &ssh.Certificate{CertType: typ, KeyId: keyID, ValidAfter: 1, ValidBefore: 2, Permissions: ssh.Permissions{Extensions: map[string]string{}}}
		if principals != "" {
			c.ValidPrincipals = strings.Split(principals, "\n")
		}
		for name, v := range map[string]string{"cluster": cluster, "user": user, "roles": roles, "traits": traits, "host": host} {
			if v != "" {
				c.Extensions["teleport-"+name+"@teleport"] = v
			}
		}
		id, err := identity.FromSSH(c)
		if err != nil {
			return
		}
		again := &ssh.Certificate{}
		if err := id.EncodeSSH(again); err != nil {
			t.Fatalf("accepted identity cannot be written: %v", err)
		}
		if d := cmp.Diff(c.Extensions, again.Extensions); d != "" {
			t.Errorf("accepted identity is written differently:\n%s", d)
		}
	})
}

func encode(t *testing.T, id *identity.Identity) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(1000, 0).UTC(), NotAfter: time.Unix(2000, 0).UTC()}
	if err := id.EncodeTLS(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func sign(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// sshCert returns the certificate as it looks after having been sent.
func sshCert(t *testing.T, id *identity.Identity) *ssh.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.Certificate{Key: signer.PublicKey(), ValidAfter: 1000, ValidBefore: 2000}
	if err := id.EncodeSSH(c); err != nil {
		t.Fatal(err)
	}
	if err := c.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	parsed, err := ssh.ParsePublicKey(c.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return parsed.(*ssh.Certificate)
}

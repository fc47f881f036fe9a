package ca_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// TestVerifyTLSRefuses is the corpus of certificates that must not be believed,
// most of them signed by a real authority key that was misused.
func TestVerifyTLSRefuses(t *testing.T) {
	w, twin, foreign := newWorld(t, cluster), newWorld(t, cluster), newWorld(t, "evil.com")
	hostCA, hostKey, _ := authoritySigners(t, w.cas[0])
	userCA, userKey, _ := authoritySigners(t, w.cas[1])
	u, h := w.userRequest().Identity, w.hostRequest(types.RoleAuth).Identity
	template := func(id identity.Identity, usage ...x509.ExtKeyUsage) *x509.Certificate {
		c := &x509.Certificate{
			NotBefore: w.now.Add(-time.Minute), NotAfter: w.now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: usage, BasicConstraintsValid: true,
		}
		if err := id.EncodeTLS(c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	client := x509.ExtKeyUsageClientAuth
	byHost := func(c *x509.Certificate) *x509.Certificate { return forge(t, c, hostCA, w.tls.Public(), hostKey) }
	byUser := func(c *x509.Certificate) *x509.Certificate { return forge(t, c, userCA, w.tls.Public(), userKey) }
	otherCluster := u
	otherCluster.Cluster = "evil.com"
	critical := template(u, client)
	critical.ExtraExtensions = append(critical.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 9999, 9, 9}, Critical: true, Value: []byte{5, 0}})
	plain := template(u, client)
	plain.ExtraExtensions = nil
	subordinate := template(u, client)
	subordinate.IsCA, subordinate.KeyUsage = true, x509.KeyUsageCertSign
	middle := byUser(subordinate)
	good, _ := w.user(t, nil)
	service, _ := w.host(t, types.RoleAuth, nil)
	twinUser, _ := twin.user(t, nil)
	twinHost, _ := twin.host(t, "", nil)
	foreignUser, _ := foreign.user(t, nil)
	broken := *good
	broken.Signature = slices.Clone(good.Signature)
	broken.Signature[len(broken.Signature)-1] ^= 1

	for name, chain := range map[string][]*x509.Certificate{
		"empty":                     nil,
		"nil":                       {nil},
		"user_by_host_authority":    {byHost(template(u, client))},
		"host_by_user_authority":    {byUser(template(h, client, x509.ExtKeyUsageServerAuth))},
		"twin_cluster_user":         {twinUser},
		"twin_cluster_host":         {twinHost},
		"twin_brings_its_authority": {twinHost, parsePEM(t, twin.cas[0].GetSpec().GetActiveKeys().GetTls()[0].GetCert())},
		"foreign_cluster":           {foreignUser},
		"names_foreign_cluster":     {byUser(template(otherCluster, client))},
		"authority_itself":          {userCA},
		"self_signed":               {forge(t, template(u, client), template(u, client), w.tls.Public(), w.tls)},
		"leaf_used_as_authority":    {forge(t, template(u, client), service, w.tls.Public(), w.tls), service},
		"subordinate_authority":     {forge(t, template(u, client), middle, w.tls.Public(), w.tls), middle},
		"no_usage_for_clients":      {byUser(template(u, x509.ExtKeyUsageServerAuth))},
		"no_identity":               {byUser(plain)},
		"unknown_critical":          {byUser(critical)},
		"broken_signature":          {&broken},
		"good_one_comes_second":     {twinUser, good},
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := w.trust.VerifyTLS(chain, w.now); !errors.Is(err, fault.ErrUnauthenticated) || id != nil {
				t.Errorf("VerifyTLS = %+v, %v; want ErrUnauthenticated", id, err)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
	if _, err := w.trust.VerifyTLS([]*x509.Certificate{good}, w.now); err != nil {
		t.Errorf("VerifyTLS of a good certificate = %v", err)
	}
}

func TestTimes(t *testing.T) {
	w := newWorld(t, cluster)
	cert, sshCert := w.user(t, nil)
	hostCert, hostSSH := w.host(t, types.RoleNode, nil)
	for _, tc := range []struct {
		name, code string
		shift      time.Duration
	}{
		{"early", ca.CodeNotYetValid, -2 * time.Hour},
		{"late", ca.CodeExpired, 8 * 24 * time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := w.now.Add(tc.shift)
			errs := map[string]error{}
			_, errs["tls_user"] = w.trust.VerifyTLS([]*x509.Certificate{cert}, now)
			_, errs["tls_host"] = w.trust.VerifyTLS([]*x509.Certificate{hostCert}, now)
			_, errs["ssh_user"] = w.trust.VerifySSHUser(sshCert, "root", now)
			_, errs["ssh_host"] = w.trust.VerifySSHHost(hostSSH, hostID, now)
			for name, err := range errs {
				if fault.Code(err) != tc.code || !errors.Is(err, fault.ErrUnauthenticated) || !strings.Contains(err.Error(), "clock") {
					t.Errorf("%s = %v (code %q), want code %q and a word on the clock", name, err, fault.Code(err), tc.code)
				}
			}
		})
	}
	if _, err := w.trust.VerifySSHUser(sshCert, "root", w.now.Add(-59*time.Second)); err != nil {
		t.Errorf("a clock 59 s behind = %v, want nil", err)
	}
}

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

// TestRotation shows that trust in an old and a new key overlap, and end.
func TestRotation(t *testing.T) {
	before, after := newWorld(t, cluster), newWorld(t, cluster)
	var both []*typesv1.CertAuthority
	for i := range after.cas {
		c := proto.CloneOf(after.cas[i])
		c.Spec.AdditionalTrustedKeys = proto.CloneOf(before.cas[i].GetSpec().GetActiveKeys())
		both = append(both, c)
	}
	trust := must(ca.NewTrust(both))
	for name, w := range map[string]*world{"old": before, "new": after} {
		cert, sshCert := w.user(t, nil)
		if _, err := trust.VerifyTLS([]*x509.Certificate{cert}, w.now); err != nil {
			t.Errorf("VerifyTLS of the %s key = %v", name, err)
		}
		if _, err := trust.VerifySSHUser(sshCert, "root", w.now); err != nil {
			t.Errorf("VerifySSHUser of the %s key = %v", name, err)
		}
		sig := must(w.signer.SignAsHostCA([32]byte{1}))
		if err := trust.VerifyHostSignature([32]byte{1}, sig); err != nil {
			t.Errorf("VerifyHostSignature of the %s key = %v", name, err)
		}
	}
	if got, want := trust.Pins(), append(after.trust.Pins(), before.trust.Pins()...); !slices.Equal(got, want) {
		t.Errorf("Pins = %v, want %v", got, want)
	}
	if got := len(trust.KnownHosts("*.example.com")); got != 2 {
		t.Errorf("KnownHosts has %d lines, want 2", got)
	}
	old, oldSSH := before.user(t, nil)
	if _, err := after.trust.VerifyTLS([]*x509.Certificate{old}, before.now); !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("VerifyTLS after the rotation = %v, want ErrUnauthenticated", err)
	}
	if _, err := after.trust.VerifySSHUser(oldSSH, "root", before.now); !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("VerifySSHUser after the rotation = %v, want ErrUnauthenticated", err)
	}
}

func TestIdentify(t *testing.T) {
	w := newWorld(t, cluster)
	if id, err := w.trust.Identify(tls.ConnectionState{}); id != nil || err != nil {
		t.Errorf("Identify without certificate = %+v, %v; want nothing", id, err)
	}
	cert, _ := w.user(t, nil)
	if id, err := w.trust.Identify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); err != nil || id.User.Name != "alice" {
		t.Errorf("Identify = %+v, %v", id, err)
	}
}

func TestKnownHosts(t *testing.T) {
	w := newWorld(t, cluster)
	key := w.cas[0].GetSpec().GetActiveKeys().GetSsh()[0].GetPublicKey()
	for _, tc := range []struct {
		name     string
		patterns []string
		want     []string
	}{
		{"none", nil, nil},
		{"two", []string{"*.example.com", "proxy.example.net"}, []string{"@cert-authority *.example.com,proxy.example.net " + key}},
		{"port", []string{"[*.example.com]:3022"}, []string{"@cert-authority [*.example.com]:3022 " + key}},
		{"hostile", []string{"a b", "a\n@cert-authority *", "a,b", "", "!x", "#x"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := w.trust.KnownHosts(tc.patterns...); !slices.Equal(got, tc.want) {
				t.Errorf("KnownHosts(%q) = %q, want %q", tc.patterns, got, tc.want)
			}
		})
	}
}

func TestPins(t *testing.T) {
	w := newWorld(t, cluster)
	pin := w.trust.Pins()[0]
	if got, err := ca.ParsePins([]string{" " + strings.ToUpper(pin) + "\n", pin}); err != nil || !slices.Equal(got, []string{pin}) {
		t.Errorf("ParsePins = %v, %v; want %v", got, err, []string{pin})
	}
	if got, err := ca.ParsePins(nil); err != nil || got != nil {
		t.Errorf("ParsePins(nil) = %v, %v; want nothing", got, err)
	}
	for _, bad := range []string{"", "sha256:", pin[:len(pin)-1], pin + "0", strings.TrimPrefix(pin, "sha256:"), "sha1:" + pin[7:], "sha256:" + strings.Repeat("g", 64), "*"} {
		if _, err := ca.ParsePins([]string{bad}); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("ParsePins(%q) = %v, want ErrInvalid", bad, err)
		}
	}
}

func FuzzParseSSHCertificate(f *testing.F) {
	w := newWorld(f, cluster)
	_, user := w.user(f, nil)
	_, host := w.host(f, types.RoleNode, nil)
	f.Add(user.Marshal())
	f.Add(host.Marshal())
	f.Fuzz(func(t *testing.T, wire []byte) {
		cert, err := ca.ParseSSHCertificate(wire)
		if err != nil {
			return
		}
		for _, own := range []*ssh.Certificate{user, host} {
			if slices.Equal(own.Marshal(), cert.Marshal()) {
				return
			}
		}
		if id, err := w.trust.VerifySSHUser(cert, "root", w.now); err == nil {
			t.Errorf("VerifySSHUser believes %x: %+v", wire, id)
		}
		if id, err := w.trust.VerifySSHHost(cert, hostID, w.now); err == nil {
			t.Errorf("VerifySSHHost believes %x: %+v", wire, id)
		}
	})
}

func FuzzVerifyTLS(f *testing.F) {
	w := newWorld(f, cluster)
	user, _ := w.user(f, nil)
	host, _ := w.host(f, types.RoleNode, nil)
	authority, key, _ := authoritySigners(f, w.cas[1])
	for _, c := range []*x509.Certificate{user, host} {
		for _, e := range c.Extensions {
			f.Add(e.Value, c.Subject.CommonName)
		}
	}
	// The fuzzer makes the identity, the real authority signs it: what is read back
	// is either refused or a user of this cluster.
	f.Fuzz(func(t *testing.T, value []byte, name string) {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: w.now, NotAfter: w.now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			Subject:         pkix.Name{CommonName: name, Organization: []string{"access"}},
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 9999, 2, 1}, Value: value}},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, authority, w.tls.Public(), key)
		if err != nil {
			return
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if id, err := w.trust.VerifyTLS([]*x509.Certificate{cert}, w.now); err == nil && (id.User == nil || id.Host != nil || id.Cluster != cluster || id.User.Name != name) {
			t.Errorf("VerifyTLS of %q = %+v", value, id)
		}
	})
}

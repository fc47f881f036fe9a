package ca_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
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

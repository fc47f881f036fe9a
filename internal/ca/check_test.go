package ca_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"maps"
	"net"
	"net/url"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// TestCheckTLS shows that the last look stops what a mistake in the signer would
// let through: each row changes one thing in a template that is otherwise good.
func TestCheckTLS(t *testing.T) {
	w := newWorld(t, cluster)
	hostCA, hostKey, _ := authoritySigners(t, w.cas[0])
	userCA, userKey, _ := authoritySigners(t, w.cas[1])
	other := must(keys.Generate(keys.ECDSAP256))
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, tc := range []struct {
		name   string
		host   bool
		change func(*x509.Certificate)
		ok     bool
	}{
		{"user", false, func(*x509.Certificate) {}, true},
		{"host", true, func(*x509.Certificate) {}, true},
		{"authority", false, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, false},
		{"signs_certificates", false, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, false},
		{"email", false, func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} }, false},
		{"uri", true, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, false},
		{"unknown_critical", false, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}, false},
		{"outlives_authority", false, func(c *x509.Certificate) { c.NotAfter = userCA.NotAfter.Add(time.Second) }, false},
		{"before_authority", false, func(c *x509.Certificate) { c.NotBefore = userCA.NotBefore.Add(-time.Second) }, false},
		{"no_time", false, func(c *x509.Certificate) { c.NotAfter = c.NotBefore }, false},
		{"user_serves", false, func(c *x509.Certificate) { c.ExtKeyUsage = both }, false},
		{"user_with_name", false, func(c *x509.Certificate) { c.DNSNames = []string{"web1"} }, false},
		{"user_with_address", false, func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, false},
		{"other_holder", false, func(c *x509.Certificate) { c.Subject.CommonName = "bob" }, false},
		{"host_too_long", true, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(8 * 24 * time.Hour) }, false},
		{"host_any_usage", true, func(c *x509.Certificate) { c.ExtKeyUsage = append(both, x509.ExtKeyUsageAny) }, false},
		{"host_signs_code", true, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, false},
		{"host_other_service", true, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "proxy.teleport.cluster.local") }, false},
		{"host_of_other_id", true, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "11111111-2222-4333-8444-555555555555") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, issuer, key := w.userRequest().Identity, userCA, userKey
			template := &x509.Certificate{
				NotBefore: w.now, NotAfter: w.now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: both[1:], BasicConstraintsValid: true,
			}
			if tc.host {
				id, issuer, key = w.hostRequest(types.RoleAuth).Identity, hostCA, hostKey
				template.ExtKeyUsage = both
				template.DNSNames = []string{hostID, "web1", identity.ServerName(types.RoleAuth)}
			}
			if err := id.EncodeTLS(template); err != nil {
				t.Fatal(err)
			}
			tc.change(template)
			cert := forge(t, template, issuer, w.tls.Public(), key)
			if err := ca.CheckTLS(cert, &id, issuer, w.tls.Public()); (err == nil) != tc.ok {
				t.Errorf("checkTLS = %v, want success: %v", err, tc.ok)
			}
			if err := ca.CheckTLS(cert, &id, issuer, other.Public()); err == nil {
				t.Error("checkTLS for another key = nil")
			}
			if err := ca.CheckTLS(cert, &id, must(x509.ParseCertificate(cert.Raw)), w.tls.Public()); err == nil {
				t.Error("checkTLS for another issuer = nil")
			}
			id.Cluster = "evil.com"
			if err := ca.CheckTLS(cert, &id, issuer, w.tls.Public()); err == nil {
				t.Error("checkTLS for another identity = nil")
			}
		})
	}
}

func TestCheckSSH(t *testing.T) {
	w := newWorld(t, cluster)
	_, _, hostKey := authoritySigners(t, w.cas[0])
	_, _, userKey := authoritySigners(t, w.cas[1])
	_, goodUser := w.user(t, nil)
	_, goodHost := w.host(t, types.RoleNode, nil)
	for _, tc := range []struct {
		name   string
		host   bool
		change func(*ssh.Certificate)
		ok     bool
	}{
		{"user", false, func(*ssh.Certificate) {}, true},
		{"host", true, func(*ssh.Certificate) {}, true},
		{"no_principals", false, func(c *ssh.Certificate) { c.ValidPrincipals = nil }, false},
		{"host_no_principals", true, func(c *ssh.Certificate) { c.ValidPrincipals = nil }, false},
		{"comma", false, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root,alice"} }, false},
		{"more_logins", false, func(c *ssh.Certificate) { c.ValidPrincipals = append([]string{"bob"}, c.ValidPrincipals...) }, false},
		{"no_end", false, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, false},
		{"force_command", false, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, false},
		{"x11", false, func(c *ssh.Certificate) { c.Extensions["permit-X11-forwarding"] = "" }, true},
		{"role_extension", false, func(c *ssh.Certificate) { c.Extensions["login@github.com"] = "alice" }, true},
		{"user_rc", false, func(c *ssh.Certificate) { c.Extensions["permit-user-rc"] = "" }, false},
		{"host_with_role_extension", true, func(c *ssh.Certificate) { c.Extensions["login@github.com"] = "" }, false},
		{"pty_with_value", false, func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "x" }, false},
		{"host_with_pty", true, func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "" }, false},
		{"host_option", true, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "0.0.0.0/0"} }, false},
		{"host_too_long", true, func(c *ssh.Certificate) { c.ValidBefore += 24 * 3600 }, false},
		{"host_other_service", true, func(c *ssh.Certificate) {
			c.ValidPrincipals = append([]string{"auth.teleport.cluster.local"}, c.ValidPrincipals...)
		}, false},
		{"host_of_other_id", true, func(c *ssh.Certificate) {
			c.ValidPrincipals = append([]string{"11111111-2222-4333-8444-555555555555.example.com"}, c.ValidPrincipals...)
		}, false},
		{"host_wildcard", true, func(c *ssh.Certificate) { c.ValidPrincipals = append([]string{"*"}, c.ValidPrincipals...) }, false},
		{"type", true, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, from, by := w.userRequest().Identity, goodUser, userKey
			if tc.host {
				id, from, by = w.hostRequest(types.RoleNode).Identity, goodHost, hostKey
			}
			c := *from
			c.Extensions = maps.Clone(from.Extensions)
			tc.change(&c)
			if err := c.SignCert(rand.Reader, by); err != nil {
				t.Fatal(err)
			}
			if err := ca.CheckSSH(c.Marshal(), &id, by.PublicKey(), w.ssh.PublicKey()); (err == nil) != tc.ok {
				t.Errorf("checkSSH = %v, want success: %v", err, tc.ok)
			}
			if err := ca.CheckSSH(c.Marshal(), &id, w.ssh.PublicKey(), w.ssh.PublicKey()); err == nil {
				t.Error("checkSSH by another authority = nil")
			}
			if err := ca.CheckSSH(c.Marshal(), &id, by.PublicKey(), by.PublicKey()); err == nil {
				t.Error("checkSSH for another key = nil")
			}
		})
	}
	for name, wire := range map[string][]byte{"plain_key": w.ssh.PublicKey().Marshal(), "empty": nil, "long": make([]byte, 100<<10)} {
		if _, err := ca.ParseSSHCertificate(wire); err == nil {
			t.Errorf("ParseSSHCertificate(%s) = nil", name)
		}
	}
}

package client_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
)

// hostCA returns the host authority among those of an answer, in a copy that may be
// changed.
func hostCA(certs *loginv1.UserCertificates) *typesv1.CertAuthority {
	for i, c := range certs.Authorities {
		if c.GetSpec().GetType() == ca.TypeHost {
			certs.Authorities[i] = proto.CloneOf(c)
			return certs.Authorities[i]
		}
	}
	return nil
}

// A Proxy that adds an authority of its own to what a login answers, so that it could
// pass for any server, is found out by whoever knows the cluster.
func TestLoginWithATamperingProxy(t *testing.T) {
	c, evil := clienttest.Start(t), clienttest.New(t)
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	foreign := hostCA(&loginv1.UserCertificates{Authorities: evil.Trust.Authorities()}).GetSpec().GetActiveKeys()
	var earlier *loginv1.UserCertificates
	tampers := map[string]func(*loginv1.UserCertificates){
		"more_tls": func(certs *loginv1.UserCertificates) {
			active := hostCA(certs).GetSpec().GetActiveKeys()
			active.Tls = append(active.Tls, foreign.GetTls()...)
		},
		"more_ssh": func(certs *loginv1.UserCertificates) {
			active := hostCA(certs).GetSpec().GetActiveKeys()
			active.Ssh = append(active.Ssh, foreign.GetSsh()...)
		},
		"additional": func(certs *loginv1.UserCertificates) {
			hostCA(certs).Spec.AdditionalTrustedKeys = foreign
		},
		"signed_by_its_own": func(certs *loginv1.UserCertificates) {
			hostCA(certs).Spec.AdditionalTrustedKeys = foreign
			certs.AuthoritiesSignatures, _ = evil.Signer.SignAsHostCA(ca.AuthoritiesDigest(certs.GetTls(), certs.GetAuthorities()))
		},
		"unsigned": func(certs *loginv1.UserCertificates) { certs.AuthoritiesSignatures = nil },
		"of_another_login": func(certs *loginv1.UserCertificates) {
			certs.Authorities, certs.AuthoritiesSignatures = earlier.GetAuthorities(), earlier.GetAuthoritiesSignatures()
		},
	}
	request := client.LoginRequest{User: "alice", Password: c.Login.Password, Code: c.Login.Code, Keys: keys}
	for ground, cfg := range map[string]client.ProxyConfig{
		"given_pin":              {Pins: c.Trust.Pins()},
		"earlier_login":          {Known: c.Trust.Pins()},
		"given_pin_and_insecure": {Pins: c.Trust.Pins(), Insecure: true},
	} {
		cfg.Addr = c.Addr
		p, err := client.ConnectProxy(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Login.Tamper = func(certs *loginv1.UserCertificates) { earlier = proto.CloneOf(certs) }
		if _, err := p.Login(t.Context(), request); err != nil {
			t.Fatalf("%s: Login() of an honest Proxy = %v", ground, err)
		}
		for name, tamper := range tampers {
			t.Run(ground+"/"+name, func(t *testing.T) {
				c.Login.Tamper = tamper
				_, err := p.Login(t.Context(), request)
				if !errors.Is(err, fault.ErrUnauthenticated) || !strings.Contains(err.Error(), "not signed by the cluster's host CA") {
					t.Errorf("Login() = %v, want a refusal", err)
				}
			})
		}
	}
}

// Another cluster in the place of the one that was known is refused, although the
// system vouches for its Proxy, and --ca-pin is the way to say that it is meant.
func TestLoginKnowsTheCluster(t *testing.T) {
	c, old := clienttest.Start(t), clienttest.New(t)
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	request := client.LoginRequest{User: "alice", Password: c.Login.Password, Code: c.Login.Code, Keys: keys}
	both := append(c.Trust.Pins(), old.Trust.Pins()...)
	for name, tt := range map[string]struct {
		cfg  client.ProxyConfig
		says string
	}{
		"known":                  {client.ProxyConfig{Known: both}, ""},
		"insecure_forgets":       {client.ProxyConfig{Known: old.Trust.Pins(), Insecure: true}, ""},
		"pin_over_earlier_login": {client.ProxyConfig{Known: old.Trust.Pins(), Pins: c.Trust.Pins()}, ""},
		"none_of_the_pins":       {client.ProxyConfig{Known: c.Trust.Pins(), Pins: old.Trust.Pins()}, "none of the CA pins"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Addr = c.Addr
			p, err := client.ConnectProxy(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Login(t.Context(), request)
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Login() = %v, want %q", err, tt.says)
			}
		})
	}
}

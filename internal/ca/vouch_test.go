package ca_test

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
)

// Every change of what a Trust is made of is another digest.
func TestAuthoritiesDigest(t *testing.T) {
	w, other := newWorld(t, cluster), newWorld(t, cluster)
	cert := []byte("certificate")
	want := ca.AuthoritiesDigest(cert, w.trust.Authorities())
	if got := ca.AuthoritiesDigest(cert, w.trust.Authorities()); got != want {
		t.Error("the digest of the same is not the same")
	}
	foreign := other.trust.Authorities()[0].GetSpec().GetActiveKeys()
	for name, change := range map[string]func(c *typesv1.CertAuthority){
		"type":    func(c *typesv1.CertAuthority) { c.Spec.Type = "db" },
		"cluster": func(c *typesv1.CertAuthority) { c.Spec.ClusterName = "evil" },
		"tls":     func(c *typesv1.CertAuthority) { c.Spec.ActiveKeys.Tls = foreign.GetTls() },
		"ssh":     func(c *typesv1.CertAuthority) { c.Spec.ActiveKeys.Ssh = foreign.GetSsh() },
		"no_ssh":  func(c *typesv1.CertAuthority) { c.Spec.ActiveKeys.Ssh = nil },
		"additional_tls": func(c *typesv1.CertAuthority) {
			c.Spec.AdditionalTrustedKeys = &typesv1.CertAuthorityKeys{Tls: foreign.GetTls()}
		},
		"additional_ssh": func(c *typesv1.CertAuthority) {
			c.Spec.AdditionalTrustedKeys = &typesv1.CertAuthorityKeys{Ssh: foreign.GetSsh()}
		},
		"moved": func(c *typesv1.CertAuthority) {
			c.Spec.AdditionalTrustedKeys, c.Spec.ActiveKeys = c.Spec.ActiveKeys, nil
		},
	} {
		list := w.trust.Authorities()
		list[0] = proto.CloneOf(list[0])
		change(list[0])
		if ca.AuthoritiesDigest(cert, list) == want {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	if ca.AuthoritiesDigest([]byte("another"), w.trust.Authorities()) == want {
		t.Error("the digest does not depend on the certificate")
	}
}

func TestVerifyPinned(t *testing.T) {
	w, other := newWorld(t, cluster), newWorld(t, cluster)
	digest := [32]byte{1}
	sigs := must(w.signer.SignAsHostCA(digest))
	for name, tt := range map[string]struct {
		trust *ca.Trust
		pins  []string
		good  bool
	}{
		"pinned":      {w.trust, w.trust.Pins(), true},
		"no_pins":     {w.trust, nil, true},
		"other_pins":  {w.trust, other.trust.Pins(), false},
		"other_trust": {other.trust, other.trust.Pins(), false},
		"one_of_pins": {w.trust, append(other.trust.Pins(), w.trust.Pins()...), true},
	} {
		if err := tt.trust.VerifyPinned(tt.pins, digest, sigs); (err == nil) != tt.good || err != nil && !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("%s: VerifyPinned = %v", name, err)
		}
	}
	// Trusting both is not enough: the signature has to be by the pinned one.
	both := proto.CloneOf(w.trust.Authorities()[0])
	both.Spec.AdditionalTrustedKeys = other.trust.Authorities()[0].GetSpec().GetActiveKeys()
	list := w.trust.Authorities()
	list[0] = both
	trust := must(ca.NewTrust(list))
	if err := trust.VerifyPinned(w.trust.Pins(), digest, must(other.signer.SignAsHostCA(digest))); !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("VerifyPinned of the other's signature = %v, want a refusal", err)
	}
	if err := trust.VerifyPinned(w.trust.Pins(), digest, sigs); err != nil {
		t.Errorf("VerifyPinned = %v", err)
	}
}

package login_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/login"
	"teleport/internal/types"
)

// TestOptionsOfCertificates has what the options of roles make of certificates.
func TestOptionsOfCertificates(t *testing.T) {
	e := newEnv(t)
	yes, no := true, false
	role := &typesv1.Role{Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: "bound"}, Spec: &typesv1.RoleSpec{
		Options: &typesv1.RoleOptions{
			PinSourceIp: &yes, PermitX11Forwarding: &yes, PortForwarding: &no,
			CertExtensions: []*typesv1.CertExtension{{Name: "login@github.com", Value: "{{internal.logins}}"}},
		},
		Allow: &typesv1.RoleConditions{Logins: []string{"{{internal.logins}}"}},
	}}
	must(t, e.store.Tx().Create(role).Commit(t.Context()))
	secret := e.person(t, "pinned", []string{"bound"}, "deploy")
	e.advance(90 * time.Second) // the code of the enrolment is used
	got, err := e.login(t.Context(), "pinned", password, login.Code(secret, e.now()))
	must(t, err)
	id := e.tlsIdentity(t, got.GetTls())
	cert, err := ca.ParseSSHCertificate(got.GetSsh())
	must(t, err)
	if id.User.SourceIP == "" || cert.CriticalOptions["source-address"] != id.User.SourceIP+"/32" {
		t.Errorf("source address %q, critical options %v, want the address of the login in both", id.User.SourceIP, cert.CriticalOptions)
	}
	permits := map[string]string{}
	for name, value := range cert.Extensions {
		if name == "login@github.com" || len(name) > 7 && name[:7] == "permit-" {
			permits[name] = value
		}
	}
	want := map[string]string{"permit-pty": "", "permit-X11-forwarding": "", "login@github.com": "deploy"}
	if d := cmp.Diff(want, permits); d != "" {
		t.Errorf("extensions (-want +got):\n%s", d)
	}
	// An administrator does not know the address.
	_, err = e.SignUser(admin(t.Context()), &userv1.SignUserRequest{User: "pinned", Keys: e.keys()})
	if !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), `a role of user "pinned" has pin_source_ip`) {
		t.Errorf("certificates signed for somebody else: %v, want it refused", err)
	}
}

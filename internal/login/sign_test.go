package login_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	loginv1 "teleport/api/login/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

func TestSourceLimit(t *testing.T) {
	e := newEnv(t)
	ctx := rpc.WithCaller(t.Context(), rpc.Caller{Addr: "203.0.113.7:99"})
	limited := 0
	for range 60 {
		_, err := e.Login(ctx, &loginv1.LoginRequest{User: "nobody", Password: "x", TotpCode: "000000", Keys: e.keys()})
		if errors.Is(err, fault.ErrLimit) {
			limited++
		}
	}
	if limited < 20 || limited > 30 {
		t.Errorf("%d of 60 attempts at once were too many, want about half", limited)
	}
	if _, err := e.GetInvitation(ctx, &loginv1.GetInvitationRequest{Token: "x"}); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("the limit does not hold for invitations: %v", err)
	}
	_, err := e.login(t.Context(), "nobody", "x", "000000")
	sameRefusal(t, err)
	e.advance(time.Minute)
	_, err = e.Login(ctx, &loginv1.LoginRequest{User: "nobody", Password: "x", TotpCode: "000000", Keys: e.keys()})
	sameRefusal(t, err)
}

// TestNoiseIsBounded floods the Auth Service with rubbish from everywhere: the
// audit log gets a sample and the count of the rest.
func TestNoiseIsBounded(t *testing.T) {
	e := newEnv(t)
	for range 1000 {
		_, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: "rubbish"})
		if !errors.Is(err, fault.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := len(e.events(t)); n < 100 || n > 200 {
		t.Errorf("%d events about 1000 attempts that cost nothing, want about 100", n)
	}
	e.advance(time.Minute)
	_, err := e.login(t.Context(), "", "", "")
	sameRefusal(t, err)
	events := e.events(t)
	if skipped := events[len(events)-1].GetFields().GetFields()["skipped_events"].GetNumberValue(); skipped < 800 {
		t.Errorf("the next event counts %v left out, want more than 800", skipped)
	}
}

func TestSignUser(t *testing.T) {
	e := newEnv(t)
	e.invite(t, newUser("bot", []string{"access"}, "deploy"))
	req := &userv1.SignUserRequest{User: "bot", Keys: e.keys(), Ttl: durationpb.New(time.Hour)}
	for name, ctx := range map[string]func() error{
		"anonymous": func() error { return second(e.SignUser(e.stranger(t.Context()), req)) },
		"access":    func() error { return second(e.SignUser(asUser(t.Context(), "eve", "access"), req)) },
		"auditor":   func() error { return second(e.SignUser(asUser(t.Context(), "eve", "auditor"), req)) },
		"host": func() error {
			return second(e.SignUser(rpc.WithCaller(t.Context(), rpc.Caller{Identity: &identity.Identity{Cluster: cluster, Host: &identity.Host{ID: "h", Name: "h", Roles: []types.SystemRole{types.RoleAuth}}}}), req))
		},
	} {
		if err := ctx(); !errors.Is(err, fault.ErrDenied) && !errors.Is(err, fault.ErrUnauthenticated) {
			t.Errorf("SignUser by %s: %v, want refused", name, err)
		}
	}
	if n := e.count(t, audit.CertCreate, "user", "bot"); n != 0 {
		t.Fatalf("%d certificates were made for those who may not", n)
	}
	for name, ctx := range map[string]func() (*userv1.SignUserResponse, error){
		"local administrator": func() (*userv1.SignUserResponse, error) { return e.SignUser(admin(t.Context()), req) },
		"ed":                  func() (*userv1.SignUserResponse, error) { return e.SignUser(asUser(t.Context(), "ed", "editor"), req) },
	} {
		resp, err := ctx()
		must(t, err)
		id := e.tlsIdentity(t, resp.GetCertificates().GetTls())
		if id.User.Name != "bot" || !cmp.Equal(id.User.Logins, []string{"deploy"}) || len(resp.GetCertificates().GetSsh()) == 0 {
			t.Errorf("%s got %+v", name, id.User)
		}
		// The authorities come signed, for this certificate.
		certs := resp.GetCertificates()
		trust, err := ca.NewTrust(certs.GetAuthorities())
		must(t, err)
		digest := ca.AuthoritiesDigest(certs.GetTls(), certs.GetAuthorities())
		if err := trust.VerifyPinned(trust.Pins()[:1], digest, certs.GetAuthoritiesSignatures()); err != nil {
			t.Errorf("%s got authorities whose signature is not good: %v", name, err)
		}
		if n := e.count(t, audit.CertCreate, "issued_to", name); n != 1 {
			t.Errorf("%d events about certificates for %s, want 1", n, name)
		}
	}
	if _, err := e.SignUser(admin(t.Context()), &userv1.SignUserRequest{User: "nobody", Keys: e.keys()}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("unknown user: %v, want not found", err)
	}
	if _, err := e.SignUser(admin(t.Context()), &userv1.SignUserRequest{User: "bot"}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("no keys: %v, want invalid", err)
	}
	e.broken.Store(true)
	if resp, err := e.SignUser(admin(t.Context()), req); err == nil || resp != nil {
		t.Errorf("certificates without their event: %v, %v", resp, err)
	}
}

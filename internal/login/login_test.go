package login_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/login"
	"teleport/internal/store"
	"teleport/internal/types"
)

func TestLogin(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root", "ubuntu")
	got, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	must(t, err)
	credential, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	device := credential.GetSpec().GetTotpDeviceId()
	if device == "" || e.count(t, audit.MFAAdd, "mfa_device_uuid", device) != 1 {
		t.Errorf("the device has the id %q, want one that its event names", device)
	}
	want := &identity.User{MFADevice: device, Name: "bob", Roles: []string{"access"}, Logins: []string{"root", "ubuntu"}, Traits: map[string][]string{"logins": {"root", "ubuntu"}}}
	if diff := cmp.Diff(want, e.tlsIdentity(t, got.GetTls()).User); diff != "" {
		t.Errorf("TLS certificate: %s", diff)
	}
	key, err := ssh.ParsePublicKey(got.GetSsh())
	must(t, err)
	id, err := e.trust.VerifySSHUser(key, "ubuntu", e.now())
	must(t, err)
	if diff := cmp.Diff(want, id.User); diff != "" {
		t.Errorf("SSH certificate: %s", diff)
	}
	if _, err := e.trust.VerifySSHUser(key, "eve", e.now()); err == nil {
		t.Error("the SSH certificate is good for a login that it does not name")
	}
	if life := got.GetExpires().AsTime().Sub(e.now()); life > 12*time.Hour || life < 12*time.Hour-time.Minute {
		t.Errorf("certificates live %v, want 12h", life)
	}
	var kinds []string
	for _, c := range got.GetAuthorities() {
		kinds = append(kinds, c.GetSpec().GetType())
		for _, pair := range c.GetSpec().GetActiveKeys().GetTls() {
			if len(pair.GetPrivateKey()) != 0 {
				t.Error("a private key of an authority left the Auth Service")
			}
		}
	}
	if diff := cmp.Diff([]string{ca.TypeHost, ca.TypeUser}, kinds); diff != "" {
		t.Errorf("authorities: %s", diff)
	}
	if got.GetUser() != "bob" || got.GetClusterName() != cluster || !cmp.Equal(got.GetRoles(), want.Roles) || !cmp.Equal(got.GetLogins(), want.Logins) {
		t.Errorf("certificates = %+v", got)
	}
	if n := e.count(t, audit.UserLogin, "user", "bob"); n != 1 {
		t.Errorf("%d login events, want 1", n)
	}
	if n := e.count(t, audit.CertCreate, "user", "bob"); n != 1 {
		t.Errorf("%d certificate events, want 1", n)
	}
}

func TestLoginWithoutLogins(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "ed", []string{"editor", "auditor"})
	got, err := e.login(t.Context(), "ed", password, login.Code(secret, e.now()))
	must(t, err)
	if len(got.GetSsh()) != 0 || len(got.GetLogins()) != 0 {
		t.Errorf("a user without logins got the SSH certificate of %q", got.GetLogins())
	}
	if id := e.tlsIdentity(t, got.GetTls()); id.User.Name != "ed" || len(id.User.Logins) != 0 {
		t.Errorf("identity = %+v", id.User)
	}
}

func TestLoginTTL(t *testing.T) {
	e := newEnv(t)
	short := &typesv1.Role{Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: "short"}, Spec: &typesv1.RoleSpec{Options: &typesv1.RoleOptions{MaxSessionTtl: "2h"}}}
	must(t, e.store.Tx().Create(short).Commit(t.Context()))
	plain := e.person(t, "plain", []string{"access"}, "root")
	limited := e.person(t, "limited", []string{"access", "short"}, "root")
	for _, tt := range []struct {
		name, user, secret string
		asked, want        time.Duration
	}{
		{"asked", "plain", plain, time.Hour, time.Hour},
		{"too_long", "plain", plain, 1000 * time.Hour, 30 * time.Hour},
		{"role_wins", "limited", limited, 8 * time.Hour, 2 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.advance(90 * time.Second)
			got, err := e.login(t.Context(), tt.user, password, login.Code(tt.secret, e.now()), tt.asked)
			must(t, err)
			if life := got.GetExpires().AsTime().Sub(e.now()); life > tt.want || life < tt.want-time.Minute {
				t.Errorf("certificates live %v, want %v", life, tt.want)
			}
		})
	}
	if _, err := e.login(t.Context(), "plain", password, "123456", -time.Hour); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("negative ttl: %v, want invalid", err)
	}
}

func TestUserExpiryEndsCertificates(t *testing.T) {
	e := newEnv(t)
	u := newUser("temp", []string{"access"}, "root")
	u.Metadata.Expires = durationFromNow(e, time.Hour)
	secret := e.enrol(t, e.invite(t, u), password)
	got, err := e.login(t.Context(), "temp", password, login.Code(secret, e.now()))
	must(t, err)
	if got.GetExpires().AsTime().After(u.Metadata.Expires.AsTime()) {
		t.Errorf("certificates until %v outlive the user until %v", got.GetExpires().AsTime(), u.Metadata.Expires.AsTime())
	}
}

func TestConstantAnswer(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	e.invite(t, newUser("invited", []string{"access"}))
	locked := e.person(t, "locked", []string{"access"})
	for range 5 {
		_, err := e.login(t.Context(), "locked", "wrong", "000000")
		sameRefusal(t, err)
	}
	before := len(e.reasons(t))
	code := func(s string) string { return login.Code(s, e.now()) }
	tests := []struct{ name, user, password, code, reason string }{
		{"unknown_user", "nobody", password, "123456", "unknown user or no password set"},
		{"not_enrolled", "invited", password, "123456", "unknown user or no password set"},
		{"wrong_password", "bob", "wrong", code(secret), "wrong password"},
		{"wrong_code", "bob", password, wrongCode(code(secret)), "wrong or used second factor"},
		{"both_wrong", "bob", "wrong", wrongCode(code(secret)), "wrong password"},
		{"locked_with_good_password", "locked", password, code(locked), "account is locked until"},
		{"malformed_user", "bob\n", password, "123456", "malformed"},
		{"password_as_user", "my secret password", password, "123456", "malformed"},
		{"no_password", "bob", "", "123456", "malformed"},
		{"long_password", "bob", strings.Repeat("x", 5000), "123456", "malformed"},
		{"letters_for_code", "bob", password, "abcdef", "malformed"},
		{"long_code", "bob", password, "1234567", "malformed"},
		{"other_case", "Bob", password, code(secret), "unknown user or no password set"},
	}
	for _, tt := range tests {
		_, err := e.login(t.Context(), tt.user, tt.password, tt.code)
		sameRefusal(t, err)
	}
	reasons := e.reasons(t)[before:]
	for i, tt := range tests {
		if i >= len(reasons) || !strings.HasPrefix(reasons[i], tt.reason) {
			t.Errorf("%s: the audit log has %q, want %q", tt.name, reasons[min(i, len(reasons)-1)], tt.reason)
		}
	}
	if n := e.count(t, audit.UserLoginFailure, "user", "my secret password"); n != 0 {
		t.Error("what was typed as the user name is in the audit log although it is no name")
	}
}

func wrongCode(code string) string {
	if code == "000000" {
		return "000001"
	}
	return "000000"
}

func TestCodeWorksOnce(t *testing.T) {
	e := newEnv(t)
	invitation := e.invite(t, newUser("bob", []string{"access"}, "root"))
	got, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: invitation})
	must(t, err)
	secret := got.GetTotpSecret()
	code := login.Code(secret, e.now())
	_, err = e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: invitation, Password: password, TotpCode: code})
	must(t, err)
	_, err = e.login(t.Context(), "bob", password, code)
	sameRefusal(t, err)
	next := login.Code(secret, e.now().Add(30*time.Second))
	_, err = e.login(t.Context(), "bob", password, next)
	must(t, err)
	_, err = e.login(t.Context(), "bob", password, next)
	sameRefusal(t, err)
	_, err = e.login(t.Context(), "bob", password, login.Code(secret, e.now().Add(-30*time.Second)))
	sameRefusal(t, err)
}

func TestCodeWorksOnceInParallel(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	code := login.Code(secret, e.now())
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := e.login(t.Context(), "bob", password, code); err == nil {
				wins.Add(1)
			} else {
				sameRefusal(t, err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("the code worked %d times, want 1", wins.Load())
	}
	if n := e.count(t, audit.UserLogin, "user", "bob"); n != 1 {
		t.Errorf("%d login events, want 1", n)
	}
	if n := len(e.reasons(t)); n != 99 {
		t.Errorf("%d failures in the audit log, want 99", n)
	}
}

func TestLockout(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	fail := func(n int) {
		t.Helper()
		for range n {
			_, err := e.login(t.Context(), "bob", "wrong password", "000000")
			sameRefusal(t, err)
		}
	}
	try := func() error {
		_, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
		return err
	}
	fail(4)
	must(t, try())
	e.advance(90 * time.Second)
	// A success clears what was before.
	fail(4)
	must(t, try())
	e.advance(90 * time.Second)
	fail(4)
	// Failures that are long ago do not count.
	e.advance(31 * time.Minute)
	fail(4)
	must(t, try())
	e.advance(90 * time.Second)
	fail(5)
	sameRefusal(t, try())
	e.advance(29 * time.Minute)
	sameRefusal(t, try())
	reasons := e.reasons(t)
	if last := reasons[len(reasons)-1]; !strings.HasPrefix(last, "account is locked until") {
		t.Errorf("the audit log has %q for a locked account", last)
	}
	e.advance(2 * time.Minute)
	must(t, try())
}

// TestLockoutInParallel guesses from many places at once: no more guesses count
// as tries than before the lock, whatever the order.
func TestLockoutInParallel(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			_, err := e.login(t.Context(), "bob", fmt.Sprintf("guess number %d", i), "000000")
			sameRefusal(t, err)
		})
	}
	wg.Wait()
	_, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	sameRefusal(t, err)
	wrong := 0
	for _, r := range e.reasons(t) {
		if strings.HasPrefix(r, "wrong password") {
			wrong++
		}
	}
	if wrong != 5 || len(e.reasons(t)) != 101 {
		t.Errorf("%d guesses were judged of %d failures, want 5 of 101", wrong, len(e.reasons(t)))
	}
}

func TestNoEventNoLogin(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	e.broken.Store(true)
	if got, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now())); err == nil || got != nil {
		t.Errorf("login without its event: %v, %v", got, err)
	}
	if _, err := e.login(t.Context(), "bob", "wrong password", "000000"); err == nil || errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("a failure that could not be counted was answered with %v", err)
	}
	e.broken.Store(false)
	must(t, second(e.login(t.Context(), "bob", password, login.Code(secret, e.now()))))
}

func second[T any](_ T, err error) error { return err }

func TestLoginNeedsAnExistingRole(t *testing.T) {
	e := newEnv(t)
	r := &typesv1.Role{Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: "brief"}, Spec: &typesv1.RoleSpec{}}
	must(t, e.store.Tx().Create(r).Commit(t.Context()))
	secret := e.person(t, "bob", []string{"brief"}, "root")
	both := e.person(t, "both", []string{"brief", "access"}, "root")
	must(t, e.store.Tx().Delete(types.KindRole, "brief", "").Commit(t.Context()))
	if _, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now())); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("login with a deleted role only: %v, want denied", err)
	}
	got, err := e.login(t.Context(), "both", password, login.Code(both, e.now()))
	must(t, err)
	if !cmp.Equal(got.GetRoles(), []string{"access"}) {
		t.Errorf("roles = %q, want those that exist", got.GetRoles())
	}
}

func TestDeletedUserCannotLogIn(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	must(t, e.store.Tx().Delete(types.KindUser, "bob", "").Commit(t.Context()))
	_, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	sameRefusal(t, err)
	// The name is given to somebody else: the old password is no way in.
	e.invite(t, newUser("bob", []string{"editor"}))
	e.advance(90 * time.Second)
	_, err = e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	sameRefusal(t, err)
	if _, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("the credential of a deleted user is still there: %v", err)
	}
}

func TestLoginKeys(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	for name, keys := range map[string]*loginv1.PublicKeys{
		"none": nil, "ssh_only": {Ssh: e.ssh}, "rubbish": {Tls: []byte("x")}, "ssh_rubbish": {Tls: e.tls, Ssh: []byte("x")},
	} {
		_, err := e.Login(e.stranger(t.Context()), &loginv1.LoginRequest{User: "bob", Password: password, TotpCode: login.Code(secret, e.now()), Keys: keys})
		if !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	resp, err := e.Login(e.stranger(t.Context()), &loginv1.LoginRequest{User: "bob", Password: password, TotpCode: login.Code(secret, e.now()), Keys: &loginv1.PublicKeys{Tls: e.tls}})
	must(t, err)
	if len(resp.GetCertificates().GetSsh()) != 0 {
		t.Error("an SSH certificate without an SSH key")
	}
}

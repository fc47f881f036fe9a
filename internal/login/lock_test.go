package login_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/login"
	"teleport/internal/store"
	"teleport/internal/types"
)

// lock makes a lock and returns what takes it away.
func (e *env) lock(t *testing.T, target *typesv1.LockTarget) (l *typesv1.Lock, unlock func()) {
	t.Helper()
	l = types.NewLock(target, "ask Eve", "admin", e.now(), time.Time{})
	must(t, e.store.Tx().Create(l).Commit(t.Context()))
	return l, func() {
		must(t, e.store.Tx().Delete(types.KindLock, l.GetMetadata().GetName(), "").Commit(t.Context()))
	}
}

// TestLockedUsersGetNoCertificates: who proved to be the user is told of the lock,
// nobody else is.
func TestLockedUsersGetNoCertificates(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	credential, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	for _, tt := range []struct {
		name   string
		target *typesv1.LockTarget
		// sign: what an administrator signs is refused as well.
		sign bool
	}{
		{"user", &typesv1.LockTarget{User: "bob"}, true},
		{"role", &typesv1.LockTarget{Role: "access"}, true},
		{"device", &typesv1.LockTarget{MfaDevice: credential.GetSpec().GetTotpDeviceId()}, false},
	} {
		l, unlock := e.lock(t, tt.target)
		got, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
		if got != nil || !errors.Is(err, fault.ErrDenied) || fault.Code(err) != access.CodeLocked || err.Error() != access.LockText(l) {
			t.Errorf("%s: login = %v, %v, want the lock", tt.name, got, err)
		}
		e.advance(90 * time.Second)
		if _, err := e.login(t.Context(), "bob", "wrong password", login.Code(secret, e.now())); err == nil || strings.Contains(err.Error(), "lock") {
			t.Errorf("%s: login with a wrong password = %v, want no word of the lock", tt.name, err)
		}
		_, err = e.SignUser(admin(t.Context()), &userv1.SignUserRequest{User: "bob", Keys: e.keys()})
		if tt.sign != (fault.Code(err) == access.CodeLocked) {
			t.Errorf("%s: SignUser = %v, refused: want %v", tt.name, err, tt.sign)
		}
		unlock()
		e.advance(90 * time.Second)
		if _, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now())); err != nil {
			t.Errorf("%s: login after the lock = %v", tt.name, err)
		}
		e.advance(90 * time.Second)
	}
	if n := e.count(t, audit.UserLoginFailure, "user", "bob"); n != 6 {
		t.Errorf("%d failed logins in the audit log, want 6", n)
	}
	// Locks about somebody else, or about more than is decided here.
	for _, target := range []*typesv1.LockTarget{{User: "eve"}, {User: "bob", Login: "root"}, {ServerId: "h-1"}} {
		_, unlock := e.lock(t, target)
		if _, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now())); err != nil {
			t.Errorf("login with the lock %v = %v", target, err)
		}
		unlock()
		e.advance(90 * time.Second)
	}
}

func TestLockedInvitation(t *testing.T) {
	e := newEnv(t)
	link := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: link})
	must(t, err)
	_, unlock := e.lock(t, &typesv1.LockTarget{User: "bob"})
	redeem := func() error {
		_, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{
			Token: link, Password: password, TotpCode: login.Code(inv.GetTotpSecret(), e.now()), Keys: e.keys(),
		})
		return err
	}
	if err := redeem(); fault.Code(err) != access.CodeLocked {
		t.Errorf("redeem of a locked user = %v, want the lock", err)
	}
	unlock()
	if err := redeem(); err != nil {
		t.Errorf("redeem after the lock = %v", err)
	}
}

// A credential of a version that had no ids of devices gets one at the next login.
func TestOldDevicesGetAnID(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "bob", []string{"access"}, "root")
	c, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	c.Spec.TotpDeviceId = ""
	must(t, e.store.Tx().Update(c).Commit(t.Context()))
	got, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	must(t, err)
	id := e.tlsIdentity(t, got.GetTls()).User.MFADevice
	c, err = store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	if id == "" || c.GetSpec().GetTotpDeviceId() != id {
		t.Errorf("the certificate names the device %q, the credential %q", id, c.GetSpec().GetTotpDeviceId())
	}
}

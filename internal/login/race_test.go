package login_test

import (
	"context"
	"errors"
	"testing"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/login"
	"teleport/internal/store"
	"teleport/internal/types"
)

// TestMeanwhile lets something happen between the decision and the writing of
// its outcome: the outcome is decided anew.
func TestMeanwhile(t *testing.T) {
	change := func(t *testing.T, e *env, f func(*typesv1.CredentialSpec)) {
		c, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
		must(t, err)
		f(c.GetSpec())
		must(t, e.store.Tx().Update(c).Commit(t.Context()))
	}
	tests := []struct {
		name string
		then func(t *testing.T, e *env)
		want bool
	}{
		{"user_deleted", func(t *testing.T, e *env) {
			must(t, e.store.Tx().Delete(types.KindUser, "bob", "").Commit(t.Context()))
		}, false},
		{"credential_deleted", func(t *testing.T, e *env) {
			must(t, e.store.Tx().Delete(types.KindCredential, "bob", "").Commit(t.Context()))
		}, false},
		{"password_changed", func(t *testing.T, e *env) {
			change(t, e, func(c *typesv1.CredentialSpec) { c.PasswordHash = "$argon2id$other" })
		}, false},
		{"locked", func(t *testing.T, e *env) {
			change(t, e, func(c *typesv1.CredentialSpec) { c.LockedUntil = durationFromNow(e, 1e12) })
		}, false},
		{"code_used", func(t *testing.T, e *env) {
			change(t, e, func(c *typesv1.CredentialSpec) { c.TotpLastStep = e.now().Unix()/30 + 1 })
		}, false},
		{"failure_counted", func(t *testing.T, e *env) {
			change(t, e, func(c *typesv1.CredentialSpec) { c.Failures = append(c.Failures, durationFromNow(e, 0)) })
		}, true},
		{"roles_changed", func(t *testing.T, e *env) {
			u, err := store.Get[*typesv1.User](t.Context(), e.store, types.KindUser, "bob")
			must(t, err)
			u.Spec.Roles = []string{"auditor"}
			must(t, e.store.Tx().Update(u).Commit(t.Context()))
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			secret := e.person(t, "bob", []string{"access"}, "root")
			then := func() { tt.then(t, e) }
			e.meanwhile.Store(&then)
			got, err := e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
			if !tt.want {
				sameRefusal(t, err)
				if n := len(e.reasons(t)); n != 1 {
					t.Errorf("%d failures in the audit log, want 1", n)
				}
				return
			}
			must(t, err)
			if tt.name == "roles_changed" && (len(got.GetRoles()) != 1 || got.GetRoles()[0] != "auditor" || len(got.GetLogins()) != 0) {
				t.Errorf("the certificate has the roles before the change: %v", got.GetRoles())
			}
			if n := e.count(t, audit.CertCreate, "user", "bob"); n != 1 {
				t.Errorf("%d certificate events, want 1", n)
			}
		})
	}
}

func TestRedeemMeanwhile(t *testing.T) {
	for name, then := range map[string]func(t *testing.T, e *env, token *typesv1.UserToken) error{
		"spent_by_wrong_codes": func(t *testing.T, e *env, token *typesv1.UserToken) error {
			token.Spec.Failures = 10
			return e.store.Tx().Update(token).Commit(t.Context())
		},
		"user_deleted": func(t *testing.T, e *env, _ *typesv1.UserToken) error {
			return e.store.Tx().Delete(types.KindUser, "bob", "").Commit(t.Context())
		},
		"revoked": func(t *testing.T, e *env, token *typesv1.UserToken) error {
			return e.store.Tx().Delete(types.KindUserToken, token.GetMetadata().GetName(), "").Commit(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
			token, err := store.Get[*typesv1.UserToken](t.Context(), e.store, types.KindUserToken, keys.TokenID(secret))
			must(t, err)
			f := func() { must(t, then(t, e, token)) }
			e.meanwhile.Store(&f)
			_, err = e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{
				Token: secret, Password: password, TotpCode: login.Code(token.GetSpec().GetTotpSecret(), e.now()),
			})
			if !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("redeem: %v, want not found", err)
			}
			if _, err := e.store.Get(t.Context(), types.KindCredential, "bob"); !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("a credential was made: %v", err)
			}
		})
	}
}

// TestInviteIsOnlyKnownByItsWholeSecret plants a token under the id of another
// secret: the id alone is no proof.
func TestInviteIsOnlyKnownByItsWholeSecret(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	token, err := store.Get[*typesv1.UserToken](t.Context(), e.store, types.KindUserToken, keys.TokenID(secret))
	must(t, err)
	token.Spec.TokenHash = make([]byte, 32)
	must(t, e.store.Tx().Update(token).Commit(t.Context()))
	if _, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("an invitation with another hash: %v, want not found", err)
	}
}

// TestCallerThatGoesAway shows that a failure counts although nobody waits for
// its answer.
func TestCallerThatGoesAway(t *testing.T) {
	e := newEnv(t)
	e.person(t, "bob", []string{"access"}, "root")
	ctx, cancel := context.WithCancel(t.Context())
	f := func() { cancel() }
	e.meanwhile.Store(&f)
	_, err := e.login(ctx, "bob", "wrong password", "000000")
	sameRefusal(t, err)
	c, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	if len(c.GetSpec().GetFailures()) != 1 || len(e.reasons(t)) != 1 {
		t.Errorf("%d failures counted, %d in the audit log, want 1 and 1", len(c.GetSpec().GetFailures()), len(e.reasons(t)))
	}
}

// TestRoleDeletedMeanwhile: a user is never stored with a role that is gone.
func TestRoleDeletedMeanwhile(t *testing.T) {
	e := newEnv(t)
	f := func() { must(t, e.store.Tx().Delete(types.KindRole, "access", "").Commit(t.Context())) }
	e.meanwhile.Store(&f)
	if _, err := e.CreateUser(admin(t.Context()), &userv1.CreateUserRequest{User: newUser("bob", []string{"access"})}); err == nil {
		t.Error("a user was created with a role that is gone")
	}
	if _, err := e.store.Get(t.Context(), types.KindUser, "bob"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("the user is there: %v", err)
	}
}

package login_test

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

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

func durationFromNow(e *env, d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(e.now().Add(d))
}

func TestCreateUser(t *testing.T) {
	e := newEnv(t)
	resp, err := e.CreateUser(asUser(t.Context(), "ed", "editor"), &userv1.CreateUserRequest{User: newUser("bob", []string{"access", "auditor"}, "root")})
	must(t, err)
	inv := resp.GetInvitation()
	if left := inv.GetExpires().AsTime().Sub(e.now()); left > time.Hour || left < 59*time.Minute {
		t.Errorf("the invitation lives %v, want 1h", left)
	}
	link, err := url.Parse(inv.GetUrl())
	must(t, err)
	if link.Scheme != "https" || link.Host != "proxy.example.com:3080" || link.Path != "/web/invite/"+inv.GetToken() || link.Fragment != e.trust.Pins()[0] {
		t.Errorf("url = %q", inv.GetUrl())
	}
	user, err := store.Get[*typesv1.User](t.Context(), e.store, types.KindUser, "bob")
	must(t, err)
	if user.GetStatus().GetCreatedBy() != "ed" || user.GetStatus().GetCreated() == nil || user.GetVersion() == "" {
		t.Errorf("user = %v", user)
	}
	token, err := store.Get[*typesv1.UserToken](t.Context(), e.store, types.KindUserToken, keys.TokenID(inv.GetToken()))
	must(t, err)
	if token.GetSpec().GetUser() != "bob" || token.GetSpec().GetUsage() != types.UsageInvite || strings.Contains(token.String(), inv.GetToken()) {
		t.Errorf("token = %v", token)
	}
	if e.count(t, audit.UserCreate, "name", "bob") != 1 || e.count(t, audit.ResetPasswordToken, "name", "bob") != 1 || e.count(t, audit.UserCreate, "user", "ed") != 1 {
		t.Errorf("events: %v", e.events(t))
	}
}

func TestCreateUserRefuses(t *testing.T) {
	e := newEnv(t)
	e.invite(t, newUser("taken", []string{"access"}))
	bad := func(f func(*typesv1.User)) *typesv1.User {
		u := newUser("bob", []string{"access"}, "root")
		f(u)
		return u
	}
	tests := []struct {
		name string
		user *typesv1.User
		ttl  time.Duration
		want error
		text string
	}{
		{"none", nil, 0, fault.ErrInvalid, "user name"},
		{"no_name", newUser("", []string{"access"}), 0, fault.ErrInvalid, "user name"},
		{"space", newUser("bob smith", []string{"access"}), 0, fault.ErrInvalid, "user name"},
		{"slash", newUser("../bob", []string{"access"}), 0, fault.ErrInvalid, "user name"},
		{"newline", newUser("bob\n", []string{"access"}), 0, fault.ErrInvalid, "user name"},
		{"long_name", newUser(strings.Repeat("x", 200), []string{"access"}), 0, fault.ErrInvalid, "user name"},
		{"no_roles", newUser("bob", nil), 0, fault.ErrInvalid, "at least one role"},
		{"unknown_role", newUser("bob", []string{"access", "wizard"}), 0, fault.ErrInvalid, `no role "wizard"`},
		{"role_twice", newUser("bob", []string{"access", "access"}), 0, fault.ErrInvalid, "access"},
		{"bad_login", newUser("bob", []string{"access"}, "a,b"), 0, fault.ErrInvalid, "login"},
		{"other_kind", bad(func(u *typesv1.User) { u.Kind = types.KindRole }), 0, fault.ErrInvalid, "role"},
		{"expired", bad(func(u *typesv1.User) { u.Metadata.Expires = durationFromNow(e, -time.Hour) }), 0, fault.ErrInvalid, "expire"},
		{"long_ttl", newUser("bob", []string{"access"}), 49 * time.Hour, fault.ErrInvalid, "at most 48h"},
		{"negative_ttl", newUser("bob", []string{"access"}), -time.Hour, fault.ErrInvalid, "too short"},
		{"exists", newUser("taken", []string{"access"}), 0, fault.ErrExists, `user "taken" already exists`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := &userv1.CreateUserRequest{User: tt.user}
			if tt.ttl != 0 {
				req.Ttl = durationpb.New(tt.ttl)
			}
			_, err := e.CreateUser(admin(t.Context()), req)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("CreateUser = %v, want kind %v and %q", err, tt.want, tt.text)
			}
		})
	}
	if _, err := e.CreateUser(asUser(t.Context(), "eve", "access"), &userv1.CreateUserRequest{User: newUser("bob", []string{"editor"})}); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("CreateUser by one who may not: %v, want denied", err)
	}
	if _, err := e.store.Get(t.Context(), types.KindUser, "bob"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("a refused user is there: %v", err)
	}
	tokens, err := store.All[*typesv1.UserToken](t.Context(), e.store, types.KindUserToken)
	must(t, err)
	if len(tokens) != 1 {
		t.Errorf("%d invitations, want that of the one user", len(tokens))
	}
}

func TestGetInvitation(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob+x@example.com", []string{"access"}))
	first, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	again, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	if first.GetTotpSecret() == "" || first.GetTotpSecret() != again.GetTotpSecret() {
		t.Error("the TOTP secret of an invitation is not stable")
	}
	if first.GetUser() != "bob+x@example.com" || first.GetClusterName() != cluster {
		t.Errorf("invitation = %v", first)
	}
	want := "otpauth://totp/example.com:bob+x@example.com?algorithm=SHA1&digits=6&issuer=example.com&period=30&secret=" + first.GetTotpSecret()
	if first.GetTotpUrl() != want {
		t.Errorf("totp_url = %q, want %q", first.GetTotpUrl(), want)
	}
	for name, token := range map[string]string{
		"empty": "", "short": secret[:60], "other": strings.Repeat("0", 64), "upper": strings.ToUpper(secret), "id": keys.TokenID(secret), "long": strings.Repeat("a", 1<<16),
	} {
		if _, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: token}); !errors.Is(err, fault.ErrNotFound) || fault.Code(err) != "invitation_invalid" {
			t.Errorf("%s: %v, want the constant answer", name, err)
		}
	}
	e.advance(time.Hour)
	if _, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("expired: %v, want not found", err)
	}
	if _, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: login.Code(first.GetTotpSecret(), e.now())}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("redeem expired: %v, want not found", err)
	}
}

func TestRedeemOnceInParallel(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	code := login.Code(inv.GetTotpSecret(), e.now())
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			_, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: code})
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, fault.ErrNotFound):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 || e.count(t, audit.PasswordChange, "user", "bob") != 1 || e.count(t, audit.MFAAdd, "user", "bob") != 1 {
		t.Errorf("%d redeemers succeeded, want 1", wins.Load())
	}
}

func TestRedeemWrongCode(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	good := login.Code(inv.GetTotpSecret(), e.now())
	for i := range 10 {
		_, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: wrongCode(good)})
		want := fault.ErrUnauthenticated
		if i == 9 {
			want = fault.ErrNotFound
		}
		if !errors.Is(err, want) {
			t.Errorf("wrong code %d: %v, want %v", i+1, err, want)
		}
	}
	if _, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: good}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("good code after ten wrong ones: %v, want not found", err)
	}
	if _, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("a spent invitation is shown: %v", err)
	}
}

// TestRedeemGuessesInParallel shows that failures are counted however many guess
// at once.
func TestRedeemGuessesInParallel(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	bad := wrongCode(login.Code(inv.GetTotpSecret(), e.now()))
	var counted atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: bad})
			if errors.Is(err, fault.ErrUnauthenticated) {
				counted.Add(1)
			}
		})
	}
	wg.Wait()
	if counted.Load() != 9 {
		t.Errorf("%d wrong codes were answered as such, want 9 before the end", counted.Load())
	}
}

func TestRedeemPassword(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	code := login.Code(inv.GetTotpSecret(), e.now())
	for name, req := range map[string]*loginv1.RedeemInvitationRequest{
		"short":     {Token: secret, Password: "elevenchars", TotpCode: code},
		"long":      {Token: secret, Password: strings.Repeat("x", 513), TotpCode: code},
		"not_utf8":  {Token: secret, Password: strings.Repeat("\xff", 20), TotpCode: code},
		"no_code":   {Token: secret, Password: password},
		"long_code": {Token: secret, Password: password, TotpCode: "1234567"},
	} {
		if _, err := e.RedeemInvitation(e.stranger(t.Context()), req); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	_, err = e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: "zwölfzeichen", TotpCode: code})
	must(t, err)
}

func TestResetUser(t *testing.T) {
	e := newEnv(t)
	old := e.person(t, "bob", []string{"access"}, "root")
	for range 5 {
		_, err := e.login(t.Context(), "bob", "wrong password", "000000")
		sameRefusal(t, err)
	}
	first, err := e.ResetUser(asUser(t.Context(), "ed", "editor"), &userv1.ResetUserRequest{User: "bob"})
	must(t, err)
	if left := first.GetInvitation().GetExpires().AsTime().Sub(e.now()); left > 8*time.Hour || left < 8*time.Hour-time.Minute {
		t.Errorf("the link lives %v, want 8h", left)
	}
	_, err = e.login(t.Context(), "bob", password, login.Code(old, e.now()))
	sameRefusal(t, err)
	again, err := e.ResetUser(admin(t.Context()), &userv1.ResetUserRequest{User: "bob", Ttl: durationpb.New(time.Hour)})
	must(t, err)
	if _, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: first.GetInvitation().GetToken()}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("the link before the last still works: %v", err)
	}
	secret := e.enrol(t, again.GetInvitation().GetToken(), "another long password")
	if secret == old {
		t.Error("the reset kept the TOTP secret")
	}
	_, err = e.login(t.Context(), "bob", password, login.Code(secret, e.now()))
	sameRefusal(t, err)
	must(t, second(e.login(t.Context(), "bob", "another long password", login.Code(secret, e.now()))))
	if n := e.count(t, audit.ResetPasswordToken, "usage", types.UsageReset); n != 2 {
		t.Errorf("%d reset events, want 2", n)
	}
	for name, req := range map[string]*userv1.ResetUserRequest{
		"unknown": {User: "nobody"}, "no_name": {}, "long_ttl": {User: "bob", Ttl: durationpb.New(25 * time.Hour)},
	} {
		if _, err := e.ResetUser(admin(t.Context()), req); !errors.Is(err, fault.ErrNotFound) && !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v, want refused", name, err)
		}
	}
	if _, err := e.ResetUser(asUser(t.Context(), "eve", "access"), &userv1.ResetUserRequest{User: "bob"}); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("ResetUser by one who may not: %v, want denied", err)
	}
}

// TestResetAgainstRedeem lets a reset and a redeemer meet: whatever comes first,
// after the reset the older link's password is no way in.
func TestResetAgainstRedeem(t *testing.T) {
	for range 20 {
		e := newEnv(t)
		secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
		inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: login.Code(inv.GetTotpSecret(), e.now())})
		})
		wg.Go(func() {
			if _, err := e.ResetUser(admin(t.Context()), &userv1.ResetUserRequest{User: "bob"}); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		e.advance(90 * time.Second)
		_, err = e.login(t.Context(), "bob", password, login.Code(inv.GetTotpSecret(), e.now()))
		sameRefusal(t, err)
	}
}

func TestRedeemAfterUserWasDeleted(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	must(t, e.store.Tx().Delete(types.KindUser, "bob", "").Commit(t.Context()))
	if _, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: secret, Password: password, TotpCode: login.Code(inv.GetTotpSecret(), e.now())}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("redeem for a deleted user: %v, want not found", err)
	}
}

// TestNoSecretIsWritten does all there is to do, well and badly, and reads every
// log line and audit event.
func TestNoSecretIsWritten(t *testing.T) {
	e := newEnv(t)
	secrets := map[string]string{"password": password, "wrong password": "a wrong secret", "second password": "another long password"}
	codes := map[string]bool{}
	use := func(code string) string { codes[code] = true; return code }

	invitation := e.invite(t, newUser("bob", []string{"access"}, "root"))
	inv, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: invitation})
	must(t, err)
	secrets["invitation"], secrets["totp secret"] = invitation, inv.GetTotpSecret()
	_, err = e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: strings.Repeat("ab", 32)})
	if err == nil {
		t.Error("a made-up invitation was found")
	}
	secrets["made-up invitation"] = strings.Repeat("ab", 32)
	good := use(login.Code(inv.GetTotpSecret(), e.now()))
	for _, code := range []string{use("314159"), good} {
		_, err = e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{Token: invitation, Password: password, TotpCode: code})
	}
	must(t, err)
	e.advance(90 * time.Second)
	for range 2 {
		_, err = e.login(t.Context(), "bob", password, use(login.Code(inv.GetTotpSecret(), e.now())))
	}
	sameRefusal(t, err)
	for range 7 {
		_, err = e.login(t.Context(), "bob", "a wrong secret", use("271828"))
		sameRefusal(t, err)
	}
	_, err = e.login(t.Context(), "a wrong secret", "a wrong secret", use("271828"))
	sameRefusal(t, err)
	credential, err := store.Get[*typesv1.Credential](t.Context(), e.store, types.KindCredential, "bob")
	must(t, err)
	secrets["hash"] = credential.GetSpec().GetPasswordHash()
	reset, err := e.ResetUser(admin(t.Context()), &userv1.ResetUserRequest{User: "bob"})
	must(t, err)
	secrets["reset link"] = reset.GetInvitation().GetToken()
	secrets["second totp secret"] = e.enrol(t, reset.GetInvitation().GetToken(), "another long password")
	_, err = e.SignUser(admin(t.Context()), &userv1.SignUserRequest{User: "bob", Keys: e.keys()})
	must(t, err)

	written := e.log.String()
	seen := map[audit.Kind]bool{}
	for _, event := range e.events(t) {
		line, err := audit.JSON(event)
		must(t, err)
		written += string(line) + "\n"
		kind, ok := audit.KindOf(event)
		if !ok {
			t.Errorf("an event of no kind: %s", line)
		}
		seen[kind] = true
	}
	want := map[audit.Kind]bool{
		audit.UserCreate: true, audit.ResetPasswordToken: true, audit.PasswordChange: true, audit.MFAAdd: true,
		audit.UserLogin: true, audit.UserLoginFailure: true, audit.CertCreate: true,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("kinds of event: %s", diff)
	}
	for name, secret := range secrets {
		if secret == "" || strings.Contains(written, secret) {
			t.Errorf("the %s is in the log or the audit log", name)
		}
	}
	for code := range codes {
		if regexp.MustCompile(`\b` + code + `\b`).MatchString(written) {
			t.Errorf("the code %s is in the log or the audit log", code)
		}
	}
	if strings.Contains(written, "$argon2id$") {
		t.Error("a password hash is in the log or the audit log")
	}
}

func TestRedeemLogsInAtOnce(t *testing.T) {
	e := newEnv(t)
	secret := e.invite(t, newUser("alice", []string{"access"}, "root"))
	got, err := e.GetInvitation(e.stranger(t.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(t, err)
	code := login.Code(got.GetTotpSecret(), e.now())
	resp, err := e.RedeemInvitation(e.stranger(t.Context()), &loginv1.RedeemInvitationRequest{
		Token: secret, Password: "a long enough password", TotpCode: code, Keys: e.keys(),
	})
	must(t, err)
	if id := e.tlsIdentity(t, resp.GetCertificates().GetTls()); id.User.Name != "alice" || len(resp.GetCertificates().GetSsh()) == 0 {
		t.Errorf("certificates are for %+v, want alice with SSH", id.User)
	}
	if n := e.count(t, audit.UserLogin, "user", "alice"); n != 1 {
		t.Errorf("%d logins in the audit log, want 1", n)
	}
	// The code is used up all the same.
	_, err = e.login(e.stranger(t.Context()), "alice", "a long enough password", code)
	sameRefusal(t, err)
}

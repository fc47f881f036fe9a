package login_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/login"
	"teleport/internal/rpc"
	"teleport/internal/types"
	"teleport/internal/websession"
)

// asProxy is the context of a Proxy's own calls.
func asProxy(ctx context.Context) context.Context {
	return rpc.WithCaller(ctx, rpc.Caller{Addr: "192.0.2.9:1", Identity: &identity.Identity{Cluster: cluster, Host: &identity.Host{
		ID: "proxy-1", Name: "p", Roles: []types.SystemRole{types.RoleProxy}, Service: types.RoleProxy,
	}}})
}

func (e *env) browse(t *testing.T, user, password, code, addr string) (*loginv1.CreateWebSessionResponse, error) {
	t.Helper()
	return e.CreateWebSession(asProxy(t.Context()), &loginv1.CreateWebSessionRequest{User: user, Password: password, TotpCode: code, ClientAddr: addr})
}

func TestCreateWebSession(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "alice", []string{"access"}, "root")
	code := login.Code(secret, e.now())
	resp, err := e.browse(t, "alice", password, code, "198.51.100.7:4711")
	must(t, err)
	if resp.GetUser() != "alice" || resp.GetExpires().AsTime().Sub(e.now()) > 12*time.Hour {
		t.Errorf("response %v", resp)
	}
	s, err := websession.Find(t.Context(), e.store, resp.GetToken(), e.now())
	must(t, err)
	if spec := s.GetSpec(); spec.GetUser() != "alice" || spec.GetRemoteAddr() != "198.51.100.7:4711" || spec.GetMfaDevice() == "" || spec.GetApp() != "" {
		t.Errorf("session %v", s)
	}
	if e.count(t, audit.UserLogin, "method", "web") != 1 || e.count(t, audit.UserLogin, "proxy_id", "proxy-1") != 1 || e.count(t, audit.UserLogin, "addr.remote", "198.51.100.7:4711") != 1 {
		t.Error("the login is not in the audit log as it was")
	}
	if strings.Contains(e.log.String(), resp.GetToken()) {
		t.Error("the secret is in the log")
	}
	_, err = e.browse(t, "alice", password, code, "198.51.100.7:4711")
	sameRefusal(t, err)
	_, err = e.browse(t, "nobody", password, code, "198.51.100.7:4711")
	sameRefusal(t, err)
	for _, addr := range []string{"", "198.51.100.7", "somewhere:1"} {
		if _, err := e.browse(t, "alice", password, code, addr); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("client address %q: %v, want ErrInvalid", addr, err)
		}
	}
	for name, ctx := range map[string]context.Context{"stranger": e.stranger(t.Context()), "admin": admin(t.Context()), "user": asUser(t.Context(), "alice", "editor")} {
		if _, err := e.CreateWebSession(ctx, &loginv1.CreateWebSessionRequest{User: "alice", Password: password, TotpCode: code, ClientAddr: "198.51.100.7:1"}); err == nil {
			t.Errorf("%s: a session was made", name)
		}
	}
}

// TestWebSessionLockout: browsers and tsh use up the same attempts.
func TestWebSessionLockout(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "alice", []string{"access"}, "root")
	for i := range 5 {
		var err error
		if i%2 == 0 {
			_, err = e.browse(t, "alice", "wrong", login.Code(secret, e.now()), "198.51.100.7:1")
		} else {
			_, err = e.login(t.Context(), "alice", "wrong", login.Code(secret, e.now()))
		}
		sameRefusal(t, err)
	}
	_, err := e.browse(t, "alice", password, login.Code(secret, e.now()), "198.51.100.8:1")
	sameRefusal(t, err)
	if reasons := e.reasons(t); !strings.HasPrefix(reasons[len(reasons)-1], "account is locked") {
		t.Errorf("refused because of %q", reasons[len(reasons)-1])
	}
	// One address may only try so often, whoever relays.
	for range 60 {
		_, err = e.browse(t, "bob", password, "000000", "198.51.100.9:1")
	}
	if fault.Code(err) != "rate_limited" {
		t.Errorf("the 60th attempt from one address: %v", err)
	}
}

// TestWebSessionEndsWithPassword: a reset ends what the user is logged in with.
func TestWebSessionEndsWithPassword(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "alice", []string{"access"}, "root")
	resp, err := e.browse(t, "alice", password, login.Code(secret, e.now()), "198.51.100.7:1")
	must(t, err)
	_, err = e.ResetUser(admin(t.Context()), &userv1.ResetUserRequest{User: "alice"})
	must(t, err)
	if _, err := websession.Find(t.Context(), e.store, resp.GetToken(), e.now()); err == nil {
		t.Error("the session outlives the password")
	}
}

func TestWebSessionOfTheLocked(t *testing.T) {
	e := newEnv(t)
	secret := e.person(t, "alice", []string{"access"}, "root")
	lock := types.New(types.KindLock, "l-1").(*typesv1.Lock)
	lock.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "alice"}}
	must(t, e.store.Tx().Create(lock).Commit(t.Context()))
	if _, err := e.browse(t, "alice", password, login.Code(secret, e.now()), "198.51.100.7:1"); fault.Code(err) != "locked" {
		t.Errorf("a locked user logs in with a browser: %v", err)
	}
}

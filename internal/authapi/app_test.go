package authapi_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	appv1 "teleport/api/app/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
	"teleport/internal/websession"
)

// newAppOffice has alice, who may use what is of the team blue, and two applications of
// which one is that.
func newAppOffice(t *testing.T) *office {
	t.Helper()
	o := newOffice(t)
	o.roleOf("dev", &typesv1.RoleConditions{AppLabels: labels("team", "{{external.team}}")}, nil)
	o.person("alice", map[string][]string{"team": {"blue"}}, "dev")
	grafana := newApp("grafana", map[string]string{"team": "blue"})
	grafana.Spec.PublicAddr = "g.example.com"
	o.put(servesApp("h1", newApp("grafana", map[string]string{"team": "red"})), servesApp("h2", grafana), servesApp("h1", newApp("vault", map[string]string{"team": "red"})))
	return o
}

func TestAppCertifyUser(t *testing.T) {
	o := newAppOffice(t)
	alice := identityOf("alice", "dev")
	certify := func(id *identity.Identity, req *appv1.CertifyUserRequest) (*appv1.CertifyUserResponse, error) {
		if req.TlsKey == nil {
			req.TlsKey = o.key
		}
		return o.apps.CertifyUser(asID(t, id), req)
	}
	resp, err := certify(alice, &appv1.CertifyUserRequest{App: "grafana"})
	check(t, err)
	id := o.read(resp.GetCertificate())
	want1 := *alice.User
	want1.Logins, want1.App = nil, &identity.AppRoute{Name: "grafana", PublicAddr: "g.example.com", SessionID: id.User.App.SessionID}
	if d := cmp.Diff(&want1, id.User); d != "" || id.User.App.SessionID == "" {
		t.Errorf("certificate (-want +got):\n%s", d)
	}
	if d := id.Expires.Sub(alice.Expires); d > time.Second || d < -time.Minute || !resp.GetExpires().AsTime().Equal(id.Expires) || resp.GetUri() != "http://127.0.0.1:8080" || resp.GetPublicAddr() != "g.example.com" {
		t.Errorf("response %v, good until %s", resp, id.Expires)
	}
	if f := o.last("TC000I"); f["app_name"] != "grafana" || f["user"] != "alice" || f["sid"] != id.User.App.SessionID {
		t.Errorf("event %v", f)
	}
	again, err := certify(alice, &appv1.CertifyUserRequest{App: "grafana", Ttl: durationpb.New(time.Minute)})
	check(t, err)
	if left := time.Until(again.GetExpires().AsTime()); left > time.Minute || o.read(again.GetCertificate()).User.App.SessionID == id.User.App.SessionID {
		t.Errorf("a certificate for a minute is good for %s, or of the same session", left)
	}
	longer, err := certify(alice, &appv1.CertifyUserRequest{App: "grafana", Ttl: durationpb.New(100 * time.Hour)})
	check(t, err)
	if longer.GetExpires().AsTime().After(alice.Expires) {
		t.Error("the certificate outlives the login")
	}
	pinned := identityOf("alice", "dev")
	pinned.User.SourceIP = "192.0.2.1"
	resp, err = certify(pinned, &appv1.CertifyUserRequest{App: "grafana"})
	check(t, err)
	if o.read(resp.GetCertificate()).User.SourceIP != "192.0.2.1" {
		t.Error("the address that the login is bound to is not carried over")
	}

	for name, tt := range map[string]struct {
		id   *identity.Identity
		req  *appv1.CertifyUserRequest
		kind error
		part string
	}{
		"unseen":    {alice, &appv1.CertifyUserRequest{App: "vault"}, fault.ErrNotFound, "tsh apps ls"},
		"unknown":   {alice, &appv1.CertifyUserRequest{App: "nothing"}, fault.ErrNotFound, "tsh apps ls"},
		"no_name":   {alice, &appv1.CertifyUserRequest{}, fault.ErrInvalid, ""},
		"bad_name":  {alice, &appv1.CertifyUserRequest{App: "graf%"}, fault.ErrInvalid, ""},
		"prefix":    {alice, &appv1.CertifyUserRequest{App: "graf"}, fault.ErrNotFound, ""},
		"no_role":   {identityOf("alice", "gone"), &appv1.CertifyUserRequest{App: "grafana"}, fault.ErrNotFound, ""},
		"deleted":   {identityOf("bob", "dev"), &appv1.CertifyUserRequest{App: "grafana"}, fault.ErrDenied, "deleted"},
		"bad_key":   {alice, &appv1.CertifyUserRequest{App: "grafana", TlsKey: []byte("x")}, fault.ErrInvalid, ""},
		"short_ttl": {alice, &appv1.CertifyUserRequest{App: "grafana", Ttl: durationpb.New(0)}, fault.ErrInvalid, "too short"},
	} {
		_, err := certify(tt.id, tt.req)
		if !contains(errText(err), tt.part) || !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("%s: %v, want %v with %q", name, err, tt.kind, tt.part)
		}
	}
	_, err = certify(alice, &appv1.CertifyUserRequest{App: "vault"})
	want(t, err, fault.ErrNotFound, "")
	if f := o.last("T3007W"); f["user"] != "alice" || f["app_name"] != "vault" || f["reason"] == "" || f["addr.remote"] != "192.0.2.1:1" {
		t.Errorf("refusal in the audit log: %v", f)
	}
	o.lockedOut(func() error { _, err := certify(alice, &appv1.CertifyUserRequest{App: "grafana"}); return err },
		&typesv1.LockTarget{User: "alice"}, &typesv1.LockTarget{Role: "dev"}, &typesv1.LockTarget{MfaDevice: "device-1"})
	yes := true
	o.roleOf("dev", &typesv1.RoleConditions{AppLabels: labels("team", "blue")}, &typesv1.RoleOptions{PinSourceIp: &yes})
	_, err = certify(alice, &appv1.CertifyUserRequest{App: "grafana"})
	want(t, err, fault.ErrDenied, "bind certificates")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// browse logs alice in with a browser.
func (o *office) browse(user string, ttl time.Duration) (string, *typesv1.WebSession) {
	o.t.Helper()
	now := time.Now().Add(o.offset).Truncate(time.Second)
	token, s, err := websession.New(user, "device-1", "198.51.100.7:5", now, now.Add(ttl))
	check(o.t, err)
	check(o.t, o.store.Tx().Create(s).Commit(o.t.Context()))
	return token, s
}

func TestSessionsOfBrowsers(t *testing.T) {
	o := newAppOffice(t)
	ctx := asService(t, "p1", types.RoleProxy)
	const from = "198.51.100.7:6"
	web, parent := o.browse("alice", 90*time.Minute)
	opened, err := o.apps.OpenSession(ctx, &appv1.OpenSessionRequest{WebToken: web, App: "grafana", ClientAddr: from})
	check(t, err)
	if !opened.GetExpires().AsTime().Equal(parent.GetMetadata().GetExpires().AsTime()) {
		t.Errorf("the session at the application ends at %s, want with that at the Proxy", opened.GetExpires().AsTime())
	}
	sign := func(token, app, from string) (*identity.Identity, error) {
		resp, err := o.apps.SignProxy(ctx, &appv1.SignProxyRequest{App: app, Token: token, ClientAddr: from, TlsKey: o.key})
		if err != nil {
			return nil, err
		}
		return o.read(resp.GetCertificate()), nil
	}
	id, err := sign(opened.GetToken(), "grafana", from)
	check(t, err)
	if u := id.User; u.Name != "alice" || u.MFADevice != "device-1" || u.SourceIP != "" || !slices.Equal(u.Roles, []string{"dev"}) || !slices.Equal(u.Traits["team"], []string{"blue"}) ||
		u.App.Name != "grafana" || u.App.PublicAddr != "g.example.com" || u.App.SessionID == "" {
		t.Errorf("the Proxy speaks for %+v", u)
	}
	if left := time.Until(id.Expires); left > time.Hour || left < 59*time.Minute {
		t.Errorf("good for %s, want an hour", left)
	}
	if f := o.last("TC000I"); f["proxy_id"] != "p1" || f["addr.remote"] != from || f["sid"] != id.User.App.SessionID {
		t.Errorf("event %v", f)
	}
	o.offset = 80 * time.Minute
	if id, err = sign(opened.GetToken(), "grafana", from); err != nil || id.Expires.After(parent.GetMetadata().GetExpires().AsTime()) {
		t.Errorf("near the end of the session: %v, %v", id, err)
	}
	o.offset = 0

	// The user as it is now: other roles, other traits.
	o.person("alice", map[string][]string{"team": {"red"}}, "dev")
	if _, err = sign(opened.GetToken(), "grafana", from); err != nil {
		t.Errorf("grafana is also served as one of the team red: %v", err)
	}
	o.person("alice", nil, "dev")
	_, err = sign(opened.GetToken(), "grafana", from)
	want(t, err, fault.ErrNotFound, "grafana")
	o.person("alice", map[string][]string{"team": {"blue"}}, "dev")

	for name, tt := range map[string]struct {
		token, app, from string
		kind             error
	}{
		"other_app":     {opened.GetToken(), "vault", from, fault.ErrDenied},
		"no_app":        {opened.GetToken(), "", from, fault.ErrDenied},
		"web_session":   {web, "grafana", from, fault.ErrDenied},
		"web_no_app":    {web, "", from, fault.ErrDenied},
		"no_secret":     {"x.y", "grafana", from, fault.ErrUnauthenticated},
		"no_address":    {opened.GetToken(), "grafana", "", fault.ErrInvalid},
		"host_as_addr":  {opened.GetToken(), "grafana", "localhost:1", fault.ErrInvalid},
		"nothing_shown": {"", "grafana", from, fault.ErrInvalid},
	} {
		if _, err := sign(tt.token, tt.app, tt.from); !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("%s: %v, want %v", name, err, tt.kind)
		}
	}
	for name, tt := range map[string]struct {
		token, app string
		kind       error
	}{
		"unseen":  {web, "vault", fault.ErrNotFound},
		"unknown": {web, "nothing", fault.ErrNotFound},
		"chained": {opened.GetToken(), "grafana", fault.ErrDenied},
		"nobody":  {"a.b", "grafana", fault.ErrUnauthenticated},
	} {
		if _, err := o.apps.OpenSession(ctx, &appv1.OpenSessionRequest{WebToken: tt.token, App: tt.app, ClientAddr: from}); !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("open %s: %v, want %v", name, err, tt.kind)
		}
	}
	o.lockedOut(func() error { _, err := sign(opened.GetToken(), "grafana", from); return err },
		&typesv1.LockTarget{User: "alice"}, &typesv1.LockTarget{Role: "dev"}, &typesv1.LockTarget{MfaDevice: "device-1"})
	o.lockedOut(func() error {
		_, err := o.apps.OpenSession(ctx, &appv1.OpenSessionRequest{WebToken: web, App: "grafana", ClientAddr: from})
		return err
	}, &typesv1.LockTarget{User: "alice"})

	// The end of the one at the Proxy is that of all.
	_, err = o.apps.EndSession(ctx, &appv1.EndSessionRequest{Token: web})
	check(t, err)
	if _, err := sign(opened.GetToken(), "grafana", from); fault.Code(err) != websession.CodeGone {
		t.Errorf("after the end: %v", err)
	}
	_, err = o.apps.EndSession(ctx, &appv1.EndSessionRequest{Token: web})
	check(t, err)
	_, err = o.apps.EndSession(ctx, &appv1.EndSessionRequest{Token: "nothing"})
	check(t, err)
}

// TestBrowsersAreBoundToTheirAddress where a role wants that.
func TestBrowsersAreBoundToTheirAddress(t *testing.T) {
	o := newAppOffice(t)
	yes := true
	o.roleOf("dev", &typesv1.RoleConditions{AppLabels: labels("team", "blue")}, &typesv1.RoleOptions{PinSourceIp: &yes})
	ctx := asService(t, "p1", types.RoleProxy)
	web, _ := o.browse("alice", time.Hour)
	open := func(from string) (*appv1.OpenSessionResponse, error) {
		return o.apps.OpenSession(ctx, &appv1.OpenSessionRequest{WebToken: web, App: "grafana", ClientAddr: from})
	}
	opened, err := open("[::ffff:198.51.100.7]:99")
	check(t, err)
	_, err = open("198.51.100.8:5")
	want(t, err, fault.ErrDenied, "address")
	resp, err := o.apps.SignProxy(ctx, &appv1.SignProxyRequest{App: "grafana", Token: opened.GetToken(), ClientAddr: "198.51.100.7:1", TlsKey: o.key})
	check(t, err)
	if ip := o.read(resp.GetCertificate()).User.SourceIP; ip != "198.51.100.7" {
		t.Errorf("the certificate is bound to %q", ip)
	}
	_, err = o.apps.SignProxy(ctx, &appv1.SignProxyRequest{App: "grafana", Token: opened.GetToken(), ClientAddr: "198.51.100.8:1", TlsKey: o.key})
	want(t, err, fault.ErrDenied, "address")
}

func TestSignProxyByCertificate(t *testing.T) {
	o := newAppOffice(t)
	ctx := asService(t, "p1", types.RoleProxy)
	alice := identityOf("alice", "dev")
	forApp := func(app string, change func(*identity.User)) []byte {
		return o.routed(alice, func(u *identity.User) {
			u.App = &identity.AppRoute{Name: app, SessionID: "s-1"}
			if change != nil {
				change(u)
			}
		})
	}
	sign := func(cert []byte, app, from string) (*identity.Identity, error) {
		resp, err := o.apps.SignProxy(ctx, &appv1.SignProxyRequest{App: app, UserCertificate: cert, ClientAddr: from, TlsKey: o.key})
		if err != nil {
			return nil, err
		}
		return o.read(resp.GetCertificate()), nil
	}
	good := forApp("grafana", func(u *identity.User) { u.SourceIP = "198.51.100.7" })
	id, err := sign(good, "grafana", "198.51.100.7:1")
	check(t, err)
	if u := id.User; u.Name != "alice" || u.App.SessionID != "s-1" || u.SourceIP != "198.51.100.7" || u.MFADevice != "device-1" || id.Expires.After(o.read(good).Expires) {
		t.Errorf("the Proxy speaks for %+v until %s", u, id.Expires)
	}
	for name, tt := range map[string]struct {
		cert      []byte
		app, from string
		kind      error
	}{
		"other_address": {good, "grafana", "198.51.100.8:1", fault.ErrDenied},
		"other_app":     {good, "vault", "198.51.100.7:1", fault.ErrDenied},
		"unseen":        {forApp("vault", nil), "vault", "198.51.100.7:1", fault.ErrNotFound},
		"database":      {o.routed(alice, func(u *identity.User) { u.Database = &identity.DatabaseRoute{Service: "grafana", Protocol: "tls"} }), "grafana", "198.51.100.7:1", fault.ErrDenied},
		"login":         {o.routed(alice, func(u *identity.User) { u.Logins = []string{"root"} }), "grafana", "198.51.100.7:1", fault.ErrDenied},
		"host":          {o.host("h1", types.RoleApp, types.RoleApp).Certificate[0], "grafana", "198.51.100.7:1", fault.ErrUnauthenticated},
		"garbage":       {[]byte("x"), "grafana", "198.51.100.7:1", fault.ErrInvalid},
	} {
		if _, err := sign(tt.cert, tt.app, tt.from); !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("%s: %v, want %v", name, err, tt.kind)
		}
	}
	both := &appv1.SignProxyRequest{App: "grafana", UserCertificate: good, Token: "x.y", ClientAddr: "198.51.100.7:1", TlsKey: o.key}
	_, err = o.apps.SignProxy(ctx, both)
	want(t, err, fault.ErrInvalid, "either")
	o.lockedOut(func() error { _, err := sign(good, "grafana", "198.51.100.7:1"); return err }, &typesv1.LockTarget{User: "alice"})
}

func TestSignToken(t *testing.T) {
	o := newAppOffice(t)
	alice := identityOf("alice", "dev", "gone")
	cert := func(app string) []byte {
		return o.routed(alice, func(u *identity.User) { u.App = &identity.AppRoute{Name: app} })
	}
	sign := func(host, app string, cert []byte) (map[string]any, error) {
		resp, err := o.apps.SignToken(asService(t, host, types.RoleApp), &appv1.SignTokenRequest{App: app, UserCertificate: cert})
		if err != nil {
			return nil, err
		}
		token, err := jwt.ParseSigned(resp.GetToken(), []jose.SignatureAlgorithm{jose.ES256})
		check(t, err)
		claims := map[string]any{}
		check(t, token.UnsafeClaimsWithoutVerification(&claims)) // package ca has a test of signatures
		if int64(claims["exp"].(float64)) != resp.GetExpires().GetSeconds() {
			t.Errorf("expires %s, the token says %v", resp.GetExpires().AsTime(), claims["exp"])
		}
		return claims, nil
	}
	for said, wants := range map[string][2]any{
		"":                    {[]any{"dev"}, map[string]any{"team": []any{"blue"}}},
		types.JWTClaimsAll:    {[]any{"dev"}, map[string]any{"team": []any{"blue"}}},
		types.JWTClaimsRoles:  {[]any{"dev"}, nil},
		types.JWTClaimsTraits: {nil, map[string]any{"team": []any{"blue"}}},
		types.JWTClaimsNone:   {nil, nil},
	} {
		app := newApp("grafana", map[string]string{"team": "blue"})
		app.Spec.Rewrite = &typesv1.AppRewrite{JwtClaims: said}
		o.put(servesApp("h2", app))
		claims, err := sign("h2", "grafana", cert("grafana"))
		check(t, err)
		if d := cmp.Diff(wants, [2]any{claims["roles"], claims["traits"]}); d != "" {
			t.Errorf("jwt_claims %q (-want +got):\n%s", said, d)
		}
		if claims["sub"] != "alice" || claims["username"] != "alice" || claims["iss"] != cluster || !cmp.Equal(claims["aud"], []any{"http://127.0.0.1:8080"}) {
			t.Errorf("claims %v", claims)
		}
		now := float64(time.Now().Unix())
		if exp, nbf, iat := claims["exp"].(float64), claims["nbf"].(float64), claims["iat"].(float64); exp > now+3601 || exp < now+3000 || nbf > now || iat > now {
			t.Errorf("times %v", claims)
		}
	}
	for name, tt := range map[string]struct {
		host, app string
		cert      []byte
		kind      error
	}{
		"not_served":       {"h3", "grafana", cert("grafana"), fault.ErrDenied},
		"other_app":        {"h1", "vault", cert("grafana"), fault.ErrDenied},
		"roles_refuse":     {"h1", "vault", cert("vault"), fault.ErrNotFound},
		"labels_elsewhere": {"h1", "grafana", cert("grafana"), fault.ErrNotFound},
		"no_certificate":   {"h2", "grafana", nil, fault.ErrInvalid},
		"path":             {"h2", "../x", cert("grafana"), fault.ErrDenied},
	} {
		if _, err := sign(tt.host, tt.app, tt.cert); !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("%s: %v, want %v", name, err, tt.kind)
		}
	}
	instance := types.New(types.KindInstance, "h2").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "two", Token: "token-1"}
	o.put(instance)
	o.lockedOut(func() error { _, err := sign("h2", "grafana", cert("grafana")); return err },
		&typesv1.LockTarget{User: "alice"}, &typesv1.LockTarget{User: "alice", ServerId: "h2"}, &typesv1.LockTarget{JoinToken: "token-1"})
}

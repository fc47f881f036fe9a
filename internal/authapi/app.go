package authapi

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	appv1 "teleport/api/app/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/websession"
)

const (
	// maxServing bounds the agents of one resource that are looked at.
	maxServing = 1000
	// proxyTTL is the longest life of a certificate with which a Proxy speaks for a
	// user, and of a token that an application gets: after that the user's rights are
	// looked at again.
	proxyTTL = time.Hour
	tokenTTL = time.Hour
)

// AppServer certifies who goes to applications.
type AppServer struct {
	appv1.UnimplementedAppServiceServer
	cfg SigningConfig
}

// NewApp returns the handler of AppService.
func NewApp(cfg SigningConfig) (*AppServer, error) {
	cfg, err := cfg.checked()
	return &AppServer{cfg: cfg}, err
}

// find returns one of those who serve the application to the person.
func (s *AppServer) find(ctx context.Context, p *person, app string) (*typesv1.AppServer, error) {
	if err := types.ValidAppName(app); err != nil {
		return nil, err
	}
	servers, err := store.Below[*typesv1.AppServer](ctx, s.cfg.Store, types.KindAppServer, types.ServerName(app, ""), maxServing)
	if err != nil {
		return nil, err
	}
	reason := "nobody serves it"
	for _, server := range servers {
		d := p.checker.App(types.AppServerLabels(server))
		if d.Allowed {
			return server, nil
		}
		reason = d.Reason
	}
	return nil, errUnseen(reason, "there is no application %q, or your roles do not let you use it: see tsh apps ls", app)
}

// errUnseen tells a user no more than that there is nothing for them.
func errUnseen(reason, format string, args ...any) error {
	err := fault.New(fault.ErrNotFound, format, args...)
	err.Cause = errors.New(reason)
	return err
}

// CertifyUser signs a certificate with which the calling user reaches one application.
func (s *AppServer) CertifyUser(ctx context.Context, req *appv1.CertifyUserRequest) (*appv1.CertifyUserResponse, error) {
	caller := rpc.CallerFrom(ctx)
	user := *caller.User()
	fields := map[string]any{"user": user.Name, "app_name": clip(req.GetApp()), "addr.remote": caller.Addr}
	p, server, err := s.admit(ctx, &user, req.GetApp())
	if err == nil {
		err = p.pinned()
	}
	if err != nil {
		return nil, s.cfg.refused(ctx, err, fields)
	}
	ttl, err := s.cfg.routedTTL(p, req.GetTtl(), caller.Identity.Expires)
	if err != nil {
		return nil, err
	}
	app := server.GetSpec().GetApp()
	user.Logins, user.App = nil, &identity.AppRoute{Name: req.GetApp(), PublicAddr: app.GetSpec().GetPublicAddr(), SessionID: uuid.NewString()}
	fields["sid"] = user.App.SessionID
	cert, err := s.cfg.sign(ctx, &user, req.GetTlsKey(), ttl, fields)
	if err != nil {
		return nil, err
	}
	return &appv1.CertifyUserResponse{
		Certificate: cert.Raw, Expires: timestamppb.New(cert.NotAfter), PublicAddr: app.GetSpec().GetPublicAddr(), Uri: app.GetSpec().GetUri(),
	}, nil
}

// admit returns the user as things are now, and who serves the application to it.
func (s *AppServer) admit(ctx context.Context, user *identity.User, app string) (*person, *typesv1.AppServer, error) {
	p, err := s.cfg.person(ctx, user, where{})
	if err != nil {
		return nil, nil, err
	}
	server, err := s.find(ctx, p, app)
	return p, server, err
}

// OpenSession lets a browser that is logged in at the calling Proxy go to one application.
func (s *AppServer) OpenSession(ctx context.Context, req *appv1.OpenSessionRequest) (*appv1.OpenSessionResponse, error) {
	parent, err := websession.Find(ctx, s.cfg.Store, req.GetWebToken(), s.cfg.Now())
	if err != nil {
		return nil, err
	}
	if parent.GetSpec().GetApp() != "" {
		return nil, fault.Denied("access denied: a session at an application opens no other one")
	}
	if _, _, err := s.browser(ctx, parent, req.GetApp(), req.GetClientAddr()); err != nil {
		return nil, err
	}
	tx := s.cfg.Store.Tx()
	if err := websession.MakeRoom(ctx, s.cfg.Store, tx, parent, req.GetApp()); err != nil {
		return nil, err
	}
	token, session, err := websession.NewApp(parent, req.GetApp(), s.cfg.Now())
	if err != nil {
		return nil, err
	}
	if err := tx.Create(session).Commit(ctx); err != nil {
		return nil, err
	}
	return &appv1.OpenSessionResponse{Token: token, Expires: session.GetMetadata().GetExpires()}, nil
}

// browser holds a session against the user's rights as they are now, and returns the user
// and who serves the application. A refusal is in the audit log.
func (s *AppServer) browser(ctx context.Context, session *typesv1.WebSession, app, from string) (*person, *typesv1.AppServer, error) {
	fields := map[string]any{"user": session.GetSpec().GetUser(), "app_name": clip(app), "addr.remote": clip(from), "proxy_id": rpc.CallerFrom(ctx).Host().ID}
	user, err := s.userOf(ctx, session)
	if err != nil {
		return nil, nil, s.cfg.refused(ctx, err, fields)
	}
	addr, err := addrOf(from)
	if err != nil {
		return nil, nil, err
	}
	p, server, err := s.admit(ctx, user, app)
	if err == nil && p.options.PinSource {
		login, perr := netip.ParseAddrPort(session.GetSpec().GetRemoteAddr())
		if perr != nil {
			err = errNotPinned()
		} else {
			user.SourceIP = login.Addr().Unmap().WithZone("").String()
			err = (&identity.Identity{User: user}).CheckSource(addr)
		}
	}
	if err != nil {
		return nil, nil, s.cfg.refused(ctx, err, fields)
	}
	return p, server, nil
}

// userOf returns the user of a session with the roles and traits that it has now.
func (s *AppServer) userOf(ctx context.Context, session *typesv1.WebSession) (*identity.User, error) {
	spec := session.GetSpec()
	user, err := store.Get[*typesv1.User](ctx, s.cfg.Store, types.KindUser, spec.GetUser())
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.Denied("access denied: user %q was deleted", spec.GetUser())
	}
	if err != nil {
		return nil, err
	}
	out := &identity.User{Name: spec.GetUser(), Roles: user.GetSpec().GetRoles(), Traits: map[string][]string{}, MFADevice: spec.GetMfaDevice()}
	for name, values := range user.GetSpec().GetTraits() {
		out.Traits[name] = values.GetValues()
	}
	return out, nil
}

// EndSession ends a session of a browser, and those that came of it. One that is over is
// no error.
func (s *AppServer) EndSession(ctx context.Context, req *appv1.EndSessionRequest) (*appv1.EndSessionResponse, error) {
	for range upsertTries {
		session, err := websession.Find(ctx, s.cfg.Store, req.GetToken(), s.cfg.Now())
		if fault.Code(err) == websession.CodeGone {
			return &appv1.EndSessionResponse{}, nil
		}
		if err != nil {
			return nil, err
		}
		tx := s.cfg.Store.Tx()
		if err := websession.End(ctx, s.cfg.Store, tx, session); err != nil {
			return nil, err
		}
		err = tx.Commit(ctx)
		if err == nil {
			return &appv1.EndSessionResponse{}, nil
		}
		if !errors.Is(err, fault.ErrNotFound) && !errors.Is(err, fault.ErrStale) {
			return nil, err
		}
	}
	return nil, fault.Stale("the session is changing all the time: try again")
}

// SignProxy signs a certificate for a key of the calling Proxy, with which it speaks for
// a user to the agents of one application.
func (s *AppServer) SignProxy(ctx context.Context, req *appv1.SignProxyRequest) (*appv1.SignProxyResponse, error) {
	if (req.GetToken() == "") == (len(req.GetUserCertificate()) == 0) {
		return nil, fault.Invalid("either token or user_certificate is needed")
	}
	p, server, until, sid, err := s.speaksFor(ctx, req)
	if err != nil {
		return nil, err
	}
	// The agent looks at the roles as well; here they are looked at again soon.
	ttl, err := s.cfg.routedTTL(p, nil, earlier(until, s.cfg.Now().Add(proxyTTL)))
	if err != nil {
		return nil, err
	}
	user := *p.user
	user.App = &identity.AppRoute{Name: req.GetApp(), PublicAddr: server.GetSpec().GetApp().GetSpec().GetPublicAddr(), SessionID: sid}
	cert, err := s.cfg.sign(ctx, &user, req.GetTlsKey(), ttl, map[string]any{
		"user": user.Name, "app_name": req.GetApp(), "sid": sid, "proxy_id": rpc.CallerFrom(ctx).Host().ID, "addr.remote": req.GetClientAddr(),
	})
	if err != nil {
		return nil, err
	}
	return &appv1.SignProxyResponse{Certificate: cert.Raw, Expires: timestamppb.New(cert.NotAfter)}, nil
}

// speaksFor returns whom the calling Proxy may speak for, until when, and in which
// session.
func (s *AppServer) speaksFor(ctx context.Context, req *appv1.SignProxyRequest) (p *person, server *typesv1.AppServer, until time.Time, sid string, err error) {
	if req.GetToken() != "" {
		session, err := websession.Find(ctx, s.cfg.Store, req.GetToken(), s.cfg.Now())
		if err != nil {
			return nil, nil, until, "", err
		}
		if session.GetSpec().GetApp() != req.GetApp() || req.GetApp() == "" {
			return nil, nil, until, "", fault.Denied("access denied: the session is for another application")
		}
		p, server, err = s.browser(ctx, session, req.GetApp(), req.GetClientAddr())
		return p, server, session.GetMetadata().GetExpires().AsTime(), session.GetMetadata().GetName(), err
	}
	id, err := s.cfg.shown(req.GetUserCertificate())
	if err != nil {
		return nil, nil, until, "", err
	}
	addr, err := addrOf(req.GetClientAddr())
	if err != nil {
		return nil, nil, until, "", err
	}
	fields := map[string]any{"user": id.User.Name, "app_name": clip(req.GetApp()), "addr.remote": req.GetClientAddr(), "proxy_id": rpc.CallerFrom(ctx).Host().ID}
	switch app := id.User.App; {
	case app == nil || app.Name != req.GetApp():
		err = fault.Denied("access denied: the certificate of %q is not for application %q", id.User.Name, clip(req.GetApp()))
	default:
		sid = app.SessionID
		err = id.CheckSource(addr)
	}
	if err == nil {
		p, server, err = s.admit(ctx, id.User, req.GetApp())
	}
	if err == nil {
		err = p.pinned()
	}
	if err != nil {
		return nil, nil, until, "", s.cfg.refused(ctx, err, fields)
	}
	return p, server, id.Expires, sid, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// appClaims are what a token says to an application.
type appClaims struct {
	Audience  []string            `json:"aud"`
	Issuer    string              `json:"iss"`
	Subject   string              `json:"sub"`
	Username  string              `json:"username"`
	Roles     []string            `json:"roles,omitempty"`
	Traits    map[string][]string `json:"traits,omitempty"`
	IssuedAt  int64               `json:"iat"`
	NotBefore int64               `json:"nbf"`
	Expires   int64               `json:"exp"`
}

// SignToken signs a token that tells an application who its user is; the calling agent
// serves it.
func (s *AppServer) SignToken(ctx context.Context, req *appv1.SignTokenRequest) (*appv1.SignTokenResponse, error) {
	host := rpc.CallerFrom(ctx).Host().ID
	server, err := store.Get[*typesv1.AppServer](ctx, s.cfg.Store, types.KindAppServer, types.ServerName(req.GetApp(), host))
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.Denied("access denied: host %s has announced no application %q", host, clip(req.GetApp()))
	}
	if err != nil {
		return nil, err
	}
	id, err := s.cfg.shown(req.GetUserCertificate())
	if err != nil {
		return nil, err
	}
	if app := id.User.App; app == nil || app.Name != req.GetApp() {
		return nil, fault.Denied("access denied: the certificate of %q is not for application %q", id.User.Name, clip(req.GetApp()))
	}
	p, err := s.cfg.person(ctx, id.User, where{host: host})
	if err == nil {
		err = p.pinned()
	}
	if err == nil {
		if d := p.checker.App(types.AppServerLabels(server)); !d.Allowed {
			err = errUnseen(d.Reason, "there is no application %q, or the roles of %q do not let it be used", req.GetApp(), id.User.Name)
		}
	}
	if err != nil {
		return nil, s.cfg.refused(ctx, err, map[string]any{"user": id.User.Name, "app_name": req.GetApp(), "server_id": host})
	}
	app := server.GetSpec().GetApp().GetSpec()
	now := s.cfg.Now()
	expires := earlier(id.Expires, now.Add(tokenTTL)).Truncate(time.Second)
	claims := appClaims{
		Audience: []string{app.GetUri()}, Issuer: s.cfg.Cluster(), Subject: id.User.Name, Username: id.User.Name,
		IssuedAt: now.Unix(), NotBefore: now.Add(-time.Minute).Unix(), Expires: expires.Unix(),
	}
	said := app.GetRewrite().GetJwtClaims()
	if said == "" || said == types.JWTClaimsAll || said == types.JWTClaimsRoles {
		for _, role := range p.subject.Roles {
			claims.Roles = append(claims.Roles, role.GetMetadata().GetName())
		}
	}
	if said == "" || said == types.JWTClaimsAll || said == types.JWTClaimsTraits {
		claims.Traits = id.User.Traits
	}
	token, err := s.cfg.Signer().SignToken(claims)
	if err != nil {
		return nil, err
	}
	return &appv1.SignTokenResponse{Token: token, Expires: timestamppb.New(expires)}, nil
}

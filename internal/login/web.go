package login

import (
	"context"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/websession"
)

// CreateWebSession trades password and second factor for a session of a browser. The
// calling Proxy says where the browser is; the limits of logins are those of Login, with
// which they are counted together.
func (s *Server) CreateWebSession(ctx context.Context, req *loginv1.CreateWebSessionRequest) (*loginv1.CreateWebSessionResponse, error) {
	proxy := rpc.CallerFrom(ctx)
	if err := s.cfg.Authorizer.Authorize(ctx, proxy, loginv1.LoginService_CreateWebSession_FullMethodName); err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddrPort(req.GetClientAddr())
	if err != nil {
		return nil, fault.Invalid("client_addr: expected the address of the browser, host:port")
	}
	a := attempt{caller: rpc.Caller{Addr: addr.String(), Via: proxy.Host().ID}, method: methodWeb}
	if validUserName(req.GetUser()) == nil {
		a.user = req.GetUser()
	}
	if err := s.admit(ctx, a); err != nil {
		return nil, err
	}
	if !wellFormed(a, req.GetPassword(), req.GetTotpCode()) {
		return nil, s.refuse(ctx, a, "malformed user name, password or code", errLogin())
	}
	resp := &loginv1.CreateWebSessionResponse{User: a.user}
	err = s.prove(ctx, a, req.GetPassword(), req.GetTotpCode(), func(ctx context.Context, tx *store.Tx, user *typesv1.User, device string) error {
		p, err := s.profile(ctx, a.caller, user, device, 0)
		if err != nil {
			return err
		}
		now := s.cfg.Now()
		expires := now.Add(p.ttl).Truncate(time.Second)
		token, session, err := websession.New(a.user, device, a.caller.Addr, now, expires)
		if err != nil {
			return err
		}
		resp.Token, resp.Expires = token, timestamppb.New(expires)
		success := a.fields(true)
		success["roles"], success["session_id"], success["expires"] = p.roles, session.GetMetadata().GetName(), expires
		tx.Create(session).Emit(audit.New(audit.UserLogin, success))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

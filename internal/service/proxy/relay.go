package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"

	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/budget"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/rpc"
)

const (
	// relayRate and relayBurst bound what one source may ask of Auth before anybody
	// knows who it is: joins and logins a second.
	relayRate  = 50
	relayBurst = 200
	// joinTimeout bounds one join.
	joinTimeout = time.Minute
	// authDialTimeout bounds a connection to Auth.
	authDialTimeout = 10 * time.Second
	// relayedPurpose is what the signed statement about the client is for.
	relayedPurpose = "auth"
)

// relay passes the calls of strangers on to Auth and adds where they come from.
type relay struct {
	joinv1.UnimplementedJoinServiceServer
	loginv1.UnimplementedLoginServiceServer
	s     *Service
	join  joinv1.JoinServiceClient
	login loginv1.LoginServiceClient
}

// serveRelay serves joins and logins with the web certificate.
func (s *Service) serveRelay(ctx context.Context, ln net.Listener) error {
	r := &relay{s: s, join: joinv1.NewJoinServiceClient(s.cfg.AuthConn), login: loginv1.NewLoginServiceClient(s.cfg.AuthConn)}
	server := rpc.NewServer(rpc.ServerConfig{
		TLS:       s.web.config("h2"),
		Identify:  func(tls.ConnectionState) (*identity.Identity, error) { return nil, nil },
		Authorize: s.admitRelay,
		Log:       s.cfg.Log,
	})
	joinv1.RegisterJoinServiceServer(server.Registrar(), r)
	loginv1.RegisterLoginServiceServer(server.Registrar(), r)
	return server.Serve(ctx, ln)
}

// relayable are the calls that strangers may make.
var relayable = map[string]bool{
	joinv1.JoinService_Join_FullMethodName:               true,
	loginv1.LoginService_GetInvitation_FullMethodName:    true,
	loginv1.LoginService_RedeemInvitation_FullMethodName: true,
	loginv1.LoginService_Login_FullMethodName:            true,
}

// admitRelay bounds each source; Auth decides everything else.
func (s *Service) admitRelay(_ context.Context, c rpc.Caller, method string) error {
	if !relayable[method] {
		return fault.Denied("a Proxy does not pass this call on: connect to the Auth Service")
	}
	if !s.relayed.Allow(budget.Source(c.Addr), time.Now()) {
		return fault.Limit("too many requests from your address: wait a second and try again")
	}
	return nil
}

// onward returns the context of the call to Auth.
func onward(ctx context.Context) context.Context {
	return rpc.WithRelayedAddr(ctx, rpc.CallerFrom(ctx).Addr)
}

// GetInvitation passes the call on.
func (r *relay) GetInvitation(ctx context.Context, req *loginv1.GetInvitationRequest) (*loginv1.GetInvitationResponse, error) {
	return r.login.GetInvitation(onward(ctx), req)
}

// RedeemInvitation passes the call on.
func (r *relay) RedeemInvitation(ctx context.Context, req *loginv1.RedeemInvitationRequest) (*loginv1.RedeemInvitationResponse, error) {
	return r.login.RedeemInvitation(onward(ctx), req)
}

// Login passes the call on.
func (r *relay) Login(ctx context.Context, req *loginv1.LoginRequest) (*loginv1.LoginResponse, error) {
	return r.login.Login(onward(ctx), req)
}

// Join passes the stream on, in both directions.
func (r *relay) Join(down grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	ctx, cancel := context.WithTimeout(onward(down.Context()), joinTimeout)
	defer cancel()
	up, err := r.join.Join(ctx)
	if err != nil {
		return err
	}
	go func() {
		// When the machine has said its last word, or is gone, Auth hears of it; the
		// end of the exchange is Auth's answer below.
		for {
			req, err := down.Recv()
			if errors.Is(err, io.EOF) {
				_ = up.CloseSend()
				return
			}
			if err != nil || up.Send(req) != nil {
				return
			}
		}
	}()
	for {
		resp, err := up.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := down.Send(resp); err != nil {
			return err
		}
	}
}

// serveAuth passes TLS connections for Auth on, unopened, after a signed statement of
// where they come from.
func (s *Service) serveAuth(ctx context.Context, ln net.Listener) error {
	return mux.Accept(ctx, ln, s.cfg.Log, func(conn net.Conn) {
		s.track(ctx, conn, func(ctx context.Context) {
			auth, err := s.dialAuth(ctx, conn.RemoteAddr().String())
			if err != nil {
				s.cfg.Log.WarnContext(ctx, "cannot reach the Auth Service", "addr", s.cfg.AuthAddr, "error", err)
				return
			}
			join(conn, auth)
		})
	})
}

func (s *Service) dialAuth(ctx context.Context, clientAddr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, authDialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.cfg.AuthAddr)
	if err != nil {
		return nil, err
	}
	if err := mux.WriteRelayed(conn, clientAddr, relayedPurpose, s.certificate(), time.Now()); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/budget"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/retry"
	"teleport/internal/rpc"
)

const (
	// Joins come in crowds from behind one address, and cost Auth little before the
	// machine has proven something.
	joinRate, joinBurst = 200, 500
	// Logins cost Auth a password hash. A whole office may be behind one address.
	loginRate, loginBurst = 20, 100
	// joinTimeout bounds one join, loginTimeout a call that hashes a password.
	joinTimeout  = time.Minute
	loginTimeout = 30 * time.Second
	// maxMessages bounds a join in each direction, maxJoinBytes what is taken from the
	// machine in all, maxLoginBytes one request of a person.
	maxMessages   = 16
	maxJoinBytes  = 256 << 10
	maxLoginBytes = 64 << 10
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
		TLS:       s.web.config(tls.VersionTLS13, "h2"),
		Identify:  func(tls.ConnectionState) (*identity.Identity, error) { return nil, nil },
		Authorize: s.admitRelay,
		OnRefused: s.metrics.overLimit.Inc,
		Log:       s.cfg.Log,
	})
	joinv1.RegisterJoinServiceServer(server.Registrar(), r)
	loginv1.RegisterLoginServiceServer(server.Registrar(), r)
	// Not a bounded listener: package rpc bounds strangers itself, and knows which of
	// them are idle and can make room.
	return server.Serve(ctx, ln)
}

// admitRelay admits the calls that strangers may make and bounds each source; Auth
// decides everything else.
func (s *Service) admitRelay(_ context.Context, c rpc.Caller, method string) error {
	bound := s.logins
	switch method {
	case joinv1.JoinService_Join_FullMethodName:
		bound = s.joins
	case loginv1.LoginService_GetInvitation_FullMethodName, loginv1.LoginService_RedeemInvitation_FullMethodName,
		loginv1.LoginService_Login_FullMethodName:
	default:
		return fault.Denied("a Proxy does not pass this call on: connect to the Auth Service")
	}
	if !bound.Allow(budget.Source(c.Addr), time.Now()) {
		s.metrics.overLimit.Inc()
		// Spread over the time in which the budget of a crowd fills again.
		return fault.New(fault.ErrLimit, "too many requests from your address: wait a second and try again").
			WithRetryAfter(time.Second + retry.Jitter(2*time.Second*joinBurst/joinRate))
	}
	return nil
}

// onward returns the context of the call to Auth.
func onward(ctx context.Context) context.Context {
	return rpc.WithRelayedAddr(ctx, rpc.CallerFrom(ctx).Addr)
}

// count counts a call that was passed on.
func (r *relay) count(method string, err error) {
	result := "ok"
	if kind := fault.Kind(err); kind != nil {
		result = kind.Error()
	} else if err != nil {
		result = "failed"
	}
	r.s.metrics.relayed.WithLabelValues(method, result).Inc()
}

// passCall passes one call of a person on.
func passCall[Req, Resp proto.Message](ctx context.Context, r *relay, method string, req Req,
	next func(context.Context, Req, ...grpc.CallOption) (Resp, error),
) (resp Resp, err error) {
	defer func() { r.count(method, err) }()
	if size := proto.Size(req); size > maxLoginBytes {
		return resp, fault.Limit("request of %d bytes: at most %d are allowed", size, maxLoginBytes)
	}
	ctx, cancel := context.WithTimeout(onward(ctx), loginTimeout)
	defer cancel()
	return next(ctx, req)
}

// GetInvitation passes the call on.
func (r *relay) GetInvitation(ctx context.Context, req *loginv1.GetInvitationRequest) (*loginv1.GetInvitationResponse, error) {
	return passCall(ctx, r, "GetInvitation", req, r.login.GetInvitation)
}

// RedeemInvitation passes the call on.
func (r *relay) RedeemInvitation(ctx context.Context, req *loginv1.RedeemInvitationRequest) (*loginv1.RedeemInvitationResponse, error) {
	return passCall(ctx, r, "RedeemInvitation", req, r.login.RedeemInvitation)
}

// Login passes the call on.
func (r *relay) Login(ctx context.Context, req *loginv1.LoginRequest) (*loginv1.LoginResponse, error) {
	return passCall(ctx, r, "Login", req, r.login.Login)
}

// Join passes the stream on, in both directions.
func (r *relay) Join(down grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) (err error) {
	defer func() { r.count("Join", err) }()
	ctx, cancel := context.WithCancelCause(onward(down.Context()))
	defer cancel(nil)
	expired := fault.Limit("joining took longer than %s: try again", joinTimeout)
	timer := time.AfterFunc(joinTimeout, func() { cancel(expired) })
	defer timer.Stop()
	up, err := r.join.Join(ctx)
	if err != nil {
		return err
	}
	// This goroutine ends with the stream of the machine, which ends when Join
	// returns. The end of the exchange is Auth's answer below.
	go func() {
		defer func() {
			if p := recover(); p != nil {
				r.s.cfg.Log.ErrorContext(ctx, "a join was ended by a panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				cancel(errors.New("panic in join"))
			}
		}()
		if err := passMachine(down, up); err != nil {
			cancel(err)
		}
	}()
	for range maxMessages {
		resp, err := up.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && fault.Kind(context.Cause(ctx)) != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		if err := down.Send(resp); err != nil {
			return err
		}
	}
	return fault.Limit("joining took more than %d answers", maxMessages)
}

// passMachine passes on what the machine says, until its last word.
func passMachine(down grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse], up grpc.BidiStreamingClient[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	taken := 0
	for range maxMessages {
		req, err := down.Recv()
		if errors.Is(err, io.EOF) {
			return up.CloseSend()
		}
		if err != nil {
			return err
		}
		if taken += proto.Size(req); taken > maxJoinBytes {
			return fault.Limit("the join sent more than %d bytes", maxJoinBytes)
		}
		if err := up.Send(req); err != nil {
			return nil //nolint:nilerr // Auth has ended the exchange, Recv says how
		}
	}
	return fault.Limit("the join sent more than %d messages", maxMessages)
}

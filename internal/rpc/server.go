package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"teleport/internal/fault"
	"teleport/internal/identity"
)

const (
	handshakeTimeout = 10 * time.Second
	// stopTimeout is how long calls may take to finish when the server stops.
	stopTimeout = 5 * time.Second
)

// ServerConfig is what a Server needs. A nil Authorize refuses every call and a
// nil Identify every TLS connection.
type ServerConfig struct {
	// TLS is the server's certificate and trust (see ca.ServerTLS); nil when only
	// the local socket is served.
	TLS *tls.Config
	// Identify returns who holds the client certificate, nil without one.
	Identify func(tls.ConnectionState) (*identity.Identity, error)
	// Authorize says whether the caller may make the call.
	Authorize func(ctx context.Context, c Caller, fullMethod string) error
	Log       *slog.Logger
	// OnRefused is called for each connection that is refused because there are too
	// many of its source or in all; it may be nil.
	OnRefused func()
	// Now is the clock for the life of client certificates; nil is time.Now.
	Now func() time.Time
}

// Server serves gRPC to agents, users and the local administrator.
type Server struct {
	cfg      ServerConfig
	grpc     *grpc.Server
	stopOnce sync.Once
	stopping context.Context //nolint:containedctx // the life of the server, which ends every stream
	stop     context.CancelCauseFunc
	stopped  chan struct{}
}

// errStopping is why streams end when the server stops.
var errStopping = fault.Unreachable("the service is stopping, try again soon")

// NewServer makes a server; register services with Registrar before serving.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, stopped: make(chan struct{})}
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(newTransport(cfg.TLS, cfg.OnRefused)),
		grpc.ReadBufferSize(0),      // one more read a frame, 13 KiB less a connection
		grpc.WriteBufferSize(4<<10), // shared by the connections, as is the default
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(MaxResponse),
		grpc.MaxConcurrentStreams(128),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			Time:              2 * time.Minute,
			Timeout:           keepaliveTimeout,
		}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	return s
}

// Registrar is where services are registered.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.grpc }

// Serve answers TLS connections of ln until ctx ends, and closes ln. The first of
// a server's Serve calls to end stops the whole server: calls get a few seconds to
// finish, streams are cut. It returns nil when it ended because of ctx.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if s.cfg.TLS == nil {
		return errors.Join(fault.Invalid("serve rpc: no TLS configuration"), ln.Close())
	}
	return s.serve(ctx, ln)
}

// ServeLocal answers connections of a unix socket until ctx ends, and closes it.
// Only the user that the service runs as and root get in, as local administrators.
func (s *Server) ServeLocal(ctx context.Context, ln net.Listener) error {
	unixLn, ok := ln.(*net.UnixListener)
	if !ok {
		return errors.Join(fault.Invalid("serve local rpc: %T is not a unix socket", ln), ln.Close())
	}
	return s.serve(ctx, localListener{unixLn})
}

func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- s.grpc.Serve(ln) }()
	select {
	case err := <-done:
		s.shutdown()
		if ctx.Err() == nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve rpc on %s: %w", ln.Addr(), err)
		}
		return nil
	case <-ctx.Done():
		s.shutdown()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			s.cfg.Log.DebugContext(ctx, "rpc listener ended", "addr", ln.Addr().String(), "error", err)
		}
		return nil
	}
}

// shutdown ends streams, waits for calls, then closes what is left. Later callers
// wait for the first.
func (s *Server) shutdown() {
	s.stopOnce.Do(func() {
		defer close(s.stopped)
		s.stop(errStopping)
		cut := time.AfterFunc(stopTimeout, s.grpc.Stop)
		defer cut.Stop()
		s.grpc.GracefulStop()
	})
	<-s.stopped
}

// unary wraps every unary call: deadline, caller, authorisation, panic, error.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer busy(ctx)()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := s.admit(ctx, info.FullMethod)
	if err == nil {
		resp, err = s.guardUnary(WithCaller(ctx, c), req, info.FullMethod, handler)
	}
	s.cfg.Log.DebugContext(ctx, "rpc", "method", info.FullMethod, "caller", c.Name(), "addr", c.Addr,
		"took", time.Since(start), "error", err)
	return resp, toStatus(ctx, s.cfg.Log, info.FullMethod, err)
}

// busy notes that the connection of ctx has a call in progress, until the function
// that it returns is called.
func busy(ctx context.Context) (end func()) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.stranger.begin()
		}
	}
	return func() {}
}

func (s *Server) guardUnary(ctx context.Context, req any, method string, handler grpc.UnaryHandler) (resp any, err error) {
	defer s.recovered(ctx, method, &err)
	return handler(ctx, req)
}

// stream wraps every stream: caller, authorisation, end of the server, panic, error.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	defer busy(ss.Context())()
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	c, err := s.admit(ctx, info.FullMethod)
	if err == nil {
		err = s.guardStream(srv, &serverStream{ServerStream: ss, ctx: WithCaller(ctx, c)}, info.FullMethod, handler)
	}
	if err != nil && errors.Is(context.Cause(ctx), errStopping) {
		err = errStopping
	}
	s.cfg.Log.DebugContext(ctx, "rpc stream ended", "method", info.FullMethod, "caller", c.Name(), "addr", c.Addr, "error", err)
	return toStatus(ctx, s.cfg.Log, info.FullMethod, err)
}

func (s *Server) guardStream(srv any, ss grpc.ServerStream, method string, handler grpc.StreamHandler) (err error) {
	defer s.recovered(ss.Context(), method, &err)
	return handler(srv, ss)
}

// admit works out the caller and asks whether it may make the call.
func (s *Server) admit(ctx context.Context, method string) (Caller, error) {
	c, err := s.caller(ctx)
	if err != nil {
		return c, err
	}
	if s.cfg.Authorize == nil {
		return c, fault.Denied("%s: this server allows no calls", method)
	}
	return c, s.cfg.Authorize(ctx, c, method)
}

// recovered turns a panic of a handler into an error and logs it.
func (s *Server) recovered(ctx context.Context, method string, err *error) {
	if v := recover(); v != nil {
		s.cfg.Log.ErrorContext(ctx, "rpc panicked", "method", method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic in %s", method)
	}
}

// serverStream is a stream whose context knows the caller.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the interface of grpc asks for it
}

// Context returns the stream's context.
func (s *serverStream) Context() context.Context { return s.ctx }

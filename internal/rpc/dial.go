package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"teleport/internal/fault"
)

const (
	// keepaliveTime is how often an idle client asks whether the server is there;
	// servers allow twice as often.
	keepaliveTime    = 45 * time.Second
	keepaliveTimeout = 20 * time.Second
	dialTimeout      = 10 * time.Second
	// briefWindow is how much a brief connection takes at once.
	briefWindow = 64 << 10
)

// DialConfig says how to reach a server.
type DialConfig struct {
	// Addr is host:port.
	Addr string
	// TLS is required; see ca.ClientTLS and ca.PinnedTLS. ALPN h2 is added.
	TLS *tls.Config
	// Dial opens the connection underneath; nil is a plain TCP dial.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Brief is for a connection that carries one short exchange: it does not measure
	// how much could be under way, which costs both ends a ping for every message.
	Brief bool
}

// Dial makes a client connection. It connects on first use and again when the
// connection is lost; errors of calls are of fault kinds. The caller closes it.
func Dial(cfg DialConfig) (*grpc.ClientConn, error) {
	if cfg.TLS == nil {
		return nil, fault.Invalid("dial %s: no TLS configuration", cfg.Addr)
	}
	if _, _, err := net.SplitHostPort(cfg.Addr); err != nil {
		return nil, fault.Invalid("dial %q: expected host:port", cfg.Addr)
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	opts := append(clientOptions(), grpc.WithTransportCredentials(credentials.NewTLS(cfg.TLS)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) }))
	if cfg.Brief {
		opts = append(opts, grpc.WithStaticStreamWindowSize(briefWindow), grpc.WithStaticConnWindowSize(briefWindow))
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Addr, opts...)
	if err != nil {
		return nil, fault.Invalid("dial %q: %w", cfg.Addr, err)
	}
	return conn, nil
}

// DialLocal makes a client connection to the local socket of an Auth Service.
func DialLocal(socket string) (*grpc.ClientConn, error) {
	opts := append(clientOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialUnix(ctx, socket)
		}))
	conn, err := grpc.NewClient("passthrough:///localhost", opts...)
	if err != nil {
		return nil, fault.Invalid("dial %q: %w", socket, err)
	}
	return conn, nil
}

func clientOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithReadBufferSize(4 << 10),
		grpc.WithWriteBufferSize(4 << 10),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(16 << 10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxResponse), grpc.MaxCallSendMsgSize(maxRequest)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 10 * time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithUnaryInterceptor(clientUnary),
		grpc.WithStreamInterceptor(clientStream),
	}
}

// clientUnary gives a call a deadline if it has none, and its error a kind.
func clientUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	return FromStatus(invoke(ctx, method, req, reply, cc, opts...))
}

// clientStream gives the errors of a stream their kinds.
func clientStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return kindStream{s}, nil
}

// kindStream is a client stream whose errors have kinds.
type kindStream struct{ grpc.ClientStream }

// SendMsg sends one message.
func (s kindStream) SendMsg(m any) error { return FromStatus(s.ClientStream.SendMsg(m)) }

// RecvMsg receives one message; io.EOF is the orderly end.
func (s kindStream) RecvMsg(m any) error { return FromStatus(s.ClientStream.RecvMsg(m)) }

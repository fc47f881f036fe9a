package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	agentv1 "teleport/api/agent/v1"
	statusv1 "teleport/api/status/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// certificate makes a self-signed certificate whose common name is name.
func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"server"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// identify reads test identities out of common names.
func identify(cs tls.ConnectionState) (*identity.Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, nil
	}
	id := &identity.Identity{Cluster: "c", Expires: time.Now().Add(time.Hour)}
	switch name := cs.PeerCertificates[0].Subject.CommonName; name {
	case "proxy":
		id.Host = &identity.Host{ID: "proxy-1", Roles: []types.SystemRole{types.RoleProxy}, Service: types.RoleProxy}
	case "node":
		id.Host = &identity.Host{ID: "node-1", Roles: []types.SystemRole{types.RoleNode}, Service: types.RoleNode}
	case "expired":
		id.User, id.Expires = &identity.User{Name: "alice"}, time.Now().Add(-time.Minute)
	case "foreign":
		return nil, fault.Unauthenticated("signed by an unknown authority")
	default:
		id.User = &identity.User{Name: name}
	}
	return id, nil
}

// service answers by calling functions.
type service struct {
	statusv1.UnimplementedStatusServiceServer
	agentv1.UnimplementedAgentServiceServer
	status  func(context.Context) (*statusv1.GetStatusResponse, error)
	control func(grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]) error
}

func (s *service) GetStatus(ctx context.Context, _ *statusv1.GetStatusRequest) (*statusv1.GetStatusResponse, error) {
	return s.status(ctx)
}

func (s *service) Control(st grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]) error {
	return s.control(st)
}

// whoami answers with the caller as the cluster name.
func whoami(ctx context.Context) (*statusv1.GetStatusResponse, error) {
	c := rpc.CallerFrom(ctx)
	addr := "addr"
	if c.Addr == "203.0.113.9:1234" {
		addr = c.Addr
	}
	return &statusv1.GetStatusResponse{ClusterName: fmt.Sprintf("%s|%t|%s|%s", c.Name(), c.Anonymous(), addr, c.Via)}, nil
}

// world is a running server.
type world struct {
	addr, socket string
	pool         *x509.CertPool
	stop         context.CancelFunc
	done         chan error
}

func start(t *testing.T, svc *service) *world {
	t.Helper()
	cert := certificate(t, "server")
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	srv := rpc.NewServer(rpc.ServerConfig{
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
		},
		Identify: identify,
		Authorize: func(_ context.Context, c rpc.Caller, method string) error {
			if c.Name() == "mallory" {
				return fault.Denied("%s may not call %s", c.Name(), method)
			}
			return nil
		},
	})
	statusv1.RegisterStatusServiceServer(srv.Registrar(), svc)
	agentv1.RegisterAgentServiceServer(srv.Registrar(), svc)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{addr: ln.Addr().String(), socket: filepath.Join(t.TempDir(), "s"), pool: pool, done: make(chan error, 2)}
	local, err := rpc.ListenLocal(t.Context(), w.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- srv.Serve(ctx, ln) }()
	go func() { w.done <- srv.ServeLocal(ctx, local) }()
	t.Cleanup(cancel)
	return w
}

// dial connects as name ("" is without a certificate).
func (w *world) dial(t *testing.T, name string, protos ...string) *grpc.ClientConn {
	t.Helper()
	conf := &tls.Config{RootCAs: w.pool, ServerName: "server", MinVersion: tls.VersionTLS13, NextProtos: protos}
	if name != "" {
		conf.Certificates = []tls.Certificate{certificate(t, name)}
	}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: w.addr, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestCaller(t *testing.T) {
	w := start(t, &service{status: whoami})
	tests := []struct {
		name, as, relay string
		protos          []string
		want            string
		kind            error
		message         string
	}{
		{name: "anonymous", want: "|true|addr|"},
		{name: "user", as: "alice", want: "alice|false|addr|"},
		{name: "through_the_proxy_by_alpn", as: "alice", protos: []string{"teleport-auth@c", "h2"}, want: "alice|false|addr|"},
		{name: "host", as: "node", want: "node-1|false|addr|"},
		{name: "expired_certificate", as: "expired", kind: fault.ErrUnauthenticated, message: "expired at"},
		{name: "foreign_certificate", as: "foreign", kind: fault.ErrUnauthenticated, message: "unknown authority"},
		{name: "not_authorised", as: "mallory", kind: fault.ErrDenied, message: "mallory may not"},
		{name: "proxy_itself", as: "proxy", want: "proxy-1|false|addr|"},
		{name: "relayed_by_a_proxy", as: "proxy", relay: "203.0.113.9:1234", want: "|true|203.0.113.9:1234|proxy-1"},
		{name: "relayed_by_a_node", as: "node", relay: "203.0.113.9:1234", kind: fault.ErrDenied, message: "only a Proxy"},
		{name: "relayed_by_a_user", as: "alice", relay: "203.0.113.9:1234", kind: fault.ErrDenied, message: "only a Proxy"},
		{name: "relayed_by_nobody", relay: "203.0.113.9:1234", kind: fault.ErrDenied, message: "only a Proxy"},
		{name: "relayed_nonsense", as: "proxy", relay: "somewhere", kind: fault.ErrInvalid, message: "host:port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.relay != "" {
				ctx = rpc.WithRelayedAddr(ctx, tt.relay)
			}
			resp, err := statusv1.NewStatusServiceClient(w.dial(t, tt.as, tt.protos...)).GetStatus(ctx, &statusv1.GetStatusRequest{})
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.message) {
					t.Fatalf("error = %v, want %v with %q", err, tt.kind, tt.message)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetClusterName() != tt.want {
				t.Errorf("caller = %q, want %q", resp.GetClusterName(), tt.want)
			}
		})
	}
}

func TestLocal(t *testing.T) {
	w := start(t, &service{status: whoami})
	conn, err := rpc.DialLocal(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	resp, err := statusv1.NewStatusServiceClient(conn).GetStatus(t.Context(), &statusv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if want := "local administrator|false|addr|"; resp.GetClusterName() != want {
		t.Errorf("caller = %q, want %q", resp.GetClusterName(), want)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	svc := &service{}
	w := start(t, svc)
	client := statusv1.NewStatusServiceClient(w.dial(t, "alice"))
	for _, kind := range fault.Kinds() {
		t.Run(strings.ReplaceAll(kind.Error(), " ", "_"), func(t *testing.T) {
			svc.status = func(context.Context) (*statusv1.GetStatusResponse, error) {
				return nil, fmt.Errorf("outer: %w", fault.New(kind, "inner").WithCode("some_reason"))
			}
			_, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{})
			if !errors.Is(err, kind) || fault.Code(err) != "some_reason" || err.Error() != "outer: inner" {
				t.Errorf("error = %q of kind %v with code %q", err, fault.Kind(err), fault.Code(err))
			}
		})
	}
	t.Run("inside_stays_inside", func(t *testing.T) {
		svc.status = func(context.Context) (*statusv1.GetStatusResponse, error) {
			return nil, errors.New("disk /dev/secret full")
		}
		_, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{})
		if err == nil || strings.Contains(err.Error(), "secret") || fault.Kind(err) != nil {
			t.Errorf("error = %v, want one without details and kind", err)
		}
	})
	t.Run("panic_is_an_error", func(t *testing.T) {
		svc.status = func(context.Context) (*statusv1.GetStatusResponse, error) { panic("boom") }
		if _, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{}); err == nil || strings.Contains(err.Error(), "boom") {
			t.Errorf("error = %v, want one without details", err)
		}
	})
	t.Run("default_deadline", func(t *testing.T) {
		svc.status = func(ctx context.Context) (*statusv1.GetStatusResponse, error) {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > 31*time.Second {
				return nil, fault.Invalid("deadline %v", d)
			}
			return &statusv1.GetStatusResponse{}, nil
		}
		if _, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{}); err != nil {
			t.Error(err)
		}
	})
}

func TestDialErrors(t *testing.T) {
	tests := []struct {
		name string
		cfg  rpc.DialConfig
	}{
		{"no_tls", rpc.DialConfig{Addr: "127.0.0.1:1"}},
		{"no_port", rpc.DialConfig{Addr: "host", TLS: &tls.Config{MinVersion: tls.VersionTLS13}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if conn, err := rpc.Dial(tt.cfg); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("Dial = %v, %v, want ErrInvalid", conn, err)
			}
		})
	}
	t.Run("nobody_there", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = ln.Close()
		conn, err := rpc.Dial(rpc.DialConfig{Addr: ln.Addr().String(), TLS: &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, err = statusv1.NewStatusServiceClient(conn).GetStatus(t.Context(), &statusv1.GetStatusRequest{})
		if !errors.Is(err, fault.ErrUnreachable) {
			t.Errorf("error = %v, want ErrUnreachable", err)
		}
	})
}

func TestStopEndsStreams(t *testing.T) {
	entered := make(chan struct{})
	w := start(t, &service{control: func(st grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]) error {
		close(entered)
		<-st.Context().Done()
		return st.Context().Err()
	}})
	st, err := agentv1.NewAgentServiceClient(w.dial(t, "node")).Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	w.stop()
	if _, err := st.Recv(); !errors.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("Recv = %v, want ErrUnreachable because the service stops", err)
	}
	for range 2 {
		if err := <-w.done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	}
}

func TestStreamErrorsHaveKinds(t *testing.T) {
	w := start(t, &service{control: func(st grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		return fault.New(fault.ErrDenied, "no").WithCode("because")
	}})
	st, err := agentv1.NewAgentServiceClient(w.dial(t, "node")).Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&agentv1.ControlRequest{}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, fault.ErrDenied) || fault.Code(err) != "because" {
		t.Errorf("Recv = %v with code %q, want ErrDenied because", err, fault.Code(err))
	}
}

func TestConnRenew(t *testing.T) {
	w := start(t, &service{status: whoami})
	name := "alice"
	conf := &tls.Config{
		RootCAs: w.pool, ServerName: "server", MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert := certificate(t, name)
			return &cert, nil
		},
	}
	conn, err := rpc.NewConn(rpc.DialConfig{Addr: w.addr, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	client := statusv1.NewStatusServiceClient(conn)
	ask := func() string {
		t.Helper()
		resp, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(resp.GetClusterName(), "|")[0]
	}
	if got := ask(); got != "alice" {
		t.Fatalf("caller = %q, want alice", got)
	}
	name = "bob"
	if got := ask(); got != "alice" {
		t.Fatalf("caller before Renew = %q, want alice", got)
	}
	if err := conn.Renew(); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != "bob" {
		t.Errorf("caller after Renew = %q, want bob", got)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.GetStatus(t.Context(), &statusv1.GetStatusRequest{}); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("call after Close = %v, want ErrUnreachable", err)
	}
	if err := conn.Renew(); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("Renew after Close = %v, want ErrUnreachable", err)
	}
}

func TestListenLocal(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(long, "s")} {
		// Twice: a socket that a killed process left behind is replaced.
		for range 2 {
			ln, err := rpc.ListenLocal(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
			}
			if _, err := rpc.ListenLocal(t.Context(), path); !errors.Is(err, fault.ErrExists) {
				t.Errorf("second ListenLocal = %v, want ErrExists", err)
			}
			ln.(*net.UnixListener).SetUnlinkOnClose(false)
			_ = ln.Close()
		}
	}
	if _, err := rpc.ListenLocal(t.Context(), plain); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("ListenLocal over a file = %v, want ErrInvalid", err)
	}
}

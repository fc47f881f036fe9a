package rpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"

	agentv1 "teleport/api/agent/v1"
	statusv1 "teleport/api/status/v1"
	"teleport/internal/rpc"
)

// TestIdleCrowd opens more idle connections from one address than were ever allowed
// in all. Calls from another address, and from the same, work at once; a stream of
// the crowd's address goes on.
func TestIdleCrowd(t *testing.T) {
	echo := func(st grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]) error {
		for {
			if _, err := st.Recv(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := st.Send(&agentv1.ControlResponse{}); err != nil {
				return err
			}
		}
	}
	w := start(t, &service{status: whoami, control: echo})
	from := func(ip string) *grpc.ClientConn {
		t.Helper()
		cc, err := rpc.Dial(rpc.DialConfig{
			Addr: w.addr, TLS: &tls.Config{RootCAs: w.pool, ServerName: "server", MinVersion: tls.VersionTLS13},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext(ctx, network, addr)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cc.Close() })
		return cc
	}
	stream, err := agentv1.NewAgentServiceClient(from("127.0.0.9")).Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ping := func() error {
		if err := stream.Send(&agentv1.ControlRequest{}); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}

	dialer := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}},
		Config:    &tls.Config{RootCAs: w.pool, ServerName: "server", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}},
	}
	crowd := make([]net.Conn, 1100)
	for i := range crowd {
		if crowd[i], err = dialer.DialContext(t.Context(), "tcp", w.addr); err != nil {
			t.Fatalf("idle connection %d: %v", i, err)
		}
		defer crowd[i].Close()
		if _, err := crowd[i].Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			t.Fatalf("idle connection %d: %v", i, err)
		}
	}
	for _, ip := range []string{"127.0.0.1", "127.0.0.9"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := statusv1.NewStatusServiceClient(from(ip)).GetStatus(ctx, &statusv1.GetStatusRequest{}); err != nil {
			t.Errorf("call from %s: %v", ip, err)
		}
	}
	if err := ping(); err != nil {
		t.Errorf("the stream of the crowd's address: %v", err)
	}
	if err := crowd[0].SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, crowd[0]); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest idle connection is still open")
	}
}

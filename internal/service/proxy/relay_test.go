package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// relayedNode is the listener of a node that is not behind a tunnel.
func relayedNode(t testing.TB, w *world, ln net.Listener) net.Listener {
	t.Helper()
	out := mux.RelayedListener(ln, mux.PurposeNode, func(c *x509.Certificate) error {
		id, err := w.trust.VerifyTLS([]*x509.Certificate{c}, time.Now())
		if err == nil && !id.Host.Serves(types.RoleProxy) {
			return errors.New("not a Proxy")
		}
		return err
	}, time.Now)
	t.Cleanup(func() { _ = out.Close() })
	return out
}

func TestRelayedLogin(t *testing.T) {
	w := newWorld(t)
	c := loginv1.NewLoginServiceClient(w.call(t))
	got, err := c.Login(t.Context(), &loginv1.LoginRequest{User: "alice", Password: "right"})
	if err != nil || got.GetCertificates().GetUser() != "alice" {
		t.Fatalf("Login = %v, %v", got, err)
	}
	caller := w.auth.last()
	if !caller.Anonymous() || caller.Via != w.holder.HostID() || !strings.HasPrefix(caller.Addr, "127.0.0.1:") || caller.Addr == w.addr {
		t.Errorf("Auth sees %+v, want an anonymous caller with its address, via the Proxy", caller)
	}
	if _, err := c.Login(t.Context(), &loginv1.LoginRequest{User: "alice", Password: "wrong"}); !errors.Is(err, fault.ErrUnauthenticated) || !strings.Contains(err.Error(), "wrong name") {
		t.Errorf("Login = %v, want Auth's refusal", err)
	}
	if inv, err := c.GetInvitation(t.Context(), &loginv1.GetInvitationRequest{Token: "t"}); err != nil || inv.GetUser() != "t" {
		t.Errorf("GetInvitation = %v, %v", inv, err)
	}
	if inv, err := c.RedeemInvitation(t.Context(), &loginv1.RedeemInvitationRequest{Token: "t"}); err != nil || inv.GetUser() != "t" {
		t.Errorf("RedeemInvitation = %v, %v", inv, err)
	}
	if _, err := c.Login(t.Context(), &loginv1.LoginRequest{User: strings.Repeat("x", 70_000)}); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("Login with 70 KB = %v, want ErrLimit", err)
	}
}

// TestIdleCrowd opens idle connections from one address, more than a source may have:
// a person at another address logs in at once.
func TestIdleCrowd(t *testing.T) {
	w := newWorld(t)
	cfg := ca.PinnedTLS(w.trust.Pins(), types.RoleProxy)
	cfg.NextProtos = []string{mux.ALPNProxyGRPC, "h2"}
	dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}}, Config: cfg}
	for range 1100 { // one more or less that is refused does not matter
		if conn, err := dialer.DialContext(t.Context(), "tcp", w.addr); err == nil {
			defer conn.Close()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got, err := loginv1.NewLoginServiceClient(w.call(t)).Login(ctx, &loginv1.LoginRequest{User: "alice", Password: "right"})
	if err != nil || got.GetCertificates().GetUser() != "alice" {
		t.Errorf("Login = %v, %v", got, err)
	}
}

func joinInit(token string) *joinv1.JoinRequest {
	return &joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: &joinv1.Init{TokenId: token}}}
}

func TestRelayedJoin(t *testing.T) {
	w := newWorld(t)
	c := joinv1.NewJoinServiceClient(w.call(t))
	s, err := c.Join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"one", "two"} {
		if err := s.Send(joinInit(id)); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Recv(); err != nil || m.GetQuestion().GetMethod() != id {
			t.Fatalf("Recv = %v, %v", m, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv = %v, want the end", err)
	}
	if caller := w.auth.last(); !caller.Anonymous() || caller.Via != w.holder.HostID() {
		t.Errorf("Auth sees %+v", caller)
	}
}

func TestRelayedJoinRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers int
		send    []*joinv1.JoinRequest
		want    error
		text    string
	}{
		{"by_auth", 1, []*joinv1.JoinRequest{joinInit("bad")}, fault.ErrDenied, "no such token"},
		{"too_many_messages", 0, manyInits(40), fault.ErrLimit, "more than 16"},
		{"too_many_answers", 100, []*joinv1.JoinRequest{joinInit("x")}, fault.ErrLimit, "more than 16 answers"},
		{"too_big", 1, []*joinv1.JoinRequest{joinInit(strings.Repeat("x", 300<<10))}, fault.ErrLimit, "bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.auth.answers = tt.answers
			s, err := joinv1.NewJoinServiceClient(w.call(t)).Join(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range tt.send {
				if s.Send(m) != nil {
					break
				}
			}
			for err = nil; err == nil; {
				_, err = s.Recv()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("join ended with %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func manyInits(n int) []*joinv1.JoinRequest {
	out := make([]*joinv1.JoinRequest, n)
	for i := range out {
		out[i] = joinInit("x")
	}
	return out
}

func TestOnlyTheCallsOfStrangersAreRelayed(t *testing.T) {
	w := newWorld(t)
	if _, err := joinv1.NewJoinServiceClient(w.call(t)).Renew(t.Context(), &joinv1.RenewRequest{}); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Renew = %v, want ErrDenied", err)
	}
	if got := w.auth.last(); got != (rpc.Caller{}) {
		t.Errorf("Auth was called by %+v", got)
	}
}

func TestLoginsOfOneSourceAreBounded(t *testing.T) {
	w := newWorld(t)
	c := loginv1.NewLoginServiceClient(w.call(t))
	var work sync.WaitGroup
	var mu sync.Mutex
	limited := 0
	for range 8 {
		work.Go(func() {
			for range 40 {
				if _, err := c.GetInvitation(t.Context(), &loginv1.GetInvitationRequest{}); errors.Is(err, fault.ErrLimit) {
					mu.Lock()
					limited++
					mu.Unlock()
				}
			}
		})
	}
	work.Wait()
	if limited == 0 {
		t.Error("320 calls at once from one address, and none was refused")
	}
}

func TestAuthIsReachedUnopened(t *testing.T) {
	w := newWorld(t)
	h := w.join(t, types.RoleNode)
	cfg := ca.ClientTLS(func() *tls.Certificate { return h.Certificate("") }, h.Trust, types.RoleAuth)
	cfg.NextProtos = []string{mux.ALPNAuthPrefix + clusterName, "h2"}
	conn := must(rpc.Dial(rpc.DialConfig{Addr: w.addr, TLS: cfg}))
	defer func() { _ = conn.Close() }()
	got, err := joinv1.NewJoinServiceClient(conn).Renew(t.Context(), &joinv1.RenewRequest{})
	if err != nil || got.GetGrant().GetHostId() != h.HostID() {
		t.Fatalf("Renew = %v, %v, want the caller's own id", got, err)
	}
	caller := w.auth.last()
	if caller.Identity == nil || caller.Via != "" || !strings.HasPrefix(caller.Addr, "127.0.0.1:") || caller.Addr == w.addr {
		t.Errorf("Auth sees %+v, want the host itself at its own address", caller)
	}
}

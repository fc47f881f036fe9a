package proxy_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/service/proxy"
	"teleport/internal/types"
)

func TestUserReachesNodeThroughTunnel(t *testing.T) {
	w := newWorld(t)
	seen := make(chan string, 10)
	id := w.agent(t, "web-1", "web", seen)
	for _, host := range []string{"web-1", "WEB-1.example.com", id} {
		conn, resp := w.dialUser(t, w.user(t, "web"), &proxyv1.DialRequest{Host: host, Port: 22})
		if resp.GetError() != "" || resp.GetHostId() != id || resp.GetHostName() != "web-1" {
			t.Fatalf("dial %q = %v", host, resp)
		}
		if got := <-seen; got != conn.LocalAddr().String() {
			t.Errorf("the node sees the client at %s, want %s", got, conn.LocalAddr())
		}
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.CloseWrite()
		}()
		back, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(back, sent) {
			t.Errorf("echo of %d bytes = %d bytes, %v", len(sent), len(back), err)
		}
	}
	if got := w.recorded(); len(got) != 0 {
		t.Errorf("events %v, want none for what was allowed", got)
	}
}

// A host that is removed loses its tunnel and the sessions through it, and does not
// get another one; its node is not found, whether it has an address or not.
func TestRemovedHostIsCut(t *testing.T) {
	w := newWorld(t)
	goes, stays := w.agent(t, "web-1", "web", nil), w.agent(t, "web-2", "web", nil)
	alice := w.user(t, "web")
	w.addNode("direct", "web-3", "web", "127.0.0.1:1")
	w.addInstance(stays, true)
	w.addInstance(goes, true)
	cut, resp := w.dialUser(t, alice, &proxyv1.DialRequest{Host: "web-1"})
	if resp.GetError() != "" {
		t.Fatalf("dial = %v", resp)
	}
	w.addInstance(goes, false)
	_ = cut.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := cut.Read(make([]byte, 1)); err == nil || errTimeout(err) {
		t.Errorf("the session of a removed host: Read() = %v, want its end", err)
	}
	for _, host := range []string{"web-1", goes, "web-3", "direct"} {
		if _, resp := w.dialUser(t, alice, &proxyv1.DialRequest{Host: host}); resp.GetErrorKind() != fault.ErrNotFound.Error() {
			t.Errorf("dial %q of a removed host = %v, want %v", host, resp, fault.ErrNotFound)
		}
	}
	if _, resp := w.dialUser(t, alice, &proxyv1.DialRequest{Host: "web-2"}); resp.GetError() != "" {
		t.Errorf("dial of a host that stays = %v", resp)
	}
	stranger := w.join(t, types.RoleNode)
	if w.takesTunnel(t, stranger) {
		t.Error("a host that is not of the cluster got a tunnel")
	}
	w.addInstance(stranger.HostID(), true)
	if !w.takesTunnel(t, stranger) {
		t.Error("a host of the cluster got no tunnel")
	}
}

func TestUserReachesNodeByAddress(t *testing.T) {
	w := newWorld(t)
	// A node without a tunnel gets the preamble and believes it.
	inner := must(net.Listen("tcp", "127.0.0.1:0"))
	ln := relayedNode(t, w, inner)
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		got <- c.RemoteAddr().String()
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	w.addNode("11111111-1111-4111-8111-111111111111", "direct", "web", inner.Addr().String())
	conn, resp := w.dialUser(t, w.user(t, "web"), &proxyv1.DialRequest{Host: "direct"})
	if resp.GetError() != "" {
		t.Fatalf("dial = %v", resp)
	}
	if addr := <-got; addr != conn.LocalAddr().String() {
		t.Errorf("the node sees the client at %s, want %s", addr, conn.LocalAddr())
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ping" {
		t.Errorf("echo = %q, %v", buf, err)
	}
}

func TestDialRefused(t *testing.T) {
	w := newWorld(t)
	w.agent(t, "web-1", "web", nil)
	w.addNode("22222222-2222-4222-8222-222222222222", "db-1", "db", "")
	w.addNode("33333333-3333-4333-8333-333333333333", "off", "web", "")
	for _, tt := range []struct {
		name  string
		roles []string
		req   *proxyv1.DialRequest
		kind  error
		text  string
		event bool
	}{
		{"unseen", []string{"web"}, &proxyv1.DialRequest{Host: "db-1"}, fault.ErrNotFound, `no node "db-1"`, true},
		{"unknown", []string{"web"}, &proxyv1.DialRequest{Host: "10.0.0.1"}, fault.ErrNotFound, "no node", true},
		{"no_roles", nil, &proxyv1.DialRequest{Host: "web-1"}, fault.ErrNotFound, "no node", true},
		{"offline", []string{"web"}, &proxyv1.DialRequest{Host: "off"}, fault.ErrUnreachable, "no tunnel", false},
		{"other_cluster", []string{"web"}, &proxyv1.DialRequest{Host: "web-1", Cluster: "test"}, fault.ErrNotFound, "serves cluster", true},
		{"nothing", []string{"web"}, &proxyv1.DialRequest{}, fault.ErrInvalid, "host name", true},
		{"port", []string{"web"}, &proxyv1.DialRequest{Host: "web-1", Port: 1 << 20}, fault.ErrInvalid, "port", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(w.recorded())
			conn, resp := w.dialUser(t, w.user(t, tt.roles...), tt.req)
			if resp.GetErrorKind() != tt.kind.Error() || !strings.Contains(resp.GetError(), tt.text) || resp.GetHostId() != "" {
				t.Errorf("dial = %v, want %v with %q", resp, tt.kind, tt.text)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("Read() = %v, want the connection closed", err)
			}
			events := w.recorded()[before:]
			if tt.event != (len(events) == 1) {
				t.Fatalf("%d events, want one: %v", len(events), tt.event)
			}
			if tt.event {
				f := events[0].GetFields().GetFields()
				if events[0].GetCode() != audit.AuthAttemptFailure.Code || f["user"].GetStringValue() != "alice" || f["target"].GetStringValue() != tt.req.GetHost() ||
					f["addr.remote"].GetStringValue() == "" || f["error"].GetStringValue() == "" {
					t.Errorf("event = %v", events[0])
				}
			}
		})
	}
}

func TestRefusalsDoNotFillTheAuditLog(t *testing.T) {
	w := newWorld(t)
	cert := w.user(t, "web")
	for range 40 {
		w.dialUser(t, cert, &proxyv1.DialRequest{Host: "nowhere"})
	}
	if got := len(w.recorded()); got < 20 || got > 25 {
		t.Errorf("%d events for 40 refusals in a row, want about 20", got)
	}
}

func TestWhoIsNoUserIsRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	id := w.agent(t, "web-1", "web", nil)
	node := w.join(t, types.RoleNode)
	for _, tt := range []struct {
		name string
		cert *tls.Certificate
		text string // of the answer; empty if TLS itself fails
	}{
		{"process_certificate", node.Certificate(""), "only users"},
		{"service_certificate", node.Certificate(types.RoleNode), "only users"},
		{"no_certificate", nil, ""},
		{"other_cluster", other.user(t, "web"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := w.dialTLS(t, tt.cert, mux.ALPNProxySSH)
			_ = rpc.WriteFrame(conn, &proxyv1.DialRequest{Host: id})
			resp := new(proxyv1.DialResponse)
			err := rpc.ReadFrame(conn, resp, rpc.MaxFrame)
			if tt.text == "" {
				if err == nil {
					t.Errorf("answered %v, want TLS refused", resp)
				}
				return
			}
			if err != nil || !strings.Contains(resp.GetError(), tt.text) || resp.GetErrorKind() != fault.ErrDenied.Error() {
				t.Errorf("answered %v, %v, want %q", resp, err, tt.text)
			}
		})
	}
}

func TestBadDialRequests(t *testing.T) {
	w := newWorld(t)
	cert := w.user(t, "web")
	for _, tt := range []struct {
		name string
		send []byte
		kind error
	}{
		{"huge", []byte{0xff, 0xff, 0xff, 0xff}, fault.ErrLimit},
		{"over_4_KiB", binary.BigEndian.AppendUint32(nil, 4097), fault.ErrLimit},
		{"garbage", []byte{0, 0, 0, 2, 0xff, 0xff}, fault.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := w.dialTLS(t, cert, mux.ALPNProxySSH)
			if _, err := conn.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			resp := new(proxyv1.DialResponse)
			if err := rpc.ReadFrame(conn, resp, rpc.MaxFrame); err != nil || resp.GetErrorKind() != tt.kind.Error() {
				t.Errorf("answered %v, %v, want %v", resp, err, tt.kind)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("Read() = %v, want the connection closed", err)
			}
		})
	}
}

func TestStopEndsSessions(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Drain = 50 * time.Millisecond })
	w.agent(t, "web-1", "web", nil)
	conn, resp := w.dialUser(t, w.user(t, "web"), &proxyv1.DialRequest{Host: "web-1"})
	if resp.GetError() != "" {
		t.Fatal(resp)
	}
	w.stop()
	if _, err := io.ReadAll(conn); errTimeout(err) {
		t.Errorf("Read() = %v, want the connection closed", err)
	}
	if _, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("the port is still open")
	}
}

func errTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestSessionsLeaveNothingBehind(t *testing.T) {
	w := newWorld(t)
	w.agent(t, "web-1", "web", nil)
	cert := w.user(t, "web")
	use := func(n int) {
		for range n {
			conn, _ := w.dialUser(t, cert, &proxyv1.DialRequest{Host: "web-1"})
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
	}
	use(5)
	before := runtime.NumGoroutine()
	use(100)
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); runtime.NumGoroutine() > before+3; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func FuzzDialRequest(f *testing.F) {
	w := newWorld(f)
	w.agent(f, "web-1", "web", nil)
	cert := w.user(f, "web")
	f.Add(must(proto.Marshal(&proxyv1.DialRequest{Host: "web-1", Port: 22})))
	f.Add([]byte{0xff})
	f.Add(bytes.Repeat([]byte{0x0a}, 4096))
	f.Fuzz(func(t *testing.T, in []byte) {
		cfg := ca.ClientTLS(func() *tls.Certificate { return cert }, w.holder.Trust, types.RoleProxy)
		cfg.NextProtos = []string{mux.ALPNProxySSH}
		conn, err := tls.Dial("tcp", w.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(in))), in...)); err != nil {
			// More than the limit is answered and closed with bytes unread.
			if len(in) <= 4<<10 {
				t.Fatal(err)
			}
			return
		}
		resp := new(proxyv1.DialResponse)
		if err := rpc.ReadFrame(conn, resp, rpc.MaxFrame); err != nil {
			if len(in) <= 4<<10 {
				t.Fatalf("no answer: %v", err)
			}
			return
		}
		if resp.GetError() != "" && resp.GetErrorKind() == "" {
			t.Fatalf("answer without a kind: %v", resp)
		}
	})
}

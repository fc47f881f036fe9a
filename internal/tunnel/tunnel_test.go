package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

func TestDial(t *testing.T) {
	type seen struct {
		req    tunnel.Request
		remote string
	}
	got := make(chan seen, 1)
	_, p, a := pair(t, func(cfg *tunnel.AgentConfig) {
		cfg.Handle = func(ctx context.Context, conn net.Conn, req tunnel.Request) {
			got <- seen{req, conn.RemoteAddr().String()}
			echo(ctx, conn, req)
		}
	})
	conn := p.dial(t, a.id)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: more than a window
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(back, sent) {
		t.Errorf("echo of %d bytes = %d bytes (%v), want the same", len(sent), len(back), err)
	}
	if want := (seen{toNode, client}); <-got != want {
		t.Errorf("agent saw something else than %v", want)
	}
	if p.Count() != 1 {
		t.Errorf("Count() = %d, want 1", p.Count())
	}
}

func TestDialRefused(t *testing.T) {
	_, p, a := pair(t, nil)
	for _, tt := range []struct {
		name, id, addr string
		service        types.SystemRole
		resource       string
		want           error
		text           string
	}{
		{"unknown_host", uuid.NewString(), client, types.RoleNode, "", fault.ErrUnreachable, "has no tunnel"},
		{"service_not_in_certificate", a.id, client, types.RoleApp, "", fault.ErrUnreachable, "does not run the App service"},
		{"bad_resource", a.id, client, types.RoleNode, "x", fault.ErrUnreachable, "bad transport request"},
		{"bad_address", a.id, "somewhere", types.RoleNode, "", fault.ErrUnreachable, "bad transport request"},
		{"long_address", a.id, strings.Repeat("x", 5000), types.RoleNode, "", fault.ErrInvalid, "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := p.Dial(t.Context(), tt.id, tunnel.Request{Service: tt.service, ClientAddr: tt.addr, Resource: tt.resource})
			if err == nil {
				_ = conn.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Dial() = %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

// What is asked for besides nodes goes to the agent, and the Proxy knows who serves it.
func TestDialResource(t *testing.T) {
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	_, signer := c.host(t, id, "", 0, types.RoleDB)
	cfg.Signer = func() ssh.Signer { return signer }
	got := make(chan tunnel.Request, 1)
	cfg.Handle = func(_ context.Context, _ net.Conn, req tunnel.Request) { got <- req }
	startAgent(t, cfg, id).wait(t, true)
	until(t, "tunnel registered", func() bool { return p.Connected(id) })
	if !p.Serves(id, types.RoleDB) || p.Serves(id, types.RoleApp) || p.Serves("other", types.RoleDB) {
		t.Error("Serves does not go by the roles of the certificate")
	}
	want := tunnel.Request{Service: types.RoleDB, ClientAddr: client, Resource: "sales", Native: true}
	conn, err := p.Dial(t.Context(), id, want)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if req := <-got; req != want {
		t.Errorf("agent got %v, want %v", req, want)
	}
}

// An agent with a certificate that says more opens another tunnel with it; what goes
// through the one before is not cut.
func TestAgain(t *testing.T) {
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	var signer atomic.Pointer[ssh.Signer]
	set := func(roles ...types.SystemRole) {
		_, s := c.host(t, id, "", 0, roles...)
		signer.Store(&s)
	}
	set(types.RoleNode)
	again := make(chan struct{})
	cfg.Signer, cfg.Again = func() ssh.Signer { return *signer.Load() }, again
	a := startAgent(t, cfg, id)
	a.wait(t, true)
	until(t, "tunnel registered", func() bool { return p.Connected(id) })
	conn := p.dial(t, id)
	set(types.RoleNode, types.RoleApp)
	again <- struct{}{}
	until(t, "the tunnel serves the new role", func() bool { return p.Serves(id, types.RoleApp) })
	if p.Count() != 2 {
		t.Errorf("Count = %d, want the tunnel of before, too: something goes through it", p.Count())
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("open connection was cut: %v", err)
	}
	_ = conn.Close()
	until(t, "the tunnel of before is closed", func() bool { return p.Count() == 1 })
	select {
	case up := <-a.states:
		t.Errorf("state went to %v while a tunnel was always there", up)
	default:
	}
}

func TestManyChannelsAtOnce(t *testing.T) {
	_, p, a := pair(t, nil)
	var work sync.WaitGroup
	for i := range 200 {
		work.Go(func() {
			conn, err := p.Dial(t.Context(), a.id, toNode)
			if err != nil {
				t.Errorf("Dial() = %v", err)
				return
			}
			defer func() { _ = conn.Close() }()
			sent := fmt.Appendf(nil, "channel %d %s", i, strings.Repeat("x", 10_000))
			if _, err := conn.Write(sent); err != nil {
				t.Errorf("Write() = %v", err)
			}
			back := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, back); err != nil || !bytes.Equal(back, sent) {
				t.Errorf("channel %d: wrong echo (%v)", i, err)
			}
		})
	}
	work.Wait()
}

func TestChannelsLeaveNothingBehind(t *testing.T) {
	_, p, a := pair(t, nil)
	use := func(n int) {
		for range n {
			conn, err := p.Dial(t.Context(), a.id, toNode)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
	}
	use(10)
	before := runtime.NumGoroutine()
	use(1000)
	until(t, "goroutines of 1,000 channels gone", func() bool { return runtime.NumGoroutine() <= before+5 })
}

func TestTunnelEndsWithItsChannels(t *testing.T) {
	_, p, a := pair(t, nil)
	conn := p.dial(t, a.id)
	a.stop()
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("Read() after the agent stopped = %v, want the end", err)
	}
	until(t, "tunnel forgotten", func() bool { return p.Count() == 0 && !p.Connected(a.id) })
	if _, err := p.Dial(t.Context(), a.id, toNode); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("Dial() = %v, want ErrUnreachable", err)
	}
}

func TestProxyRestart(t *testing.T) {
	c, p, a := pair(t, nil)
	p.stop()
	a.wait(t, false)
	ln, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p2 := startProxy(t, c, ln, nil)
	a.wait(t, true)
	until(t, "tunnel to the new Proxy", func() bool { return p2.Connected(a.id) })
	conn := p2.dial(t, a.id)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("echo after the restart: %v", err)
	}
}

func TestLeavingKeepsOpenConnections(t *testing.T) {
	c := newCluster(t)
	old := startProxy(t, c, nil, func(cfg *tunnel.ServerConfig) { cfg.Drain = time.Minute })
	next := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, old.addr)
	var target sync.Map
	target.Store("addr", old.addr)
	cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		addr, _ := target.Load("addr")
		return new(net.Dialer).DialContext(ctx, network, addr.(string))
	}
	a := startAgent(t, cfg, id)
	a.wait(t, true)
	until(t, "first tunnel", func() bool { return old.Connected(id) })
	conn := old.dial(t, id)
	target.Store("addr", next.addr)
	stopped := make(chan struct{})
	go func() { old.stop(); close(stopped) }()
	until(t, "second tunnel", func() bool { return next.Connected(id) })
	// The session through the old Proxy goes on until it is over.
	if _, err := conn.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		t.Errorf("open connection was cut: %v", err)
	}
	select {
	case <-stopped:
		t.Error("Serve returned with a connection open, before its time to drain")
	default:
	}
	_ = conn.Close()
	<-stopped
	select {
	case up := <-a.states:
		t.Errorf("state went to %v while a tunnel was always there", up)
	default:
	}
}

func TestNewestTunnelFirstThenTheOther(t *testing.T) {
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	name := func(n string) func(context.Context, net.Conn, tunnel.Request) {
		return func(_ context.Context, conn net.Conn, _ tunnel.Request) { _, _ = io.WriteString(conn, n) }
	}
	cfg.Handle = name("one")
	first := startAgent(t, cfg, id)
	until(t, "first tunnel", func() bool { return p.Count() == 1 })
	cfg.Handle = name("two")
	second := startAgent(t, cfg, id)
	until(t, "second tunnel", func() bool { return p.Count() == 2 })
	if got, err := io.ReadAll(p.dial(t, id)); err != nil || string(got) != "two" {
		t.Errorf("reached %q (%v), want the newest", got, err)
	}
	second.stop()
	until(t, "second tunnel gone", func() bool { return p.Count() == 1 })
	if got, err := io.ReadAll(p.dial(t, id)); err != nil || string(got) != "one" {
		t.Errorf("reached %q (%v), want the one that is left", got, err)
	}
	first.stop()
}

func TestTooManyTunnelsOfOneHost(t *testing.T) {
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	cfg.Reconnect.Min, cfg.Reconnect.Max = time.Hour, time.Hour
	for i := range 8 {
		startAgent(t, cfg, id)
		until(t, "tunnel", func() bool { return p.Count() == i+1 })
	}
	last := startAgent(t, cfg, id)
	last.wait(t, true)
	until(t, "the oldest gone", func() bool { return p.Count() == 8 })
}

func TestAgentRefused(t *testing.T) {
	c, foreign := newCluster(t), newCluster(t)
	id, other := uuid.NewString(), uuid.NewString()
	plain, err := ssh.NewSignerFromSigner(newKeys(t).ssh)
	if err != nil {
		t.Fatal(err)
	}
	_, wrongCA := foreign.host(t, id, "", 0, types.RoleNode)
	_, service := c.host(t, id, types.RoleNode, 0, types.RoleNode)
	_, good := c.host(t, id, "", 0, types.RoleNode)
	for _, tt := range []struct {
		name string
		user string
		auth ssh.AuthMethod
		want string
	}{
		{"wrong_authority", id, ssh.PublicKeys(wrongCA), "not signed by the host certificate authority"},
		{"user_certificate", id, ssh.PublicKeys(c.user(t, id)), "is not a host certificate"},
		{"service_certificate", id, ssh.PublicKeys(service), "expected that of the process"},
		{"other_host", other, ssh.PublicKeys(good), "is not for"},
		{"by_host_name", "web-1", ssh.PublicKeys(good), `certificate of host "` + id + `" used as "web-1"`},
		{"plain_key", id, ssh.PublicKeys(plain), "a plain SSH key was shown"},
		{"password", id, ssh.Password("secret"), "no auth passed yet"},
		{"nothing", id, nil, "no auth passed yet"},
		{"offered_but_not_proven", id, ssh.PublicKeys(unproven{good}), "no auth passed yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := &recorder{}
			p := startProxy(t, c, nil, func(cfg *tunnel.ServerConfig) { cfg.Log = slog.New(log) })
			cfg := &ssh.ClientConfig{User: tt.user, HostKeyCallback: c.hostKey()}
			if tt.auth != nil {
				cfg.Auth = []ssh.AuthMethod{tt.auth}
			}
			conn := dialTLS(t, c, p.addr)
			sc, _, _, err := ssh.NewClientConn(conn, p.addr, cfg)
			if err == nil {
				_ = sc.Close()
				t.Fatal("the Proxy accepted the agent")
			}
			_ = conn.Close()
			until(t, "refusal logged", func() bool { return strings.Contains(log.text(), "tunnel refused") })
			if !strings.Contains(log.text(), tt.want) {
				t.Errorf("log = %s\nwant %q", log.text(), tt.want)
			}
			if p.Count() != 0 {
				t.Errorf("Count() = %d, want 0", p.Count())
			}
		})
	}
}

// unproven offers a key but cannot sign with it.
type unproven struct{ ssh.Signer }

func (u unproven) Sign(io.Reader, []byte) (*ssh.Signature, error) {
	return nil, errors.New("no private key")
}

func TestProxyRefused(t *testing.T) {
	c, foreign := newCluster(t), newCluster(t)
	_, node := c.host(t, uuid.NewString(), "", 0, types.RoleNode)
	_, other := foreign.host(t, uuid.NewString(), "", 0, types.RoleProxy)
	for _, tt := range []struct {
		name string
		key  ssh.Signer
		want string
	}{
		{"not_a_proxy", node, "is not for the Proxy service"},
		{"wrong_authority", other, "not signed by the host certificate authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t, c, nil, func(cfg *tunnel.ServerConfig) { cfg.Signer = func() ssh.Signer { return tt.key } })
			log := &recorder{}
			cfg, id := agentConfig(t, c, p.addr)
			cfg.Log = slog.New(log)
			startAgent(t, cfg, id)
			until(t, "refusal logged", func() bool { return strings.Contains(log.text(), tt.want) })
			if p.Count() != 0 {
				t.Errorf("Count() = %d, want 0", p.Count())
			}
		})
	}
}

func TestTunnelIsReplacedBeforeItsCertificateEnds(t *testing.T) {
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	_, short := c.host(t, id, "", 4*time.Minute, types.RoleNode)
	_, long := c.host(t, id, "", time.Hour, types.RoleNode)
	var once sync.Once
	cfg.Signer = func() ssh.Signer {
		s := long
		once.Do(func() { s = short })
		return s
	}
	startAgent(t, cfg, id)
	until(t, "second tunnel with the renewed certificate", func() bool { return p.Count() == 2 })
}

func TestNoTrustNoTunnel(t *testing.T) {
	c := newCluster(t)
	log := &recorder{}
	p := startProxy(t, c, nil, func(cfg *tunnel.ServerConfig) {
		cfg.Trust = func() *ca.Trust { return nil }
		cfg.Log = slog.New(log)
	})
	cfg, id := agentConfig(t, c, p.addr)
	startAgent(t, cfg, id)
	until(t, "refusal", func() bool { return strings.Contains(log.text(), "knows no certificate authorities") })
}

// TestWaitingBlocksNobody fills the room for handshakes, so that the next connection
// waits: one that is refused is still told at once, not when the wait is over.
func TestWaitingBlocksNobody(t *testing.T) {
	c := newCluster(t)
	_, signer := c.host(t, "proxy", types.RoleProxy, time.Hour, types.RoleProxy)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := tunnel.NewServer(tunnel.ServerConfig{
		Trust: func() *ca.Trust { return c.trust }, Signer: func() ssh.Signer { return signer }, MaxHandshakes: 4, Drain: -1,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	dial := func(ip string) net.Conn {
		t.Helper()
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	// The server speaks first, once a connection is inside.
	read := func(conn net.Conn, limit time.Duration) error {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	inside := make([]net.Conn, 4)
	for i := range inside {
		inside[i] = dial(fmt.Sprintf("127.0.0.%d", 2+i))
		if err := read(inside[i], 20*time.Second); err != nil {
			t.Fatalf("connection %d: %v, want the server's greeting", i, err)
		}
	}
	dial("127.0.0.6") // waits for the grace of the first
	refused := dial("127.0.0.2")
	if err := read(refused, 20*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("second connection of a source: %v, want it closed", err)
	}
	if err := inside[0].SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, inside[0])
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first connection had to go before the refusal was told: %v", err)
	}
}

// A host that is removed loses its tunnels with what goes through them, and gets
// none until it is admitted again; nobody else notices.
func TestAdmit(t *testing.T) {
	c := newCluster(t)
	var mu sync.Mutex
	removed := map[string]bool{}
	remove := func(id string, yes bool) {
		mu.Lock()
		defer mu.Unlock()
		removed[id] = yes
	}
	log := &recorder{}
	p := startProxy(t, c, nil, func(cfg *tunnel.ServerConfig) {
		cfg.Log = slog.New(log)
		cfg.Admit = func(id string) error {
			mu.Lock()
			defer mu.Unlock()
			if removed[id] {
				return fault.Denied("host %s was removed", id)
			}
			return nil
		}
	})
	stays, staysID := agentConfig(t, c, p.addr)
	startAgent(t, stays, staysID).wait(t, true)
	goes, goesID := agentConfig(t, c, p.addr)
	a := startAgent(t, goes, goesID)
	a.wait(t, true)
	kept, cut := p.dial(t, staysID), p.dial(t, goesID)

	p.Recheck(t.Context())
	if p.Count() != 2 || p.Refused() != 0 {
		t.Errorf("Count() = %d, Refused() = %d after a check without a removal, want 2 and 0", p.Count(), p.Refused())
	}
	remove(goesID, true)
	if p.Refused() != 1 {
		t.Errorf("Refused() = %d after a removal, want 1", p.Refused())
	}
	p.Recheck(t.Context())
	a.wait(t, false)
	_, _ = io.ReadAll(cut) // returns: what went through the tunnel ended with it
	until(t, "the removed host is refused", func() bool { return strings.Contains(log.text(), "tunnel refused") })
	if p.Connected(goesID) {
		t.Error("a removed host has a tunnel")
	}
	if _, err := kept.Write([]byte("x")); err != nil {
		t.Errorf("Write() through another host's tunnel = %v", err)
	}
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Errorf("Read() through another host's tunnel = %v", err)
	}
	remove(goesID, false)
	a.wait(t, true)
}

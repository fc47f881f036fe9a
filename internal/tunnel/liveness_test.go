package tunnel_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/mux"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// half is one direction of a buffered pipe. A hole swallows what is written.
type half struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	closed bool
	hole   bool
}

func newHalf() *half {
	h := &half{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.buf) == 0 && !h.closed {
		h.cond.Wait()
	}
	if len(h.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.buf)
	h.buf = h.buf[n:]
	return n, nil
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, net.ErrClosed
	}
	if !h.hole {
		h.buf = append(h.buf, p...)
		h.cond.Broadcast()
	}
	return len(p), nil
}

func (h *half) set(f func(h *half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
	h.cond.Broadcast()
}

// pipeConn is an end of a connection without a kernel, for virtual time.
type pipeConn struct{ in, out *half }

func newPipe() (a, b *pipeConn) {
	x, y := newHalf(), newHalf()
	return &pipeConn{x, y}, &pipeConn{y, x}
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *pipeConn) Close() error {
	c.in.set(func(h *half) { h.closed = true })
	// A hole does not let the end through either.
	c.out.set(func(h *half) { h.closed = h.closed || !h.hole })
	return nil
}

// blackhole makes the network between both ends vanish without a word.
func (c *pipeConn) blackhole() {
	c.in.set(func(h *half) { h.hole = true })
	c.out.set(func(h *half) { h.hole = true })
}

func (c *pipeConn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func (c *pipeConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 2} }
func (c *pipeConn) SetDeadline(time.Time) error      { return nil }
func (c *pipeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }

// pipeListener accepts what is dialled.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 2} }

func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cert, _ := c.host(t, uuid.NewString(), types.RoleProxy, 0, types.RoleProxy)
		_, proxyKey := c.host(t, uuid.NewString(), "", 0, types.RoleProxy)
		inner := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		ln := tls.NewListener(inner, ca.ServerTLS(func() *tls.Certificate { return cert }, nil, tls.NoClientCert, mux.ALPNTunnel))
		s := tunnel.NewServer(tunnel.ServerConfig{
			Trust: func() *ca.Trust { return c.trust }, Signer: func() ssh.Signer { return proxyKey }, Drain: -1,
		})
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, ln) }()

		cfg, id := agentConfig(t, c, "proxy:443")
		var mu sync.Mutex
		var wires []*pipeConn
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			a, b := newPipe()
			mu.Lock()
			wires = append(wires, a)
			mu.Unlock()
			inner.conns <- b
			return a, nil
		}
		states := make(chan bool, 10)
		ran := make(chan error, 1)
		go func() { ran <- tunnel.RunAgent(ctx, cfg, func(up bool) { states <- up }) }()
		if !<-states {
			t.Fatal("not connected")
		}
		// An hour of nothing but pings leaves it alone.
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.Count() != 1 || len(wires) != 1 {
			t.Fatalf("Count() = %d after %d dials, want the first tunnel still", s.Count(), len(wires))
		}
		conn, err := s.Dial(t.Context(), id, toNode)
		if err != nil {
			t.Fatal(err)
		}
		// The network vanishes without a FIN: both ends find out by themselves.
		start := time.Now()
		wires[0].blackhole()
		if <-states {
			t.Fatal("still connected")
		}
		if took := time.Since(start); took > 46*time.Second {
			t.Errorf("the agent noticed after %v, want at most 45s", took)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("Read() on a dead tunnel returned data")
		}
		if took := time.Since(start); took > 46*time.Second {
			t.Errorf("the Proxy noticed after %v, want at most 45s", took)
		}
		if !<-states {
			t.Fatal("the agent did not come back")
		}
		synctest.Wait()
		if s.Count() != 1 || !s.Connected(id) {
			t.Errorf("Count() = %d, want the new tunnel only", s.Count())
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("RunAgent() = %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
}

// A Proxy that accepts TCP and then says nothing must not hold the agent.
func TestHandshakeDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cfg, _ := agentConfig(t, c, "proxy:443")
		dials := make(chan time.Time, 10)
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			a, _ := newPipe()
			dials <- time.Now()
			return a, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- tunnel.RunAgent(ctx, cfg, nil) }()
		first, second := <-dials, <-dials
		if got := second.Sub(first); got < 15*time.Second || got > 16*time.Second {
			t.Errorf("tried again after %v, want 15s", got)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("RunAgent() = %v", err)
		}
	})
}

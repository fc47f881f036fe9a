package rpc

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/fault"
)

// addrConn is a connection from an address; it knows whether it was closed.
type addrConn struct {
	net.Conn
	addr   string
	closed atomic.Bool
}

func (c *addrConn) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", c.addr)
	if err != nil {
		panic(err)
	}
	return a
}

func (c *addrConn) Close() error { c.closed.Store(true); return nil }

// admit makes a stranger from an IP address.
func admit(t *testing.T, tr *transport, ip string) (*stranger, *addrConn) {
	t.Helper()
	conn := &addrConn{addr: net.JoinHostPort(ip, "1")}
	s, err := tr.newStranger(conn, conn, func() {})
	if err != nil {
		t.Fatalf("stranger from %s: %v", ip, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, conn
}

func TestIdleStrangersMakeRoom(t *testing.T) {
	tr := newTransport(nil, nil)
	_, other := admit(t, tr, "10.0.0.1")
	calling, busy := admit(t, tr, "10.0.0.9")
	end := calling.begin()
	conns := make([]*addrConn, maxStrangersPerSource-1)
	for i := range conns {
		_, conns[i] = admit(t, tr, "10.0.0.9")
	}
	for i, c := range conns {
		if c.closed.Load() {
			t.Fatalf("connection %d closed, although a source may have %d", i, maxStrangersPerSource)
		}
	}
	for range 10 {
		admit(t, tr, "10.0.0.9")
	}
	for i, c := range conns {
		if got, want := c.closed.Load(), i < 10; got != want {
			t.Fatalf("idle connection %d of %d closed: %t, want the oldest 10 closed", i, len(conns), got)
		}
	}
	if busy.closed.Load() {
		t.Error("one with a call in progress was closed")
	}
	end()
	// Overall those go of the source that has the most, longest idle first.
	for i := range maxIdle - maxStrangersPerSource {
		admit(t, tr, fmt.Sprintf("10.1.%d.%d", i/250, i%250))
	}
	if !conns[10].closed.Load() || conns[11].closed.Load() || busy.closed.Load() || other.closed.Load() {
		t.Errorf("closed: the next of the crowd %t, the one after %t, the one that called last %t, another source's %t; want only the first",
			conns[10].closed.Load(), conns[11].closed.Load(), busy.closed.Load(), other.closed.Load())
	}
	if tr.idle.len() != maxIdle {
		t.Errorf("%d are idle, want %d", tr.idle.len(), maxIdle)
	}
}

func TestStrangersPerSource(t *testing.T) {
	refused := 0
	tr := newTransport(nil, func() { refused++ })
	_, idle := admit(t, tr, "10.0.0.2")
	for range maxStrangersPerSource {
		s, _ := admit(t, tr, "10.0.0.9")
		s.begin()
	}
	conn := &addrConn{addr: "10.0.0.9:1"}
	if _, err := tr.newStranger(conn, conn, func() {}); !errors.Is(err, fault.ErrLimit) || refused != 1 {
		t.Errorf("one more of a source with calls in progress = %v, refused %d, want ErrLimit, 1", err, refused)
	}
	if idle.closed.Load() {
		t.Error("another source's connection was closed for it")
	}
	admit(t, tr, "10.0.0.1")
}

func TestHandshakesPerSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(nil, nil)
		handshake := func(source string) *guest { return &guest{source: source, out: func() {}} }
		oldest := &addrConn{}
		for i := range maxHandshakesPerSource {
			g := handshake("a")
			if i == 0 {
				g.out = func() { _ = oldest.Close() }
			}
			if !tr.shaking.enter(g) {
				t.Fatalf("handshake %d refused", i)
			}
		}
		if tr.shaking.enter(handshake("a")) || oldest.closed.Load() {
			t.Error("a source got more than its share of handshakes, or a young one was given up")
		}
		if !tr.shaking.enter(handshake("b")) {
			t.Error("another source was refused")
		}
		time.Sleep(handshakeGrace)
		if !tr.shaking.enter(handshake("a")) || !oldest.closed.Load() {
			t.Error("a stalled handshake did not make room")
		}
	})
}

func TestStrangerTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(nil, nil)
		_, silent := admit(t, tr, "10.0.0.1")
		caller, called := admit(t, tr, "10.0.0.2")
		time.Sleep(firstCall - time.Second)
		end := caller.begin()
		time.Sleep(2 * time.Second)
		if !silent.closed.Load() || called.closed.Load() {
			t.Errorf("after %s without a call closed: %t, with one: %t; want true, false", firstCall, silent.closed.Load(), called.closed.Load())
		}
		time.Sleep(time.Hour)
		caller.begin()()
		end()
		time.Sleep(nextCall - time.Second)
		if called.closed.Load() {
			t.Error("closed although its call ended a moment ago")
		}
		time.Sleep(2 * time.Second)
		if !called.closed.Load() {
			t.Errorf("still open %s after its call", nextCall)
		}
		// The places are free although nobody closed the connections.
		if tr.open.len() != 0 || tr.idle.len() != 0 || len(tr.open.sources) != 0 || len(tr.idle.sources) != 0 {
			t.Errorf("%d open and %d idle are left", tr.open.len(), tr.idle.len())
		}
	})
}

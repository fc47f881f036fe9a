package mux_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/fault"
	"teleport/internal/mux"
)

// addrConn is a connection from an address; it knows whether it was closed.
type addrConn struct {
	net.Conn
	addr   net.Addr
	closed bool
}

func (c *addrConn) RemoteAddr() net.Addr { return c.addr }
func (c *addrConn) Close() error         { c.closed = true; return nil }

func from(ip string) *addrConn {
	return &addrConn{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mux.NewGate(3, 2, 5*time.Second)
		enter := func(c *addrConn) *mux.Slot {
			t.Helper()
			s, err := g.Enter(t.Context(), c)
			if err != nil {
				t.Fatalf("Enter(%v) = %v", c.addr, err)
			}
			return s
		}
		a1 := from("10.0.0.1")
		s1 := enter(a1)
		time.Sleep(time.Second)
		enter(from("10.0.0.1"))
		if _, err := g.Enter(t.Context(), from("10.0.0.1")); !errors.Is(err, fault.ErrLimit) {
			t.Errorf("third from one source: %v, want ErrLimit", err)
		}
		b := enter(from("10.0.0.2"))
		// Full: the next waits for the oldest's fair time to be over.
		start := time.Now()
		enter(from("10.0.0.3"))
		if got := time.Since(start); got != 4*time.Second || !a1.closed {
			t.Errorf("waited %v, oldest closed: %v; want 4s, true", got, a1.closed)
		}
		if first, second := s1.Leave(), s1.Leave(); !first || !second {
			t.Error("Leave() = false, want the evicted slot to say so")
		}
		// Or for somebody to leave.
		time.AfterFunc(500*time.Millisecond, func() { b.Leave() })
		start = time.Now()
		enter(from("10.0.0.4"))
		if got := time.Since(start); got != 500*time.Millisecond {
			t.Errorf("waited %v, want 500ms", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.Enter(ctx, from("10.0.0.5")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Enter with an ended ctx = %v", err)
		}
		if g.Len() != 3 {
			t.Errorf("Len() = %d, want 3", g.Len())
		}
	})
}

// TestGateWaiters fills a gate and its waiting room: the next is refused at once, and
// those who wait get in, or give their place up.
func TestGateWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mux.NewGate(2, 1, 5*time.Second)
		ctx, giveUp := context.WithCancel(t.Context())
		results := make(chan error, 4)
		enter := func(ctx context.Context, ip string) {
			go func() {
				_, err := g.Enter(ctx, from(ip))
				results <- err
			}()
			synctest.Wait()
		}
		enter(t.Context(), "10.0.0.1")
		enter(t.Context(), "10.0.0.2")
		if err := errors.Join(<-results, <-results); err != nil {
			t.Fatal(err)
		}
		enter(ctx, "10.0.0.3")
		enter(t.Context(), "10.0.0.4")
		start := time.Now()
		if _, err := g.Enter(t.Context(), from("10.0.0.5")); !errors.Is(err, fault.ErrLimit) || time.Since(start) != 0 {
			t.Errorf("Enter with a full waiting room = %v after %v, want ErrLimit at once", err, time.Since(start))
		}
		giveUp()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("Enter with an ended ctx = %v", err)
		}
		enter(t.Context(), "10.0.0.6")
		if err := errors.Join(<-results, <-results); err != nil || time.Since(start) != 5*time.Second {
			t.Errorf("those who waited got %v after %v, want nil after 5s", err, time.Since(start))
		}
	})
}

func TestSource(t *testing.T) {
	for _, tt := range []struct {
		name string
		addr net.Addr
		want string
	}{
		{"v4", &net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 5}, "10.1.2.3"},
		{"v4_mapped", &net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3"), Port: 5}, "10.1.2.3"},
		{"v6_network", &net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3::4"), Port: 5}, "2001:db8:1:2::"},
		{"v6_zone", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, "fe80::"},
		{"text", textAddr("192.0.2.1:80"), "192.0.2.1"},
		{"other", textAddr("pipe"), "0.0.0.0"},
		{"none", nil, "0.0.0.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mux.Source(tt.addr).String(); got != tt.want {
				t.Errorf("Source(%v) = %s, want %s", tt.addr, got, tt.want)
			}
		})
	}
}

type textAddr string

func (a textAddr) Network() string { return "test" }
func (a textAddr) String() string  { return string(a) }

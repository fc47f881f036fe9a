package mux

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"teleport/internal/fault"
)

// Gate bounds the connections that have not proven yet who they are, overall and
// per source address, so that slow ones cannot starve the others. When it is
// full, the one that has been inside longest is closed to make room, once it has
// had its fair time; until then newcomers wait, or are refused if it is their own
// source that takes all the room.
type Gate struct {
	max, perSource int
	grace          time.Duration

	mu      sync.Mutex
	order   *list.List // of *Slot, oldest first
	sources map[netip.Addr]int
	changed chan struct{} // closed at the next departure; nil if nobody waits
	waiting int           // bounded as those inside are
}

// Slot is one connection's place inside a Gate.
type Slot struct {
	gate    *Gate
	conn    net.Conn
	source  netip.Addr
	entered time.Time
	elem    *list.Element
	evicted bool
}

// NewGate returns a gate for at most size connections, perSource of one address
// (an IPv6 /64 counts as one). No connection is closed before it was inside for
// grace; with a grace of 0 nobody ever waits.
func NewGate(size, perSource int, grace time.Duration) *Gate {
	return &Gate{
		max: max(size, 1), perSource: max(min(perSource, size), 1), grace: grace,
		order: list.New(), sources: make(map[netip.Addr]int),
	}
}

// Enter takes a slot for conn and waits for one if it has to, so it belongs into the
// goroutine of the connection. As many may wait as may be inside; more are refused.
// The caller calls Leave as soon as the connection is authenticated or closed.
func (g *Gate) Enter(ctx context.Context, conn net.Conn) (*Slot, error) {
	source := Source(conn.RemoteAddr())
	for waits := false; ; waits = true {
		s, wait, wake, err := g.try(conn, source, waits)
		if s != nil || err != nil {
			return s, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			g.mu.Lock()
			g.waiting--
			g.mu.Unlock()
			return nil, context.Cause(ctx)
		case <-timer.C:
		case <-wake:
			timer.Stop()
		}
	}
}

// try takes a slot, or says how long to wait and what ends the wait; waits is true
// for one that has waited.
func (g *Gate) try(conn net.Conn, source netip.Addr, waits bool) (*Slot, time.Duration, <-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if waits {
		g.waiting--
	}
	now := time.Now()
	if g.sources[source] >= g.perSource && !g.evictLocked(now, source) {
		return nil, 0, nil, fault.Limit("too many unauthenticated connections from %s at once: wait a moment", source)
	}
	if g.order.Len() >= g.max && !g.evictLocked(now, netip.Addr{}) {
		if g.waiting >= g.max {
			return nil, 0, nil, fault.Limit("%d unauthenticated connections wait already: try again in a moment", g.waiting)
		}
		g.waiting++
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		oldest := g.order.Front().Value.(*Slot)
		return nil, g.grace - now.Sub(oldest.entered), g.changed, nil
	}
	s := &Slot{gate: g, conn: conn, source: source, entered: now}
	s.elem = g.order.PushBack(s)
	g.sources[source]++
	return s, 0, nil, nil
}

// evictLocked closes the oldest connection of the source (of all, if the source
// is the zero address) and reports whether it had been inside long enough.
func (g *Gate) evictLocked(now time.Time, source netip.Addr) bool {
	for e := g.order.Front(); e != nil; e = e.Next() {
		s := e.Value.(*Slot)
		if source.IsValid() && s.source != source {
			continue
		}
		if now.Sub(s.entered) < g.grace {
			return false
		}
		s.evicted = true
		g.removeLocked(s)
		_ = s.conn.Close()
		return true
	}
	return false
}

func (g *Gate) removeLocked(s *Slot) {
	g.order.Remove(s.elem)
	s.elem = nil
	if g.sources[s.source]--; g.sources[s.source] == 0 {
		delete(g.sources, s.source)
	}
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// Len returns the number of connections inside.
func (g *Gate) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.order.Len()
}

// Leave gives the slot back and reports whether the connection was closed to make
// room. It may be called more than once.
func (s *Slot) Leave() (evicted bool) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	if s.elem != nil {
		s.gate.removeLocked(s)
	}
	return s.evicted
}

// Source returns the address that limits count by: the IP address, or the /64
// network of an IPv6 address. Addresses of other kinds all count as one.
func Source(addr net.Addr) netip.Addr {
	var ip netip.Addr
	switch a := addr.(type) {
	case *net.TCPAddr:
		ip, _ = netip.AddrFromSlice(a.IP)
	case nil:
	default:
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			ip = ap.Addr()
		}
	}
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return netip.IPv4Unspecified()
	case ip.Is6():
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

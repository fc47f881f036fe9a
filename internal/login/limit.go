package login

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"teleport/internal/rpc"
)

// sources bounds how fast one source of attempts may go. It remembers the sources
// used last and forgets the others.
type sources struct {
	rate  rate.Limit
	burst int
	limit int

	mu      sync.Mutex
	entries map[string]*list.Element
	// order has the source used last in front.
	order list.List
}

type source struct {
	key     string
	limiter *rate.Limiter
}

func newSources(perSecond float64, limit int) *sources {
	return &sources{
		rate: rate.Limit(perSecond), burst: max(1, int(perSecond*burstSeconds)), limit: limit,
		entries: make(map[string]*list.Element),
	}
}

// allow reports whether the source may make another attempt now.
func (s *sources) allow(key string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if ok {
		s.order.MoveToFront(e)
	} else {
		e = s.order.PushFront(&source{key: key, limiter: rate.NewLimiter(s.rate, s.burst)})
		s.entries[key] = e
	}
	if s.order.Len() > s.limit {
		oldest := s.order.Remove(s.order.Back()).(*source)
		delete(s.entries, oldest.key)
	}
	return e.Value.(*source).limiter.AllowN(now, 1)
}

// sourceOf returns what stands for the caller in the limits: its address, with
// IPv6 the /64 network, since a host has as many addresses in it as it likes.
func sourceOf(c rpc.Caller) string {
	if c.Local {
		return "local"
	}
	addr, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return "unknown"
	}
	ip := addr.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return ip.String()
}

// noise bounds how many events are written about attempts that cost their maker
// nothing, and counts those left out.
type noise struct {
	mu      sync.Mutex
	limit   *rate.Limiter
	skipped int
}

// admit reports whether an event may be written, and how many were left out
// before it.
func (n *noise) admit(now time.Time) (skipped int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.limit.AllowN(now, 1) {
		n.skipped++
		return 0, false
	}
	skipped, n.skipped = n.skipped, 0
	return skipped, true
}

// Package budget bounds how fast one source of requests may go before it has proven
// who it is. It counts; what a refused request gets is its caller's to say.
package budget

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Sources bounds the rate of each source. It remembers the sources used last and
// forgets the others, so strangers cannot make it grow. It is safe for concurrent
// use.
type Sources struct {
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

// NewSources returns a budget of so many requests a second for each source, with a
// burst, that remembers at most limit sources.
func NewSources(perSecond float64, burst, limit int) *Sources {
	return &Sources{rate: rate.Limit(perSecond), burst: max(1, burst), limit: max(1, limit), entries: make(map[string]*list.Element)}
}

// Allow reports whether the source may make another request now.
func (s *Sources) Allow(key string, now time.Time) bool {
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

// Spent reports whether the source has nothing left, without taking anything.
func (s *Sources) Spent(key string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	return ok && e.Value.(*source).limiter.TokensAt(now) < 1
}

// Len returns how many sources are remembered.
func (s *Sources) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order.Len()
}

// Source returns what stands for the client at addr (host:port): its address, with
// IPv6 the /64 network, since a host has as many addresses in it as it likes.
func Source(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "unknown"
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return ip.String()
}

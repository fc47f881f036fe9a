package proxy

import (
	"net"
	"net/netip"
	"sync"

	"teleport/internal/mux"
)

const (
	// maxVisitors bounds the open connections to the web pages. As many machines and
	// people that have no certificate yet are bounded by package rpc.
	maxVisitors          = 8192
	maxVisitorsPerSource = 1024
	// maxPassed bounds the connections passed on to Auth: every agent keeps one, and
	// many agents may be behind one address.
	maxPassed          = 32768
	maxPassedPerSource = 16384
)

// bounded returns a listener that keeps at most so many connections open, overall
// and from one source; those beyond are closed at once.
func (s *Service) bounded(ln net.Listener, limit, perSource int) net.Listener {
	return &boundedListener{Listener: ln, limit: limit, perSource: perSource, refused: s.metrics.overLimit.Inc, sources: make(map[netip.Addr]int)}
}

type boundedListener struct {
	net.Listener
	limit, perSource int
	refused          func()

	mu      sync.Mutex
	open    int
	sources map[netip.Addr]int
}

// Accept returns the next connection that is within the bounds.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := mux.Source(c.RemoteAddr())
		if l.enter(source) {
			return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(source) })}, nil
		}
		l.refused()
		_ = c.Close()
	}
}

func (l *boundedListener) enter(source netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.limit || l.sources[source] >= l.perSource {
		return false
	}
	l.open++
	l.sources[source]++
	return true
}

func (l *boundedListener) leave(source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.sources[source]--; l.sources[source] == 0 {
		delete(l.sources, source)
	}
}

// boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite ends the outgoing direction.
func (c *boundedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

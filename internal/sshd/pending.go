package sshd

import (
	"net"
	"strings"
	"sync"

	"teleport/internal/fault"
)

// pending counts the connections that have not proved anything yet, in all and
// by source, so that strangers cannot use up the process.
type pending struct {
	max, perSource int

	mu       sync.Mutex
	total    int
	bySource map[string]int
}

func newPending(limit int) *pending {
	return &pending{max: limit, perSource: max(1, limit/4), bySource: make(map[string]int)}
}

// enter takes a place; release (idempotent) gives it back.
func (p *pending) enter(remote net.Addr) (release func(), err error) {
	source := sourceOf(remote)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total >= p.max {
		return nil, fault.Limit("%d connections are waiting to log in, no more than %d may", p.total, p.max)
	}
	if n := p.bySource[source]; n >= p.perSource {
		return nil, fault.Limit("%d connections from %q are waiting to log in, no more than %d may", n, source, p.perSource)
	}
	p.total++
	p.bySource[source]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.total--
		if p.bySource[source]--; p.bySource[source] == 0 {
			delete(p.bySource, source)
		}
	}), nil
}

// sourceOf is the address without the port.
func sourceOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(addrText(a))
	if err != nil {
		return addrText(a)
	}
	return host
}

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// printable keeps what is safe on a terminal: names in messages come from peers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

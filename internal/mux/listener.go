package mux

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// listener gets its connections from a Mux or a relayed listener.
type listener struct {
	addr  net.Addr
	conns chan *handover
	once  sync.Once
	done  chan struct{}
}

// handover is a connection on its way to Accept, still under a deadline that
// release ends.
type handover struct {
	conn    net.Conn
	release func() bool
	taken   chan bool
}

func newListener(addr net.Addr) *listener {
	return &listener{addr: addr, conns: make(chan *handover), done: make(chan struct{})}
}

// deliver waits until Accept takes the connection and reports whether it did.
// Accept calls release, which reports false if the deadline was faster.
func (l *listener) deliver(ctx context.Context, conn net.Conn, release func() bool) bool {
	h := &handover{conn: conn, release: release, taken: make(chan bool, 1)}
	select {
	case l.conns <- h:
		return <-h.taken
	case <-ctx.Done():
	case <-l.done:
	}
	return false
}

// Accept returns the next connection, free of deadlines.
func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.done:
			return nil, fmt.Errorf("accept on %s: %w", l.addr, net.ErrClosed)
		case h := <-l.conns:
			taken := h.release()
			h.taken <- taken
			if taken {
				return h.conn, nil
			}
		}
	}
}

// Close makes Accept return an error.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns the address of the port.
func (l *listener) Addr() net.Addr { return l.addr }

package tunnel

import (
	"net"
	"sync/atomic"
)

// wire is the connection under a tunnel. It counts what comes in.
type wire struct {
	net.Conn
	received atomic.Uint64
}

// Read reads and counts.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.received.Add(uint64(n))
	return n, err
}

func newWire(c net.Conn) *wire { return &wire{Conn: c} }

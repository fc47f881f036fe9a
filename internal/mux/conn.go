package mux

import (
	"io"
	"net"
	"sync"
)

// Conn is a connection whose first bytes were read to route it; Read gives them
// again first. Copies to and from it use the kernel's fast path where there is
// one, as soon as those bytes are through.
type Conn struct {
	net.Conn

	mu     sync.Mutex
	peeked []byte
}

func newConn(conn net.Conn, peeked []byte) *Conn { return &Conn{Conn: conn, peeked: peeked} }

// NetConn returns the connection underneath, e.g. a *net.TCPConn. Bytes that were
// peeked and not read yet are not in it.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read reads the peeked bytes, then those that follow.
func (c *Conn) Read(p []byte) (int, error) {
	if n := c.takePeeked(p); n > 0 {
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *Conn) takePeeked(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.peeked)
	if c.peeked = c.peeked[n:]; len(c.peeked) == 0 {
		c.peeked = nil
	}
	return n
}

// WriteTo writes everything that can be read to w; it is what io.Copy uses.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	c.mu.Lock()
	peeked := c.peeked
	c.peeked = nil
	c.mu.Unlock()
	var done int64
	if len(peeked) > 0 {
		n, err := w.Write(peeked)
		done = int64(n)
		if err != nil {
			return done, err
		}
	}
	n, err := io.Copy(w, c.Conn)
	return done + n, err
}

// ReadFrom writes everything that can be read from r; it is what io.Copy uses.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite ends the outgoing direction, if the connection underneath can.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

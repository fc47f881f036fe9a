package app_test

import (
	"net"
	"sync"
	"time"
)

// tunnelled is a connection whose deadlines are those of a tunnel: a Read that began
// without one cannot be taken back, so a deadline in the past ends the connection.
type tunnelled struct {
	net.Conn
	mu sync.Mutex
	// bare is the number of reads that are under way and began without a deadline.
	bare int
	set  bool
}

// Read reads.
func (c *tunnelled) Read(p []byte) (int, error) {
	c.mu.Lock()
	bare := !c.set
	if bare {
		c.bare++
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if bare {
		c.bare--
	}
	return n, err
}

// SetReadDeadline sets when a Read gives up.
func (c *tunnelled) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set = !t.IsZero(); c.set && c.bare > 0 && !t.After(time.Now()) {
		_ = c.Close()
	}
	return c.Conn.SetReadDeadline(t)
}

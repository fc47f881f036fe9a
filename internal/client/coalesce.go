package client

import (
	"net"
	"runtime"
	"sync"
	"time"
)

const (
	// maxPending is how much a coalescing connection holds before Write waits.
	maxPending = 256 << 10
	// closePatience bounds the last flush.
	closePatience = time.Second
)

// coalesced joins small writes that come in quick succession: package ssh writes
// packet by packet, and each would be a TLS record and a wake-up at every hop.
type coalesced struct {
	net.Conn

	mu      sync.Mutex
	changed *sync.Cond
	pending []byte
	err     error
	closed  bool
	done    chan struct{}
}

// coalesce returns conn with its writes joined. Close flushes, then closes conn.
func coalesce(conn net.Conn) net.Conn {
	c := &coalesced{Conn: conn, done: make(chan struct{})}
	c.changed = sync.NewCond(&c.mu)
	go c.flush()
	return c
}

// Write keeps p for the next flush. An error of a flush is that of a later Write.
func (c *coalesced) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closed && len(c.pending) > 0 && len(c.pending)+len(p) > maxPending {
		c.changed.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	c.pending = append(c.pending, p...)
	c.changed.Broadcast()
	return len(p), nil
}

// flush writes what is pending until the connection is closed or fails.
func (c *coalesced) flush() {
	defer close(c.done)
	var spare []byte
	for {
		c.mu.Lock()
		for len(c.pending) == 0 && !c.closed {
			c.changed.Wait()
		}
		c.mu.Unlock()
		runtime.Gosched() // let the packet that belongs to this one come too
		c.mu.Lock()
		out := c.pending
		c.pending = spare[:0]
		closed := c.closed
		c.changed.Broadcast()
		c.mu.Unlock()
		if len(out) == 0 && closed {
			return
		}
		if _, err := c.Conn.Write(out); err != nil {
			c.mu.Lock()
			c.err, c.closed, c.pending = err, true, nil
			c.changed.Broadcast()
			c.mu.Unlock()
			return
		}
		spare = out
	}
}

// Close flushes what the other side still takes, and closes.
func (c *coalesced) Close() error {
	_ = c.SetWriteDeadline(time.Now().Add(closePatience))
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	<-c.done
	return c.Conn.Close()
}

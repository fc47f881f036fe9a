package resume

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// Window bounds what one end sent and the other end's reader did not take yet.
	Window = 2 << 20
	// maxUnsent is how much may wait for the path before Write does.
	maxUnsent = 256 << 10
	// maxEarly is how much a node takes from who has not logged in, and has not been
	// listened to.
	maxEarly = 64 << 10
	// ackEvery is after how many bytes taken the other end is told at once; of less
	// it hears after ackDelay.
	ackEvery = 256 << 10
	ackDelay = time.Second
	// closePatience bounds the last words of a connection.
	closePatience = time.Second

	// A path on which nothing came for pingAfter is asked for a sign of life, and given
	// up when nothing came for deadAfter. The client asks first.
	pingAfterClient = 12 * time.Second
	pingAfterNode   = 18 * time.Second
	deadAfter       = 28 * time.Second
)

// Conn is a connection over paths that come and go. It is a net.Conn whose deadlines
// all leave it usable.
type Conn struct {
	secrets *secrets
	client  *ClientConfig // nil at a node
	server  *Server       // nil at a client

	// reading and writing let one caller in at a time.
	reading, writing sync.Mutex

	mu sync.Mutex
	// readable, writable and drained are signalled when Read, Write and the receiver have
	// to look again.
	readable, writable, drained sync.Cond

	path          *path
	local, remote net.Addr

	// out is what was written and not taken by the other end's reader. taken, sent and
	// written are places in that stream: sent is the farthest of all paths.
	out                  queue
	taken, sent, written uint64
	finWritten           bool

	// in is what was received and not read.
	in             queue
	received, read uint64
	finReceived    bool

	readBy, writeBy deadline

	// keep is how long the connection outlives its path; 0 ends it with the path.
	keep   time.Duration
	policy Policy
	// attempt is the number of the last one: of those made at a client, of those
	// accepted at a node.
	attempt uint64
	// stopRedial ends the client's attempts.
	stopRedial context.CancelFunc
	// timer looks after the path, or after its absence at a node.
	timer *time.Timer
	// ackTimer runs while the other end is to be told later what was read.
	ackTimer *time.Timer
	ackSoon  bool
	lostAt   time.Time
	place    place

	// err is why the connection ended, closed that it was closed here, and closing that
	// it is about to be.
	err             error
	closing, closed bool
	closeOnce       sync.Once
}

// deadline is one of the two of a Conn.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newConn(s *secrets) *Conn {
	c := &Conn{secrets: s}
	c.readable.L, c.writable.L, c.drained.L = &c.mu, &c.mu, &c.mu
	return c
}

// LocalAddr is the local address of the path, or of the last one.
func (c *Conn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.local
}

// RemoteAddr is the address of the other end of the path, or of the last one.
func (c *Conn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote
}

// Read reads what the other end wrote. It does not fail while a path is missing; io.EOF
// is the other end's CloseWrite or Close.
func (c *Conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed || c.closing:
			return 0, net.ErrClosed
		case c.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case c.received > c.read:
			return c.takeLocked(b), nil
		case c.err != nil:
			return 0, c.err
		case c.finReceived:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		c.readable.Wait()
	}
}

// takeLocked copies to b what was received. The mutex is released meanwhile.
func (c *Conn) takeLocked(b []byte) int {
	ch := c.in.chunks[0]
	from, to := ch.lo, min(ch.hi, ch.lo+len(b))
	ch.users++
	c.mu.Unlock()
	copy(b, ch.bytes(from, to))
	c.mu.Lock()
	ch.users--
	if c.closed {
		return to - from // and the queue was emptied
	}
	ch.lo = to
	c.read += uint64(to - from)
	c.trimLocked()
	c.drained.Signal()
	c.ackLocked()
	return to - from
}

// trimLocked drops the chunks that were read.
func (c *Conn) trimLocked() {
	for len(c.in.chunks) > 0 {
		ch := c.in.chunks[0]
		if ch.lo < ch.hi || ch.users > 0 && len(c.in.chunks) == 1 {
			return
		}
		c.in.drop()
	}
}

// ackLocked tells the other end what was read, now or later.
func (c *Conn) ackLocked() {
	p := c.path
	if p == nil || c.read == p.acked {
		return
	}
	if c.read-p.acked >= ackEvery {
		c.kickLocked()
		return
	}
	if c.ackTimer == nil {
		c.ackTimer = time.AfterFunc(ackDelay, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.ackTimer = nil
			c.ackSoon = true
			c.kickLocked()
		})
	}
}

// Write takes b over and returns; it waits while too much is under way, also for a
// path that is missing.
func (c *Conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	written := 0
	for {
		if err := c.writeErrorLocked(); err != nil {
			return written, err
		}
		if len(b) == 0 {
			return written, nil
		}
		n := min(c.roomLocked(), len(b))
		if n == 0 {
			c.writable.Wait()
			continue
		}
		n = c.appendLocked(b[:n])
		b = b[n:]
		written += n
		c.kickLocked()
	}
}

func (c *Conn) writeErrorLocked() error {
	switch {
	case c.closed || c.closing:
		return net.ErrClosed
	case errors.Is(c.err, io.EOF) || c.err == nil && c.finWritten:
		return io.ErrClosedPipe
	case c.err != nil:
		return c.err
	case c.writeBy.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// roomLocked is how much Write may take over now.
func (c *Conn) roomLocked() int {
	room := Window - int(c.written-c.taken)
	if c.path != nil {
		return max(min(room, maxUnsent-int(c.written-c.path.sent)), 0)
	}
	if c.server != nil && c.server.held.Load() >= c.server.cfg.MaxHeld {
		return 0
	}
	return room
}

// appendLocked puts the beginning of b into the last chunk and returns how much that
// was. The mutex is released meanwhile.
func (c *Conn) appendLocked(b []byte) int {
	var sent uint64
	if c.path != nil {
		sent = c.path.sent
	}
	ch := c.out.tail(len(b), c.written, sent)
	n := min(len(b), ch.room())
	ch.users++
	c.mu.Unlock()
	copy(ch.bytes(ch.hi, ch.hi+n), b)
	c.mu.Lock()
	ch.users--
	if c.err == nil && !c.closed {
		ch.hi += n
		c.written += uint64(n)
	}
	return n
}

// CloseWrite tells the other end that nothing more comes.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeErrorLocked(); err != nil {
		return err
	}
	c.finWritten = true
	c.kickLocked()
	return nil
}

// Close ends the connection at both ends: nobody can resume it. What was written is
// sent if the path takes it within a second.
func (c *Conn) Close() error {
	c.closeOnce.Do(c.close)
	return nil
}

func (c *Conn) close() {
	c.mu.Lock()
	c.closing = true
	c.readable.Broadcast()
	c.writable.Broadcast()
	if p := c.path; p != nil {
		c.kickLocked()
		c.mu.Unlock()
		patience := time.NewTimer(closePatience)
		select {
		case <-p.farewell:
		case <-p.done:
		case <-patience.C:
		}
		patience.Stop()
		c.mu.Lock()
	}
	c.closed = true
	c.endLocked(net.ErrClosed)
	c.in.clear()
	c.mu.Unlock()
}

// endLocked ends the connection for good; the first reason counts.
func (c *Conn) endLocked(why error) {
	if c.err == nil {
		c.err = why
	}
	c.out.clear()
	if c.path != nil {
		c.dropPathLocked()
	}
	for _, t := range []*time.Timer{c.timer, c.ackTimer, c.readBy.timer, c.writeBy.timer} {
		if t != nil {
			t.Stop()
		}
	}
	if c.stopRedial != nil {
		c.stopRedial()
	}
	if c.server != nil {
		c.server.forget(c)
	}
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets when Read gives up; the zero time is never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readBy, &c.readable, t) }

// SetWriteDeadline sets when Write gives up; the zero time is never.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.writeBy, &c.writable, t)
}

func (c *Conn) setDeadline(d *deadline, wake *sync.Cond, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			wake.Broadcast()
		})
	}
	wake.Broadcast()
	return nil
}

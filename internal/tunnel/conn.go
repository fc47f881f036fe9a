package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// conn is a channel as a net.Conn.
//
// SSH channels have no deadlines. A deadline that passes during a write ends the
// connection, as it does with TLS. One that passes during a read leaves it usable,
// if it was set before the read began: such reads go through a goroutine and a
// buffer of their own. A read that began without a deadline goes straight into the
// caller's buffer and cannot be taken back, so a deadline that is set meanwhile and
// passes ends the connection.
type conn struct {
	ch            ssh.Channel
	local, remote net.Addr

	reading sync.Mutex // one Read at a time; guards the three below
	ahead   *readAhead
	rest    []byte
	spare   []byte // the buffer of the last readAhead, for the next

	writing sync.Mutex // one Write or CloseWrite at a time

	mu     sync.Mutex
	closed chan struct{}
	broken bool // a deadline ended the connection
	read   deadline
	write  deadline
}

// readAhead is a read that its caller may stop waiting for.
type readAhead struct {
	buf  []byte
	n    int
	err  error
	done chan struct{}
}

const (
	aheadSize = 4 << 10
	bulkSize  = 32 << 10
)

func newConn(ch ssh.Channel, local, remote net.Addr) *conn {
	return &conn{ch: ch, local: local, remote: remote, closed: make(chan struct{})}
}

// LocalAddr returns the local address of the tunnel.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the client's address at the agent, the agent's at the Proxy.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Read reads what the other end sent; io.EOF after its CloseWrite or Close.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	passed, err := c.begin(&c.read, c.ahead != nil || len(c.rest) > 0)
	switch {
	case err != nil:
		return 0, err
	case len(c.rest) > 0:
		return c.takeRest(p), nil
	case passed != nil:
		return c.readAhead(p, passed)
	}
	n, err := c.ch.Read(p)
	return n, c.end(&c.read, n, err)
}

// readAhead reads through a buffer until the deadline passes.
func (c *conn) readAhead(p []byte, passed <-chan struct{}) (int, error) {
	if c.ahead == nil {
		a := &readAhead{buf: c.spare, done: make(chan struct{})}
		if a.buf == nil {
			a.buf = make([]byte, aheadSize)
		}
		c.ahead, c.spare = a, nil
		go func() {
			a.n, a.err = c.ch.Read(a.buf)
			close(a.done)
		}()
	}
	select {
	case <-c.ahead.done:
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	case <-c.closed:
		return 0, net.ErrClosed
	}
	a := c.ahead
	c.ahead, c.rest, c.spare = nil, a.buf[:a.n], a.buf
	if a.n == aheadSize {
		c.spare = make([]byte, bulkSize) // more of it is likely to come
	}
	if a.n > 0 {
		return c.takeRest(p), nil
	}
	return 0, c.end(&c.read, 0, a.err)
}

func (c *conn) takeRest(p []byte) int {
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.rest = nil
	}
	return n
}

// begin starts an operation. For a read that goes through a buffer it returns what
// is closed when the deadline passes; nil means that nothing can stop the operation
// but the end of the channel.
func (c *conn) begin(d *deadline, ahead bool) (passed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.failedLocked(d); err != nil {
		return nil, err
	}
	if d == &c.read && (ahead || d.set) {
		return d.channelLocked(), nil
	}
	d.stuck = true
	return nil, nil
}

// end finishes what begin started and finds the reason behind the channel's error.
func (c *conn) end(d *deadline, n int, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.stuck = false
	reading := d == &c.read
	if err == nil || reading && n > 0 && errors.Is(err, io.EOF) {
		return nil
	}
	if why := c.failedLocked(d); why != nil {
		return why
	}
	if !reading && errors.Is(err, io.EOF) {
		return io.ErrClosedPipe
	}
	return err
}

// Write writes all of p.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.begin(&c.write, false); err != nil {
		return 0, err
	}
	n, err := c.ch.Write(p)
	return n, c.end(&c.write, n, err)
}

// CloseWrite tells the other end that nothing more comes; it can go on sending.
func (c *conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.ch.CloseWrite()
}

// Close ends the connection in both directions.
func (c *conn) Close() error {
	c.mu.Lock()
	select {
	case <-c.closed:
		c.mu.Unlock()
		return nil
	default:
	}
	close(c.closed)
	c.read.stopLocked()
	c.write.stopLocked()
	c.mu.Unlock()
	if err := c.ch.Close(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// failedLocked returns why nothing can be read or written any more.
func (c *conn) failedLocked(d *deadline) error {
	if d.done || c.broken {
		return os.ErrDeadlineExceeded
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
		return nil
	}
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets when a Read fails that has not read anything by then.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.read, t) }

// SetWriteDeadline sets when the connection ends if a Write is still waiting.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.write, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	c.mu.Lock()
	select {
	case <-c.closed:
		c.mu.Unlock()
		return net.ErrClosed
	default:
	}
	d.clearLocked()
	var now bool
	if d.set = !t.IsZero(); d.set {
		wait := time.Until(t)
		if now = wait <= 0; now {
			c.passLocked(d)
		} else {
			c.startLocked(d, wait)
		}
	}
	end := now && c.broken
	c.mu.Unlock()
	if end {
		_ = c.ch.Close()
	}
	return nil
}

// startLocked lets the deadline pass after the wait.
func (c *conn) startLocked(d *deadline, wait time.Duration) {
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		mine := d.timer == timer
		if mine {
			c.passLocked(d)
		}
		end := mine && c.broken
		c.mu.Unlock()
		if end {
			_ = c.ch.Close()
		}
	})
	d.timer = timer
}

// passLocked marks the deadline as passed. If an operation is under way that only
// the end of the channel can stop, the connection is broken and the caller closes it.
func (c *conn) passLocked(d *deadline) {
	d.done = true
	close(d.channelLocked())
	c.broken = c.broken || d.stuck
}

// deadline is one of the two of a conn, guarded by its mu.
type deadline struct {
	set   bool // there is one
	done  bool // it passed
	stuck bool // an operation is under way that cannot be taken back
	timer *time.Timer
	ch    chan struct{} // closed when the deadline passes; nil until somebody waits
}

func (d *deadline) clearLocked() {
	d.stopLocked()
	if d.done {
		d.done, d.ch = false, nil
	}
}

func (d *deadline) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) channelLocked() chan struct{} {
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

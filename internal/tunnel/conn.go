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
// if it was set before the read began: from the first such read on, a goroutine
// reads ahead. A read that began before that without a deadline goes straight into
// the caller's buffer and cannot be taken back, so a deadline that is set meanwhile
// and passes ends the connection.
type conn struct {
	ch            ssh.Channel
	local, remote net.Addr

	reading sync.Mutex // one Read at a time; guards the two below
	ahead   *readAhead
	rest    []byte

	writing sync.Mutex // one Write or CloseWrite at a time

	mu     sync.Mutex
	closed chan struct{}
	broken bool // a deadline ended the connection
	read   deadline
	write  deadline
}

// readAhead reads from the channel before it is asked to, so that who waits for it may
// stop waiting.
type readAhead struct {
	chunks chan chunk
	// spare takes buffers back, used is the one that the rest lies in.
	spare chan []byte
	used  []byte
	// err is how the channel ended.
	err error
}

// chunk is what one read brought.
type chunk struct {
	buf []byte
	n   int
	err error
}

const (
	aheadSize = 4 << 10
	bulkSize  = 32 << 10
	// quietReads is after how many small reads a big buffer is given up.
	quietReads = 16
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
	passed, err := c.begin(&c.read, c.ahead != nil)
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

// readAhead waits for what is read ahead until the deadline passes.
func (c *conn) readAhead(p []byte, passed <-chan struct{}) (int, error) {
	a := c.ahead
	if a == nil {
		a = &readAhead{chunks: make(chan chunk, 1), spare: make(chan []byte, 1)}
		c.ahead = a
		go c.pump(a)
	}
	for a.err == nil {
		select {
		case got := <-a.chunks:
			c.rest, a.used, a.err = got.buf[:got.n], got.buf, got.err
		case <-passed:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
		if len(c.rest) > 0 {
			return c.takeRest(p), nil
		}
	}
	return 0, c.end(&c.read, 0, a.err)
}

// pump reads ahead, a buffer or two, until the channel ends.
func (c *conn) pump(a *readAhead) {
	buf, quiet := make([]byte, aheadSize), 0
	for {
		n, err := c.ch.Read(buf)
		size := len(buf)
		select {
		case a.chunks <- chunk{buf, n, err}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
		switch {
		case n > aheadSize:
			quiet = 0
		case n == size: // of the small one: there is more
			size, quiet = bulkSize, 0
		case size == bulkSize:
			if quiet++; quiet == quietReads {
				size = aheadSize
			}
		}
		select {
		case buf = <-a.spare:
		default:
			buf = nil
		}
		if len(buf) != size {
			buf = make([]byte, size)
		}
	}
}

func (c *conn) takeRest(p []byte) int {
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		select {
		case c.ahead.spare <- c.ahead.used:
		default:
		}
		c.rest, c.ahead.used = nil, nil
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

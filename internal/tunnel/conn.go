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
// SSH channels have no deadlines. A write that passes its deadline ends the
// connection, as it does with TLS. A read that passes its deadline leaves the
// connection usable, if the deadline was set before the read began: such reads go
// through a goroutine and a buffer of their own. A read that began without a
// deadline goes straight into the caller's buffer and cannot be taken back, so a
// deadline that is set meanwhile and passes ends the connection.
type conn struct {
	ch            ssh.Channel
	local, remote net.Addr

	reading sync.Mutex // one Read at a time; guards the two below
	ahead   *readAhead
	rest    []byte

	writing sync.Mutex // one Write or CloseWrite at a time

	mu     sync.Mutex
	closed chan struct{}
	direct bool // a Read without deadline is under way
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

const aheadSize = 4 << 10

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
	if err := c.failed(&c.read); err != nil {
		return 0, err
	}
	if len(c.rest) > 0 {
		return c.takeRest(p), nil
	}
	passed, direct := c.beginRead()
	if direct {
		n, err := c.ch.Read(p)
		c.mu.Lock()
		c.direct = false
		c.mu.Unlock()
		return n, c.result(n, err, &c.read)
	}
	if c.ahead == nil {
		a := &readAhead{buf: make([]byte, aheadSize), done: make(chan struct{})}
		c.ahead = a
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
	c.ahead, c.rest = nil, a.buf[:a.n]
	if a.n > 0 {
		return c.takeRest(p), nil
	}
	return 0, c.result(0, a.err, &c.read)
}

func (c *conn) takeRest(p []byte) int {
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.rest = nil
	}
	return n
}

// beginRead decides how to read: straight into the caller's buffer, or ahead.
func (c *conn) beginRead() (passed <-chan struct{}, direct bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.direct = c.ahead == nil && !c.read.set
	return c.read.channelLocked(), c.direct
}

// Write writes all of p.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.failed(&c.write); err != nil {
		return 0, err
	}
	n, err := c.ch.Write(p)
	return n, c.result(n, err, &c.write)
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

// failed returns why nothing can be read or written any more.
func (c *conn) failed(d *deadline) error {
	c.mu.Lock()
	defer c.mu.Unlock()
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

// result replaces the channel's error by the reason that the channel was closed for.
func (c *conn) result(n int, err error, d *deadline) error {
	if err == nil || n > 0 && errors.Is(err, io.EOF) {
		return nil
	}
	if why := c.failed(d); why != nil {
		return why
	}
	return err
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets when a Read fails that has not read anything by then.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.read, t, func() {
		// Only a read that cannot be taken back needs the channel closed.
		c.mu.Lock()
		c.broken = c.broken || c.direct
		stuck := c.direct
		c.mu.Unlock()
		if stuck {
			_ = c.ch.Close()
		}
	})
}

// SetWriteDeadline sets when the connection ends if a Write is still waiting.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.write, t, func() {
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
		_ = c.ch.Close()
	})
}

func (c *conn) setDeadline(d *deadline, t time.Time, passed func()) error {
	c.mu.Lock()
	select {
	case <-c.closed:
		c.mu.Unlock()
		return net.ErrClosed
	default:
	}
	now := d.setLocked(t, &c.mu, passed)
	c.mu.Unlock()
	if now {
		passed()
	}
	return nil
}

// deadline is one of the two of a conn, guarded by its mu.
type deadline struct {
	set   bool
	timer *time.Timer
	ch    chan struct{} // closed when the deadline passed; nil until somebody waits
	done  bool
}

// setLocked reports whether t has passed already, so that the caller has to act.
func (d *deadline) setLocked(t time.Time, mu *sync.Mutex, passed func()) (now bool) {
	d.stopLocked()
	if d.done {
		d.done, d.ch = false, nil
	}
	if d.set = !t.IsZero(); !d.set {
		return false
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passLocked()
		return true
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		mu.Lock()
		mine := d.timer == timer
		if mine {
			d.passLocked()
		}
		mu.Unlock()
		if mine {
			passed()
		}
	})
	d.timer = timer
	return false
}

func (d *deadline) passLocked() {
	d.done = true
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	close(d.ch)
}

func (d *deadline) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) channelLocked() <-chan struct{} {
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

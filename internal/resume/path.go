package resume

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"teleport/internal/fault"
)

// path is one connection under a Conn. Its fields are guarded by the mutex of the Conn.
type path struct {
	conn net.Conn
	r    *bufio.Reader
	// sent is how far the stream went out on this path, acked what the other end was
	// told of what was read.
	sent, acked uint64
	// flushing is set while a goroutine writes.
	flushing                  bool
	ping, pong, keepSent, fin bool
	since, heard              time.Time
	pinged                    bool
	// done is closed when the path is given up, farewell when all was said on it.
	done, farewell chan struct{}
	bye            bool
}

const (
	// maxCopied is how much data goes out in a frame that is put together by copying;
	// larger ones are sent from where they lie.
	maxCopied   = 2 << 10
	scratchSize = maxCopied + 8*headerSize
)

var scratches = sync.Pool{New: func() any {
	b := make([]byte, 0, scratchSize)
	return &b
}}

// attachLocked makes nc the path. The other end has received the stream up to the
// place.
func (c *Conn) attachLocked(nc net.Conn, r *bufio.Reader, peerReceived uint64) *path {
	now := time.Now()
	p := &path{
		conn: nc, r: r, sent: peerReceived, since: now, heard: now, done: make(chan struct{}), farewell: make(chan struct{}),
	}
	c.path = p
	c.local, c.remote = nc.LocalAddr(), nc.RemoteAddr()
	c.ackSoon = c.read > 0
	c.watchLocked(p)
	go c.receive(p)
	c.kickLocked()
	c.writable.Broadcast()
	return p
}

// dropPathLocked closes the path. Closing may wait for the network, so nobody waits
// for it.
func (c *Conn) dropPathLocked() {
	p := c.path
	c.path = nil
	close(p.done)
	c.drained.Broadcast()
	go func() { _ = p.conn.Close() }()
}

// lostLocked is what follows when the path failed.
func (c *Conn) lostLocked(p *path, why error) {
	if c.path != p {
		return
	}
	c.dropPathLocked()
	switch {
	case c.err != nil || c.closed:
	case c.keep == 0 || c.closing:
		c.endLocked(why)
	case c.client != nil:
		c.redialLocked(p, why)
	default:
		c.awayLocked()
	}
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// kickLocked sees to it that what is to be sent is sent.
func (c *Conn) kickLocked() {
	p := c.path
	if p == nil || p.flushing || !c.workLocked(p) {
		return
	}
	p.flushing = true
	go c.flush(p)
}

func (c *Conn) ackDueLocked(p *path) bool {
	return c.read-p.acked >= ackEvery || c.ackSoon && c.read > p.acked
}

// workLocked reports whether there is something to send.
func (c *Conn) workLocked(p *path) bool {
	return !p.bye && (p.ping || p.pong || p.sent < c.written || c.ackDueLocked(p) || c.finWritten && !p.fin ||
		c.server != nil && c.keep > 0 && !p.keepSent || c.closing)
}

// flush sends until there is nothing left to send. It lives only that long, so that
// an idle connection costs no goroutine.
func (c *Conn) flush(p *path) {
	runtime.Gosched() // let the bytes that belong to the first ones come too
	small := scratches.Get().(*[]byte)
	defer scratches.Put(small)
	f := frames{small: (*small)[:0]}
	defer f.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.path == p && c.workLocked(p) {
		c.fillLocked(p, &f)
		c.mu.Unlock()
		_, err := p.conn.Write(f.out)
		c.mu.Lock()
		if f.sending != nil {
			f.sending.users--
			f.sending.sending--
			f.sending = nil
			c.out.acknowledge(c.taken)
		}
		if err != nil {
			c.lostLocked(p, err)
			break
		}
		if p.bye {
			close(p.farewell)
			break
		}
		c.writable.Broadcast()
	}
	p.flushing = false
}

// frames are the next bytes to send.
type frames struct {
	out []byte
	// small is memory for frames that are put together, big for a large one.
	small []byte
	big   *chunk
	// sending is the chunk in which out lies, if it lies in one.
	sending *chunk
}

func (f *frames) release() {
	if f.big != nil {
		f.big.giveBack()
	}
}

// fillLocked makes the next frames. Each tells what was read.
func (c *Conn) fillLocked(p *path, f *frames) {
	f.out = f.small
	head := header{taken: c.read}
	p.acked, c.ackSoon = c.read, false
	plain := func(kind byte) {
		head.kind, head.size = kind, 0
		f.out = head.appendTo(f.out)
	}
	if p.pong {
		p.pong = false
		plain(kindPong)
	}
	if p.ping {
		p.ping = false
		plain(kindPing)
	}
	if c.server != nil && c.keep > 0 && !p.keepSent {
		p.keepSent = true
		head.kind, head.size = kindKeep, keepSize
		f.out = binary.BigEndian.AppendUint32(head.appendTo(f.out), uint32(c.keep/time.Second))
	}
	if p.sent < c.written && !c.fillDataLocked(p, f, head) {
		return
	}
	if p.sent == c.written && c.finWritten && !p.fin {
		p.fin = true
		plain(kindFin)
	}
	if p.sent == c.written && c.closing {
		p.bye = true
		plain(kindClose)
	}
	if len(f.out) == 0 {
		plain(kindAck)
	}
}

// fillDataLocked adds a data frame and reports whether more may follow it. Large ones
// go alone, and from where they lie if they can.
func (c *Conn) fillDataLocked(p *path, f *frames, head header) (more bool) {
	ch := c.out.find(p.sent)
	from := int(p.sent - ch.start)
	n := min(ch.hi-from, maxData)
	head.kind, head.size = kindData, n
	switch {
	case n <= maxCopied:
		f.out = append(head.appendTo(f.out), ch.bytes(from, from+n)...)
		c.sentLocked(p, n)
		return true
	case len(f.out) > 0:
		return false
	case from == 0 && ch.sending == 0:
		ch.users++
		ch.sending++
		f.sending = ch
		head.put(ch.buf)
		f.out = ch.buf[:headerSize+n]
	default:
		if f.big == nil {
			f.big = takeChunk(len(sizes) - 1)
		}
		head.put(f.big.buf)
		copy(f.big.buf[headerSize:], ch.bytes(from, from+n))
		f.out = f.big.buf[:headerSize+n]
	}
	c.sentLocked(p, n)
	return false
}

func (c *Conn) sentLocked(p *path, n int) {
	p.sent += uint64(n)
	c.sent = max(c.sent, p.sent)
}

// receive takes what comes on the path until it fails.
func (c *Conn) receive(p *path) {
	err := c.receiveFrames(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lostLocked(p, err)
}

// errStale ends the receiver of a path that is not the path any more.
var errStale = errors.New("there is a newer path")

func (c *Conn) receiveFrames(p *path) error {
	var buf [headerSize]byte
	for {
		h, err := readHeader(p.r, &buf)
		if err != nil {
			return err
		}
		var seconds [keepSize]byte
		if h.kind == kindKeep {
			if _, err := io.ReadFull(p.r, seconds[:]); err != nil {
				return err
			}
		}
		c.mu.Lock()
		if c.path != p {
			err = errStale
		} else {
			err = c.frameArrivedLocked(p, h, seconds)
		}
		c.mu.Unlock()
		if err == nil && h.kind == kindData {
			err = c.payload(p, h.size)
		}
		if err != nil {
			return err
		}
	}
}

// frameArrivedLocked handles what a frame's header says.
func (c *Conn) frameArrivedLocked(p *path, h header, seconds [keepSize]byte) error {
	p.heard, p.pinged = time.Now(), false
	if h.taken < c.taken || h.taken > c.sent {
		return fault.Invalid("the other end says it took %d bytes of %d", h.taken, c.sent)
	}
	if h.taken > c.taken {
		c.taken = h.taken
		c.out.acknowledge(c.taken)
		c.writable.Broadcast()
	}
	switch h.kind {
	case kindData:
		if c.finReceived {
			return fault.Invalid("data after the end")
		}
		if c.received-c.read+uint64(h.size) > Window {
			return fault.Limit("more than %d bytes under way", Window)
		}
	case kindPing:
		p.pong = true
		c.kickLocked()
	case kindFin:
		c.finReceived = true
		c.readable.Broadcast()
	case kindClose:
		c.endLocked(io.EOF)
	case kindKeep:
		if c.client == nil {
			return fault.Invalid("a client keeps nothing")
		}
		c.keep = min(time.Duration(binary.BigEndian.Uint32(seconds[:]))*time.Second, maxKeep)
	}
	return nil
}

// maxKeep bounds how long a client believes a node to wait for it.
const maxKeep = time.Hour

// payload reads the bytes of a data frame as they come.
func (c *Conn) payload(p *path, size int) error {
	for size > 0 {
		c.mu.Lock()
		for c.path == p && c.server != nil && c.keep == 0 && c.received-c.read >= maxEarly {
			c.drained.Wait()
		}
		if c.path != p {
			c.mu.Unlock()
			return errStale
		}
		ch := c.in.tail(size, c.received, 0)
		at := ch.hi
		n := min(size, ch.room())
		ch.users++
		c.mu.Unlock()
		n, err := p.r.Read(ch.bytes(at, at+n))
		c.mu.Lock()
		ch.users--
		if c.path != p {
			c.mu.Unlock()
			return errStale
		}
		ch.hi += n
		c.received += uint64(n)
		size -= n
		p.heard = time.Now()
		c.trimLocked()
		c.readable.Signal()
		c.mu.Unlock()
		if err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// unexpected is err, but an end in the middle of a frame is none.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// watchLocked looks after the path from time to time: whether it still lives.
func (c *Conn) watchLocked(p *path) {
	pingAfter := pingAfterNode
	if c.client != nil {
		pingAfter = pingAfterClient
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(pingAfter, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.path != p {
			return
		}
		silence := time.Since(p.heard)
		switch {
		case silence >= deadAfter:
			c.lostLocked(p, fault.Unreachable("nothing was heard for %s", deadAfter))
			return
		case silence >= pingAfter:
			if !p.pinged {
				p.pinged, p.ping = true, true
				c.kickLocked()
			}
			timer.Reset(deadAfter - silence)
		default:
			timer.Reset(pingAfter - silence)
		}
	})
	c.timer = timer
}

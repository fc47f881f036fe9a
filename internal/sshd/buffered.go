package sshd

import (
	"bytes"
	"net"
	"sync"
	"time"
)

const (
	// writeAtOnce is how much is worth a write of its own.
	writeAtOnce = 16 << 10
	// writeBehind is how much may wait for the socket before a writer has to.
	writeBehind = 128 << 10
	// closeGrace is how long Close waits for what was written before.
	closeGrace = 2 * time.Second
)

// buffered collects small writes that follow each other at once into one write to
// the connection below: x/crypto/ssh writes every packet by itself, and a packet of
// bulk data in two parts. What is small is written by a goroutine that lives only
// while there is something to write, so that an idle connection costs nothing.
type buffered struct {
	net.Conn

	// ahead is what was read but not asked for yet; only Read uses it.
	ahead []byte
	// greeted is what was sent already and will be written once more.
	greeted []byte
	// first looks at what the client offers, until it has; only Read uses it.
	first *firstOffer

	mu sync.Mutex
	// changed is signalled when a write below returned.
	changed *sync.Cond
	waiting []byte
	// coming is set while a goroutine is on its way to write what is waiting, and
	// writing while somebody writes.
	coming, writing bool
	// offered says that our first packet is on its way.
	offered bool
	closed  bool
	err     error
}

func newBuffered(nc net.Conn) *buffered {
	b := &buffered{Conn: nc}
	b.changed = sync.NewCond(&b.mu)
	return b
}

// buffers holds those that no connection needs at the moment.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, writeBehind+(64<<10))
	return &b
}}

// smallRead is the size below which Read fetches more than it was asked for: the
// version line is read byte by byte.
const smallRead = 512

// Read reads.
func (b *buffered) Read(p []byte) (int, error) {
	n, err := b.read(p)
	if b.first == nil || n == 0 {
		return n, err
	}
	over, refusal := b.first.see(p[:n])
	if refusal != nil {
		b.refuseWeak()
		return 0, refusal
	}
	if over {
		b.first = nil
	}
	return n, err
}

func (b *buffered) read(p []byte) (int, error) {
	if len(b.ahead) == 0 && len(p) < smallRead {
		buf := make([]byte, smallRead)
		n, err := b.Conn.Read(buf)
		if n == 0 {
			return 0, err
		}
		b.ahead = buf[:n]
	}
	if len(b.ahead) > 0 {
		n := copy(p, b.ahead)
		b.ahead = b.ahead[n:]
		if len(b.ahead) == 0 {
			b.ahead = nil
		}
		return n, nil
	}
	return b.Conn.Read(p)
}

// Write queues p. An error of an earlier write is reported here.
func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.greeted != nil {
		rest, err := b.passGreeted(p)
		if err != nil || len(rest) == 0 {
			return len(p), err
		}
		n, err := b.writeBehindLocked(rest)
		return len(p) - len(rest) + n, err
	}
	return b.writeBehindLocked(p)
}

// writeBehindLocked is Write with the mutex held, which it gives up while it waits.
func (b *buffered) writeBehindLocked(p []byte) (int, error) {
	for len(b.waiting) > writeBehind && b.err == nil && !b.closed {
		b.changed.Wait()
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.closed {
		return 0, net.ErrClosed
	}
	if !b.offered && !bytes.HasPrefix(p, []byte("SSH-")) {
		b.offered = true
		b.changed.Broadcast()
	}
	if b.waiting == nil {
		b.waiting = *buffers.Get().(*[]byte)
	}
	b.waiting = append(b.waiting, p...)
	switch {
	case b.writing:
	case len(b.waiting) >= writeAtOnce:
		b.writeLocked()
	case !b.coming:
		b.coming = true
		go b.writeSoon()
	}
	return len(p), nil
}

// writeSoon runs once the writer has nothing to add for the moment, or another
// processor is free.
func (b *buffered) writeSoon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.coming = false
	if !b.writing {
		b.writeLocked()
	}
	b.changed.Broadcast()
}

// writeLocked empties the queue. The mutex is released during each write.
func (b *buffered) writeLocked() {
	b.writing = true
	for len(b.waiting) > 0 && b.err == nil {
		out := b.waiting
		b.waiting = nil
		b.mu.Unlock()
		_, err := b.Conn.Write(out)
		out = out[:0]
		buffers.Put(&out)
		b.mu.Lock()
		b.err = err
		b.changed.Broadcast()
	}
	b.writing = false
	b.waiting = nil
	b.changed.Broadcast()
}

// Close writes what is queued, if that is possible within a short time, and
// closes the connection.
func (b *buffered) Close() error {
	timer := time.AfterFunc(closeGrace, func() { _ = b.Conn.Close() })
	defer timer.Stop()
	b.mu.Lock()
	b.closed = true
	b.changed.Broadcast()
	for b.writing || b.coming {
		b.changed.Wait()
	}
	b.mu.Unlock()
	return b.Conn.Close()
}

// abort closes the connection without writing what is queued.
func (b *buffered) abort() error { return b.Conn.Close() }

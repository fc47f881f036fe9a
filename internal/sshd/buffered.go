package sshd

import (
	"net"
	"sync"
	"time"
)

const (
	// writeBehind is how much may wait for the socket before a writer has to.
	writeBehind = 128 << 10
	// closeGrace is how long Close waits for what was written before.
	closeGrace = 2 * time.Second
)

// buffered collects writes that follow each other at once into one write to the
// connection below. x/crypto/ssh writes every packet by itself; a client that
// uses Nagle's algorithm then waits 40 ms for a delayed acknowledgement at each
// step of the handshake. Writing happens on a goroutine that lives only while
// there is something to write: an idle connection costs nothing, and on a busy one
// encryption and the system calls run side by side.
type buffered struct {
	net.Conn

	mu sync.Mutex
	// changed is signalled when the writer made progress.
	changed *sync.Cond
	waiting []byte
	writing bool
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

// Write queues p. An error of an earlier write is reported here.
func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) > writeBehind && b.err == nil && !b.closed {
		b.changed.Wait()
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.closed {
		return 0, net.ErrClosed
	}
	if b.waiting == nil {
		b.waiting = *buffers.Get().(*[]byte)
	}
	b.waiting = append(b.waiting, p...)
	if !b.writing {
		b.writing = true
		go b.write()
	}
	return len(p), nil
}

// write empties the queue and ends.
func (b *buffered) write() {
	b.mu.Lock()
	defer b.mu.Unlock()
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
	for b.writing {
		b.changed.Wait()
	}
	b.mu.Unlock()
	return b.Conn.Close()
}

// abort closes the connection without writing what is queued.
func (b *buffered) abort() error { return b.Conn.Close() }

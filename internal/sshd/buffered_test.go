package sshd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is a connection whose writes can be held and made to fail.
type sink struct {
	net.Conn

	mu     sync.Mutex
	got    bytes.Buffer
	writes int
	err    error
	hold   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newSink() *sink { return &sink{closed: make(chan struct{})} }

func (s *sink) Write(p []byte) (int, error) {
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-s.closed:
			return 0, net.ErrClosed
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.writes++
	return s.got.Write(p)
}

func (s *sink) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func TestBufferedKeepsOrderAndCloseWritesAll(t *testing.T) {
	s := newSink()
	b := newBuffered(s)
	var want bytes.Buffer
	for i := range 2000 {
		p := bytes.Repeat([]byte{byte(i)}, (i*7919)%40_000)
		want.Write(p)
		if n, err := b.Write(p); n != len(p) || err != nil {
			t.Fatalf("Write = %d, %v, want %d", n, err, len(p))
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes were written and %d arrived, or in another order", want.Len(), s.got.Len())
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close = %v, want closed", err)
	}
}

func TestBufferedJoinsSmallWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink()
		s.hold = make(chan struct{})
		b := newBuffered(s)
		for range 100 {
			if _, err := b.Write([]byte("packet")); err != nil {
				t.Fatal(err)
			}
		}
		close(s.hold)
		synctest.Wait()
		if s.writes > 2 || s.got.Len() != 600 {
			t.Errorf("100 writes became %d of %d bytes, want at most 2 of 600", s.writes, s.got.Len())
		}
		_ = b.Close()
	})
}

func TestBufferedReportsErrorsAndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink()
		s.hold = make(chan struct{})
		b := newBuffered(s)
		written := 0
		done := make(chan error, 1)
		go func() {
			for {
				n, err := b.Write(make([]byte, 1000))
				written += n
				if err != nil {
					done <- err
					return
				}
			}
		}()
		synctest.Wait()
		if written > 2*writeBehind {
			t.Errorf("%d bytes are waiting, want them bounded", written)
		}
		s.mu.Lock()
		s.err = io.ErrClosedPipe
		s.mu.Unlock()
		close(s.hold)
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write = %v, want the error of the connection", err)
		}
		_ = b.Close()
	})
}

func TestBufferedCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSink()
		s.hold = make(chan struct{})
		b := newBuffered(s)
		_, _ = b.Write([]byte("nobody reads this"))
		began := time.Now()
		_ = b.Close()
		if took := time.Since(began); took != closeGrace {
			t.Errorf("Close took %s, want %s", took, closeGrace)
		}
	})
}

func TestBufferedReadsAhead(t *testing.T) {
	client, server := net.Pipe()
	b := newBuffered(server)
	go func() {
		_, _ = client.Write([]byte("version\nand more"))
		_ = client.Close()
	}()
	one := make([]byte, 1)
	var got []byte
	for {
		n, err := b.Read(one)
		got = append(got, one[:n]...)
		if err != nil {
			break
		}
	}
	if string(got) != "version\nand more" {
		t.Errorf("read %q", got)
	}
}

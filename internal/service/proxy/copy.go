package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"

	"teleport/internal/mux"
)

const (
	// smallBuffer is what an idle direction of a connection holds, bigBuffer a busy
	// one.
	smallBuffer = 2 << 10
	bigBuffer   = 64 << 10
	// quietReads is after how many small reads a direction counts as idle again.
	quietReads = 16
	// bulk is how much a direction has to move for the kernel to do the copying
	// alone, where it can: splice holds a pipe, two descriptors, per direction, and
	// thousands of idle connections to Auth must not.
	bulk = 4 << 20
)

// carry joins two connections and logs what must not happen.
func (s *Service) carry(ctx context.Context, a, b net.Conn) {
	if err := join(a, b); err != nil {
		s.cfg.Log.ErrorContext(ctx, "a connection was ended by a panic", "remote_addr", a.RemoteAddr().String(), "error", err)
	}
}

// join copies between two connections until both directions have ended, and closes
// both. The end of one direction is passed on, so that a peer that has said its last
// word can still listen. Only a panic of either direction is an error.
func join(a, b net.Conn) error {
	var work sync.WaitGroup
	var there, back error
	work.Go(func() { back = pourSafely(b, a) })
	there = pourSafely(a, b)
	work.Wait()
	_ = a.Close()
	_ = b.Close()
	return errors.Join(there, back)
}

// pourSafely is pour, but a panic ends both directions and is an error: nobody else
// is there to catch it.
func pourSafely(dst, src net.Conn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			_ = dst.Close()
			_ = src.Close()
		}
	}()
	pour(dst, src)
	return nil
}

// pour copies src to dst and passes its end on.
func pour(dst, src net.Conn) {
	if err := transfer(dst, src); err == nil {
		if cw, ok := dst.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
			return
		}
	}
	// There is no half of it left that could be of use.
	_ = dst.Close()
	_ = src.Close()
}

// transfer is io.Copy that holds little memory while little moves.
func transfer(dst, src net.Conn) error {
	small := make([]byte, smallBuffer)
	buf, quiet := small, 0
	to, from := plainTCP(dst), plainTCP(src)
	for moved := int64(0); ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case n > smallBuffer:
			quiet = 0
		case n == len(buf): // of the small one: there is more
			buf, quiet = make([]byte, bigBuffer), 0
		case len(buf) == bigBuffer:
			if quiet++; quiet == quietReads {
				buf = small
			}
		}
		if moved += int64(n); moved >= bulk && to != nil && from != nil {
			_, err := io.Copy(to, from)
			return err
		}
	}
}

// plainTCP returns the TCP connection that c is, or nil. What a Mux has read ahead is
// not in it, but that is long gone when it is asked for.
func plainTCP(c net.Conn) *net.TCPConn {
	if b, ok := c.(*boundedConn); ok {
		c = b.Conn
	}
	if m, ok := c.(*mux.Conn); ok {
		c = m.NetConn()
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}

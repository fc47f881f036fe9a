package proxy

import (
	"io"
	"net"
	"sync"
)

// bufferSize is that of a copy which the kernel cannot do by itself: a channel of a
// tunnel takes 32 KiB at once.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// join copies between two connections until both directions have ended, and closes
// both. The end of one direction is passed on, so that a peer that has said its last
// word can still listen.
func join(a, b net.Conn) (fromA, fromB int64) {
	done := make(chan int64, 1)
	go func() { done <- pour(b, a) }()
	fromB = pour(a, b)
	fromA = <-done
	_ = a.Close()
	_ = b.Close()
	return fromA, fromB
}

// pour copies src to dst and passes its end on.
func pour(dst, src net.Conn) int64 {
	n, err := copyTo(dst, src)
	cw, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || cw.CloseWrite() != nil {
		// There is no half of it left that could be of use.
		_ = dst.Close()
		_ = src.Close()
	}
	return n
}

func copyTo(dst, src net.Conn) (int64, error) {
	_, fast := src.(io.WriterTo)
	if _, ok := dst.(io.ReaderFrom); ok || fast {
		return io.Copy(dst, src)
	}
	buf := buffers.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer buffers.Put(buf)
	return io.CopyBuffer(dst, src, *buf)
}

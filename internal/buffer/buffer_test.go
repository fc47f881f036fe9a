package buffer_test

import (
	"net/http/httputil"
	"testing"

	"teleport/internal/buffer"
)

var _ httputil.BufferPool = (*buffer.Pool)(nil)

func TestPool(t *testing.T) {
	var p buffer.Pool
	for range 3 {
		b := p.Get()
		if len(b) != buffer.Size {
			t.Fatalf("a buffer has %d bytes, want %d", len(b), buffer.Size)
		}
		p.Put(b[:1]) // what is no buffer of the pool is not kept
		p.Put(b)
	}
}

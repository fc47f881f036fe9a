// Package buffer shares the buffers of copies between those that pass bytes on.
package buffer

import "sync"

// Size is that of every buffer.
const Size = 32 << 10

// Pool keeps buffers for the next copy. The zero value is ready; it is safe for
// concurrent use, and is a BufferPool of package httputil.
type Pool struct{ free sync.Pool }

// Get returns a buffer.
func (p *Pool) Get() []byte {
	if array, ok := p.free.Get().(*[Size]byte); ok {
		return array[:]
	}
	return make([]byte, Size)
}

// Put takes a buffer of Get back.
func (p *Pool) Put(b []byte) {
	if len(b) == Size {
		p.free.Put((*[Size]byte)(b))
	}
}

package resume

import (
	"sort"
	"sync"
	"sync/atomic"
)

// chunk is a piece of memory that holds bytes of a stream, with room before them for
// the header of a frame. All but the bytes is guarded by the connection's mutex.
type chunk struct {
	buf []byte
	// start is the place of the first byte in the stream.
	start uint64
	// lo and hi bound the bytes that are still needed; buf[headerSize+lo] is the first.
	lo, hi int
	// users are reading from it or writing into it with the mutex released: meanwhile
	// nobody else uses the free room, and it does not go back to its pool.
	users int
	// sending counts those that send it with a header in its room.
	sending int
}

func (c *chunk) capacity() int { return len(c.buf) - headerSize }
func (c *chunk) room() int     { return c.capacity() - c.hi }

// bytes returns those between two offsets in the chunk.
func (c *chunk) bytes(from, to int) []byte { return c.buf[headerSize+from : headerSize+to] }

// sizes are those of chunks: an idle connection has none, one that is typed in has
// the smallest, one that copies the largest.
var sizes = [...]int{1 << 10, 8 << 10, maxFrame}

// pools have the chunks that no connection needs now, by size.
var pools [len(sizes)]sync.Pool

// takeChunk returns an empty chunk of the size.
func takeChunk(class int) *chunk {
	c, _ := pools[class].Get().(*chunk)
	if c == nil {
		c = &chunk{buf: make([]byte, sizes[class])}
	}
	c.start, c.lo, c.hi, c.users, c.sending = 0, 0, 0, 0, 0
	return c
}

// giveBack puts a chunk that nobody uses into its pool.
func (c *chunk) giveBack() {
	for class, size := range sizes {
		if len(c.buf) == size {
			pools[class].Put(c)
		}
	}
}

// queue is a part of a stream in chunks, oldest first.
type queue struct {
	chunks []*chunk
	// held counts the memory of chunks of all connections of a server; nil does not.
	held *atomic.Int64
}

// tail returns a chunk at the end of the queue that has room. want is how much more is
// known to come, at is the place in the stream of what will be appended, and sent how
// far the stream was sent.
func (q *queue) tail(want int, at, sent uint64) *chunk {
	class := 0
	if n := len(q.chunks); n > 0 {
		last := q.chunks[n-1]
		// A chunk that was sent in part takes no more than fits a frame that is copied.
		if last.users == 0 && last.room() > 0 && (sent <= last.start || want <= maxCopied) {
			return last
		}
		for class < len(sizes)-1 && len(last.buf) >= sizes[class] {
			class++
		}
	}
	for class < len(sizes)-1 && want > sizes[class]-headerSize {
		class++
	}
	c := takeChunk(class)
	c.start = at
	q.chunks = append(q.chunks, c)
	if q.held != nil {
		q.held.Add(int64(len(c.buf)))
	}
	return c
}

// drop removes the first chunk.
func (q *queue) drop() {
	c := q.chunks[0]
	q.chunks[0] = nil
	if q.chunks = q.chunks[1:]; len(q.chunks) == 0 {
		q.chunks = nil
	}
	if q.held != nil {
		q.held.Add(-int64(len(c.buf)))
	}
	if c.users == 0 {
		c.giveBack()
	} // else whoever uses it lets go of it some day
}

// clear removes everything.
func (q *queue) clear() {
	for len(q.chunks) > 0 {
		q.drop()
	}
}

// acknowledge removes what lies before the place.
func (q *queue) acknowledge(at uint64) {
	for len(q.chunks) > 0 {
		c := q.chunks[0]
		if c.start+uint64(c.hi) > at || c.users > 0 && len(q.chunks) == 1 {
			return
		}
		q.drop()
	}
}

// find returns the chunk that has the byte at the place, which must be there.
func (q *queue) find(at uint64) *chunk {
	i := sort.Search(len(q.chunks), func(i int) bool { return q.chunks[i].start+uint64(q.chunks[i].hi) > at })
	return q.chunks[i]
}

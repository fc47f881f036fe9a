package postgres

import (
	"encoding/binary"

	"teleport/internal/fault"
)

// maxFrame is the longest message that a server takes; what says that it is longer is no
// message.
const maxFrame = 1 << 30

// frames cuts a stream into messages. It sees a copy of what is passed on, in whatever
// pieces that comes, and keeps of a message that spans pieces what is asked for.
type frames struct {
	// want says how much of the body of a message to keep.
	want func(kind byte, size int) int
	// got is told of each message when it has ended: the part of the body that was kept,
	// which is good until it returns, and the size of the whole.
	got func(kind byte, body []byte, size int)

	head [headerSize]byte
	// inHead is how much of the head has come.
	inHead int
	// size is that of the body, left what has not come yet, keep how much is wanted.
	size, left, keep int
	body             []byte
}

// keptBody is how much memory stays for the next message that spans pieces.
const keptBody = 4 << 10

// whole reports whether the stream is between two messages.
func (f *frames) whole() bool { return f.inHead == 0 }

// feed takes the next piece. After an error the stream has no frames any more.
func (f *frames) feed(p []byte) error {
	for len(p) > 0 {
		if f.inHead < headerSize {
			n := copy(f.head[f.inHead:], p)
			f.inHead += n
			p = p[n:]
			if f.inHead < headerSize {
				return nil
			}
			size := binary.BigEndian.Uint32(f.head[1:])
			if size < 4 || size > maxFrame {
				return fault.Invalid("a message of kind %q says that it has %d bytes", f.head[0], size)
			}
			f.size = int(size) - 4
			f.left = f.size
			f.keep = min(f.size, f.want(f.head[0], f.size))
			if f.size > 0 && len(p) == 0 {
				return nil
			}
		}
		n := min(f.left, len(p))
		switch {
		case n == f.size:
			// The usual case: the whole of it is in this piece.
			f.end(p[:f.keep])
		case f.left == n:
			f.collect(p[:n])
			f.end(f.body)
			f.drop()
		default:
			f.collect(p[:n])
			f.left -= n
		}
		p = p[n:]
	}
	// A message without a body may end with the piece.
	return nil
}

// collect keeps what is wanted of a part of the body.
func (f *frames) collect(part []byte) {
	if room := f.keep - len(f.body); room > 0 {
		f.body = append(f.body, part[:min(room, len(part))]...)
	}
}

func (f *frames) drop() {
	if cap(f.body) > keptBody {
		f.body = nil
	}
	f.body = f.body[:0]
}

func (f *frames) end(body []byte) {
	f.inHead = 0
	f.got(f.head[0], body, f.size)
}

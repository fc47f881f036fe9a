package resume

import (
	"encoding/binary"
	"io"

	"teleport/internal/fault"
)

// Kinds of frames.
const (
	kindData  byte = 1
	kindAck   byte = 2
	kindPing  byte = 3
	kindPong  byte = 4
	kindFin   byte = 5
	kindClose byte = 6
	kindKeep  byte = 7
)

const (
	headerSize = 12
	keepSize   = 4
	// maxFrame bounds a frame with its header: it fills the records and packets of
	// what is below.
	maxFrame = 64 << 10
	maxData  = maxFrame - headerSize
)

// header begins a frame.
type header struct {
	kind  byte
	size  int
	taken uint64
}

// put writes the header into b.
func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.kind)<<24|uint32(h.size))
	binary.BigEndian.PutUint64(b[4:], h.taken)
}

// appendTo appends the header to b.
func (h header) appendTo(b []byte) []byte {
	var head [headerSize]byte
	h.put(head[:])
	return append(b, head[:]...)
}

// parseHeader reads a header.
func parseHeader(b []byte) (header, error) {
	word := binary.BigEndian.Uint32(b)
	h := header{kind: byte(word >> 24), size: int(word & 0xffffff), taken: binary.BigEndian.Uint64(b[4:])}
	ok := h.size == 0
	switch h.kind {
	case kindData:
		ok = h.size > 0 && h.size <= maxData
	case kindKeep:
		ok = h.size == keepSize
	case kindAck, kindPing, kindPong, kindFin, kindClose:
	default:
		return h, fault.Invalid("frame of kind %d", h.kind)
	}
	if !ok {
		return h, fault.Invalid("frame of kind %d with %d bytes", h.kind, h.size)
	}
	return h, nil
}

// readHeader reads a header from r.
func readHeader(r io.Reader, buf *[headerSize]byte) (header, error) {
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return header{}, err
	}
	return parseHeader(buf[:])
}

package mysql

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"teleport/internal/fault"
)

const (
	headerSize = 4
	// maxPayload is that of one packet; a longer message goes on in the next.
	maxPayload = 1<<24 - 1
	// maxLogin bounds the packets of a login.
	maxLogin = 64 << 10
)

// header is that of a packet.
type header struct {
	size int
	seq  byte
}

func readHeader(r io.Reader) (header, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return header{}, err
	}
	return header{int(b[0]) | int(b[1])<<8 | int(b[2])<<16, b[3]}, nil
}

func (h header) bytes() [headerSize]byte {
	return [headerSize]byte{byte(h.size), byte(h.size >> 8), byte(h.size >> 16), h.seq}
}

func (h header) write(w io.Writer) error {
	b := h.bytes()
	_, err := w.Write(b[:])
	return err
}

// readPacket reads a packet of at most limit bytes.
func readPacket(r io.Reader, limit int) (seq byte, payload []byte, err error) {
	h, err := readHeader(r)
	if err != nil {
		return 0, nil, err
	}
	if h.size > limit {
		return 0, nil, fault.Invalid("a packet of %d bytes where at most %d are expected", h.size, limit)
	}
	payload = make([]byte, h.size)
	_, err = io.ReadFull(r, payload)
	return h.seq, payload, err
}

// writePacket writes a packet at once.
func writePacket(w io.Writer, seq byte, payload []byte) error {
	h := header{len(payload), seq}.bytes()
	_, err := w.Write(append(h[:], payload...))
	return err
}

// peek returns the next n bytes, of which the rest stays in the reader if they fit it.
func peek(r *bufio.Reader, n int) ([]byte, error) {
	if n <= r.Size() {
		return r.Peek(n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// pass copies a payload of which head was peeked.
func pass(w *bufio.Writer, r *bufio.Reader, size int, head []byte) error {
	if len(head) > r.Size() { // it was read
		if _, err := w.Write(head); err != nil {
			return err
		}
		size -= len(head)
	}
	_, err := io.CopyN(w, r, int64(size))
	return err
}

// cutter cuts a stream into packets, of which it keeps the beginning.
type cutter struct {
	// packet takes a packet: how it begins, how long it is, and whether it goes on from
	// the one before.
	packet func(head []byte, size int, goesOn bool)

	head [headerSize]byte
	have int
	// left is how much of the payload is still to come.
	left, size int
	kept       []byte
	goesOn     bool
}

// maxHead is how much of an answer is looked at.
const maxHead = 1 << 10

func (c *cutter) feed(p []byte) {
	for len(p) > 0 {
		if c.have < headerSize {
			n := copy(c.head[c.have:], p)
			c.have += n
			p = p[n:]
			if c.have < headerSize {
				return
			}
			c.size = int(c.head[0]) | int(c.head[1])<<8 | int(c.head[2])<<16
			c.left, c.kept = c.size, c.kept[:0]
		}
		n := min(c.left, len(p))
		if room := maxHead - len(c.kept); room > 0 {
			c.kept = append(c.kept, p[:min(n, room)]...)
		}
		p = p[n:]
		if c.left -= n; c.left > 0 {
			return
		}
		c.packet(c.kept, c.size, c.goesOn)
		c.goesOn = c.size == maxPayload
		c.have = 0
	}
}

// text takes a text that ends with a zero byte.
func text(p []byte) (s string, rest []byte, ok bool) {
	for i, b := range p {
		if b == 0 {
			return string(p[:i]), p[i+1:], true
		}
	}
	return "", nil, false
}

// lenenc takes a length-encoded integer.
func lenenc(p []byte) (n uint64, rest []byte, ok bool) {
	if len(p) == 0 {
		return 0, nil, false
	}
	width := 0
	switch p[0] {
	case 0xfc:
		width = 2
	case 0xfd:
		width = 3
	case 0xfe:
		width = 8
	case 0xfb, 0xff:
		return 0, nil, false
	default:
		return uint64(p[0]), p[1:], true
	}
	if len(p) < 1+width {
		return 0, nil, false
	}
	var b [8]byte
	copy(b[:], p[1:1+width])
	return binary.LittleEndian.Uint64(b[:]), p[1+width:], true
}

// lenencBytes takes a length-encoded text.
func lenencBytes(p []byte) (b, rest []byte, ok bool) {
	n, p, ok := lenenc(p)
	if !ok || n > uint64(len(p)) {
		return nil, nil, false
	}
	return p[:n], p[n:], true
}

// Codes of errors that the agent tells.
const (
	codeAccessDenied = 1045
	codeNotSupported = 1235
	codeUnknown      = 1105
)

// errorPacket tells the client an error.
func errorPacket(err error) []byte {
	code, state := codeUnknown, "HY000"
	switch {
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrUnauthenticated):
		code, state = codeAccessDenied, "28000"
	case errors.Is(err, fault.ErrUnsupported):
		code, state = codeNotSupported, "42000"
	}
	b := binary.LittleEndian.AppendUint16([]byte{0xff}, uint16(code))
	b = append(b, '#')
	b = append(b, state...)
	message := err.Error()
	return append(b, message[:min(len(message), 512)]...)
}

// serverError is an error in the server's own words.
type serverError struct{ packet []byte }

// Error returns the text.
func (e *serverError) Error() string { return errorText(e.packet) }

// errorText is the text of an ERR packet, with the code.
func errorText(p []byte) string {
	if len(p) < 3 {
		return "an error without a text"
	}
	code, rest := int(p[1])|int(p[2])<<8, p[3:]
	state := ""
	if len(rest) >= 6 && rest[0] == '#' {
		state, rest = " ("+string(rest[1:6])+")", rest[6:]
	}
	return "ERROR " + itoa(code) + state + ": " + string(rest)
}

// closed reports whether an error is the end of a connection.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

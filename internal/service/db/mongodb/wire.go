package mongodb

import (
	"bytes"
	"encoding/binary"
	"io"

	"teleport/internal/fault"
)

// Kinds of messages.
const (
	opReply      = 1
	opQuery      = 2004
	opCompressed = 2012
	opMsg        = 2013
)

// Flags of OP_MSG. Those below 1<<16 have to be understood.
const (
	flagChecksum   = 1 << 0
	flagMore       = 1 << 1
	flagExhaust    = 1 << 16
	flagsKnown     = flagChecksum | flagMore
	flagsMustKnown = 0xffff
)

// Kinds of sections of OP_MSG.
const (
	sectionBody     = 0
	sectionSequence = 1
)

const (
	headSize = 16
	// maxDocument bounds a document as the server does (16 MiB, and 16 KiB for what is
	// around it), and maxMessage a message.
	maxDocument = 16<<20 + 16<<10
	maxMessage  = 48_000_000
	maxName     = 256
)

// head is how each message begins.
type head struct {
	size, id, to int32
	op           int32
}

func parseHead(p []byte) (head, error) {
	at := func(i int) int32 { return int32(binary.LittleEndian.Uint32(p[i:])) }
	h := head{at(0), at(4), at(8), at(12)}
	if h.size < headSize+4 || h.size > maxMessage {
		return h, fault.Invalid("a message of %d bytes", h.size)
	}
	return h, nil
}

// message makes one of a single document.
func message(op, id, to int32, doc []byte) []byte {
	var lead []byte
	switch op {
	case opReply:
		// Awaiting is supported; no cursor, from 0, one document.
		lead = make([]byte, 20)
		lead[0], lead[16] = 8, 1
	default:
		// No flags, and a body.
		lead = make([]byte, 5)
	}
	out := make([]byte, 0, headSize+len(lead)+len(doc))
	for _, v := range []int32{int32(headSize + len(lead) + len(doc)), id, to, op} {
		out = binary.LittleEndian.AppendUint32(out, uint32(v))
	}
	return append(append(out, lead...), doc...)
}

// request is a message of the client, of which all that decides has been read.
type request struct {
	head  head
	flags uint32
	// raw is what has been read of the message, from its head on; rest is how much is
	// still to come, which are whole sections, and the checksum.
	raw  []byte
	rest int
	body []byte
	// sequences are what was read of the documents beside the body.
	sequences []sequence
	// namespace is that of an OP_QUERY.
	namespace string
}

// sequence is a part of a command that is several documents.
type sequence struct {
	name string
	docs []byte
}

// silent reports whether the client waits for no answer.
func (r *request) silent() bool { return r.head.op == opMsg && r.flags&flagMore != 0 }

// readRequest reads a message: as a whole up to limit bytes, a longer one up to the end
// of the body, which then comes first.
func readRequest(in io.Reader, limit int) (*request, error) {
	r := &request{raw: make([]byte, headSize, 512)}
	if _, err := io.ReadFull(in, r.raw); err != nil {
		return nil, err
	}
	var err error
	if r.head, err = parseHead(r.raw); err != nil {
		return r, err
	}
	r.rest = int(r.head.size) - headSize
	switch r.head.op {
	case opMsg:
		if r.rest > limit {
			return r, r.readLong(in)
		}
		if err := r.take(in, r.rest); err != nil {
			return r, err
		}
		return r, r.parse()
	case opQuery:
		if r.rest > limit {
			return r, fault.Unsupported("the client speaks a form of the protocol that servers no longer know (OP_QUERY)")
		}
		if err := r.take(in, r.rest); err != nil {
			return r, err
		}
		return r, r.parseQuery()
	case opCompressed:
		return r, fault.Unsupported("the client compresses, which it was not told to")
	}
	return r, fault.Unsupported("the client speaks a form of the protocol that servers no longer know (%d)", r.head.op)
}

// take reads n bytes of the message. What the network says of a length is only believed
// as the bytes come.
func (r *request) take(in io.Reader, n int) error {
	if n > r.rest {
		return fault.Invalid("a message that is shorter than what is in it")
	}
	buf := bytes.NewBuffer(r.raw)
	if _, err := io.CopyN(buf, in, int64(n)); err != nil {
		return io.ErrUnexpectedEOF
	}
	r.raw = buf.Bytes()
	r.rest -= n
	return nil
}

// setFlags reads the flags at the beginning of p.
func (r *request) setFlags(p []byte) error {
	r.flags = binary.LittleEndian.Uint32(p)
	if unknown := r.flags & flagsMustKnown &^ flagsKnown; unknown != 0 {
		return fault.Invalid("a message with unknown flags %#x", unknown)
	}
	return nil
}

// readLong reads a message up to the end of its body.
func (r *request) readLong(in io.Reader) error {
	const lead = 4 + 1 + 4
	if err := r.take(in, lead); err != nil {
		return err
	}
	p := r.raw[headSize:]
	if err := r.setFlags(p); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(p[5:])
	if p[4] != sectionBody || n < 5 || n > maxDocument {
		return fault.Invalid("a message of %d bytes that does not begin with its command", r.head.size)
	}
	if err := r.take(in, int(n)-4); err != nil {
		return err
	}
	var err error
	r.body, err = document(r.raw[headSize+5:])
	return err
}

// parse reads a message that is whole.
func (r *request) parse() error {
	p := r.raw[headSize:]
	if err := r.setFlags(p); err != nil {
		return err
	}
	p = p[4:]
	if r.flags&flagChecksum != 0 {
		if len(p) < 4 {
			return fault.Invalid("a message without its checksum")
		}
		p = p[:len(p)-4]
	}
	for len(p) > 0 {
		kind := p[0]
		p = p[1:]
		switch {
		case kind == sectionBody && r.body == nil:
			body, err := document(p)
			if err != nil {
				return err
			}
			r.body, p = body, p[len(body):]
		case kind == sectionSequence:
			n, ok := length(p)
			if !ok || n > len(p) {
				return fault.Invalid("a section that is longer than its message")
			}
			name, docs, ok := bytes.Cut(p[4:max(n, 4)], []byte{0})
			if !ok || len(name) > maxName {
				return fault.Invalid("a section without a name")
			}
			if bytes.HasPrefix(name, []byte("$")) {
				return fault.Invalid("a section with the name %q", name)
			}
			r.sequences = append(r.sequences, sequence{string(name), docs})
			p = p[n:]
		default:
			return fault.Invalid("a section of the kind %d that does not belong there", kind)
		}
	}
	if r.body == nil {
		return fault.Invalid("a message without a command")
	}
	return nil
}

// parseQuery reads a message of the old kind: flags, namespace, two numbers, a document.
func (r *request) parseQuery() error {
	p := r.raw[headSize+4:]
	name, p, ok := bytes.Cut(p, []byte{0})
	if !ok || len(name) > maxName || len(p) < 8 {
		return fault.Invalid("a query without a namespace")
	}
	r.namespace = string(name)
	var err error
	r.body, err = document(p[8:])
	return err
}

// sections follows what comes after the body of a long message, so that nothing goes to
// the server that was not decided about, and keeps the beginning for the record.
type sections struct {
	// checksum is how many bytes at the end belong to no section.
	checksum int
	limit    int

	lead []byte
	left int
	kept []byte
}

// feed takes what comes next; left counts what is still to come of the message, p
// included.
func (s *sections) feed(p []byte, left int) error {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(len(p), s.left)
			s.kept = append(s.kept, p[:min(n, max(0, s.limit-len(s.kept)))]...)
			p, s.left, left = p[n:], s.left-n, left-n
			continue
		}
		if len(s.lead) == 0 && left <= s.checksum {
			return nil
		}
		s.lead = append(s.lead, p[0])
		p, left = p[1:], left-1
		if s.lead[0] != sectionSequence {
			return fault.Invalid("a second command in a message")
		}
		if len(s.lead) < 5 {
			continue
		}
		n := int(binary.LittleEndian.Uint32(s.lead[1:]))
		s.lead = s.lead[:0]
		if n < 5 || n-4 > left-s.checksum {
			return fault.Invalid("a section that is longer than its message")
		}
		s.left = n - 4
		// The first section is what is recorded.
		if len(s.kept) > 0 {
			s.limit = 0
		}
	}
	return nil
}

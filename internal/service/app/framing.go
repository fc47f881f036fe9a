package app

import (
	"bytes"
	"strings"
	"sync/atomic"
)

// framing follows a stream of HTTP/1 requests and makes sure that it cannot be read in two
// ways: how long each body is must be said once and plainly, lines end in CR LF and are not
// continued. The server behind it is more lenient, as RFC 9112 lets it be, and would mend
// such requests; but who sends them means to have two programs disagree about where a
// request ends.
//
// At the first offence it spoils the stream: what comes out is no request for any server,
// which then answers that it is bad, in its turn, and closes the connection.
type framing struct {
	state framingState
	line  []byte
	// first says that the next line is a request line, and old that the request is of
	// HTTP/1.0 or older.
	first, old bool
	hasLength  bool
	chunked    bool
	// left is what is still to come of a body or a chunk.
	left int64
	// spoilt is set at an offence; poison is what the server gets instead.
	spoilt bool
	poison []byte
	// open says that what follows is no HTTP/1 any more.
	open atomic.Bool
}

type framingState int

const (
	inHead framingState = iota
	inBody
	inChunkSize
	inChunk
	afterChunk
	inTrailer
)

const (
	// maxHead bounds one line of a head; the server bounds all of it.
	maxHead = 128 << 10
	// maxChunkLine bounds the line with the size of a chunk.
	maxChunkLine = 512
)

// poisonText spoils a request line, a header line, a value, and the size of a chunk alike.
const poisonText = "\x00\r\n\r\n"

func newFraming() *framing {
	f := new(framing)
	f.begin()
	return f
}

// leftover copies what is left of the poison; spoilt says whether the stream is.
func (f *framing) leftover(p []byte) (n int, spoilt bool) {
	if !f.spoilt {
		return 0, false
	}
	if len(f.poison) == 0 {
		f.poison = []byte(poisonText)
	}
	n = copy(p, f.poison)
	f.poison = f.poison[n:]
	return n, true
}

// check looks at bytes that came in and returns how many of them are good.
func (f *framing) check(p []byte) int {
	if f.spoilt {
		return 0
	}
	for i := 0; i < len(p); {
		if f.open.Load() {
			return len(p)
		}
		if f.state == inBody || f.state == inChunk {
			n := min(int64(len(p)-i), f.left)
			i += int(n)
			f.left -= n
			if f.left == 0 {
				if f.state == inChunk {
					f.state = afterChunk
				} else {
					f.begin()
				}
			}
			continue
		}
		end := bytes.IndexByte(p[i:], '\n')
		part := p[i:]
		if end >= 0 {
			part = p[i : i+end+1]
		}
		if !f.add(part) {
			f.spoilt = true
			f.poison = []byte(poisonText)
			f.line = nil
			return i
		}
		i += len(part)
	}
	return len(p)
}

// begin waits for the next request.
func (f *framing) begin() {
	f.state, f.first, f.old, f.hasLength, f.chunked, f.left = inHead, true, false, false, false, 0
	if cap(f.line) > 4096 {
		f.line = nil
	}
}

// add takes a line or a part of one; false if it is an offence.
func (f *framing) add(part []byte) bool {
	limit := maxHead
	if f.state == inChunkSize || f.state == afterChunk {
		limit = maxChunkLine
	}
	if len(f.line)+len(part) > limit {
		return false
	}
	f.line = append(f.line, part...)
	if part[len(part)-1] != '\n' {
		return true
	}
	line, ok := bytes.CutSuffix(f.line, []byte("\r\n"))
	// A CR within a line is an end of it for some.
	if !ok || bytes.ContainsAny(line, "\r\x00") {
		return false
	}
	f.line = f.line[:0]
	return f.whole(line)
}

// whole takes a line without its end.
func (f *framing) whole(line []byte) bool {
	switch f.state {
	case inChunkSize:
		return f.chunkSize(line)
	case afterChunk:
		f.state = inChunkSize
		return len(line) == 0
	case inTrailer:
		if len(line) == 0 {
			f.begin()
			return true
		}
		_, ok := field(line)
		return ok
	}
	if f.first {
		f.first = false
		f.old = !bytes.HasSuffix(line, []byte(" HTTP/1.1"))
		return len(line) > 0
	}
	if len(line) > 0 {
		return f.header(line)
	}
	switch {
	case f.chunked:
		f.state = inChunkSize
	case f.left > 0:
		f.state = inBody
	default:
		f.begin()
	}
	return true
}

// header takes a line of a head.
func (f *framing) header(line []byte) bool {
	name, ok := field(line)
	if !ok {
		return false
	}
	value := strings.Trim(string(line[len(name)+1:]), " \t")
	switch plain(name) {
	case "content-length":
		if f.hasLength || f.chunked || len(value) == 0 || len(value) > 18 || name[7] != '-' {
			return false
		}
		f.hasLength = true
		for _, d := range []byte(value) {
			if d < '0' || d > '9' {
				return false
			}
			f.left = f.left*10 + int64(d-'0')
		}
	case "transfer-encoding":
		if f.hasLength || f.chunked || f.old || name[8] != '-' || !strings.EqualFold(value, "chunked") {
			return false
		}
		f.chunked = true
	}
	return true
}

// field returns the name of a header line.
func field(line []byte) (name string, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 || bytes.ContainsAny(line[:i], " \t") {
		return "", false
	}
	return string(line[:i]), true
}

// chunkSize takes the line before a chunk.
func (f *framing) chunkSize(line []byte) bool {
	digits, _, _ := bytes.Cut(line, []byte(";"))
	digits = bytes.TrimRight(digits, " \t")
	if len(digits) == 0 || len(digits) > 15 {
		return false
	}
	f.left = 0
	for _, d := range digits {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		default:
			return false
		}
		f.left = f.left<<4 | int64(d)
	}
	f.state = inChunk
	if f.left == 0 {
		f.state = inTrailer
	}
	return true
}

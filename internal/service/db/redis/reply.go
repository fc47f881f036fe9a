package redis

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"

	"teleport/internal/fault"
)

const (
	// maxReply bounds an answer that is read as a whole, which are those to logins.
	maxReply = 64 << 10
	// maxDepth bounds how deep arrays are in arrays.
	maxDepth = 64
	// maxErrorText is how much of an error is recorded.
	maxErrorText = 1 << 10
)

// readReply reads one answer as a whole.
func readReply(r *bufio.Reader) ([]byte, error) {
	var all []byte
	scan := scanner{}
	whole := false
	scan.done = func(reply) { whole = true }
	for !whole {
		b, err := r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if all = append(all, b); len(all) > maxReply {
			return nil, fault.Invalid("an answer of more than %d bytes", maxReply)
		}
		if scan.feed(all[len(all)-1:]); scan.broken {
			return nil, fault.Invalid("the answer is no RESP")
		}
	}
	return all, nil
}

// reply is an answer that is over.
type reply struct {
	// push says that nobody asked for it (RESP3).
	push bool
	// err is the text of an error, or empty.
	err string
}

// scanner finds where answers end in a stream of them.
type scanner struct {
	done func(reply)
	// broken says that the stream cannot be followed any more.
	broken bool

	// line is the beginning of a line that is not whole yet.
	line []byte
	// skip is how much of a bulk string is still to come, with its end.
	skip int64
	// levels are the arrays that are not whole, the outermost first.
	levels []level
	cur    reply
	// text collects a bulk error.
	text bool
}

// level is an array, a map or an attribute.
type level struct {
	left int64
	// extra is an attribute: something said about the answer that follows.
	extra bool
}

// feed takes what comes next.
func (s *scanner) feed(p []byte) {
	for len(p) > 0 && !s.broken {
		if s.skip > 0 {
			n := min(int64(len(p)), s.skip)
			if s.text && len(s.cur.err) < maxErrorText {
				s.cur.err += string(p[:min(n, int64(maxErrorText-len(s.cur.err)))])
			}
			p = p[n:]
			if s.skip -= n; s.skip == 0 {
				s.text = false
				s.finish()
			}
			continue
		}
		p = s.takeLine(p)
	}
}

// takeLine takes a line, or the part of it that is there. Of a long one the beginning is
// kept, which is all that matters of a simple string or an error.
func (s *scanner) takeLine(p []byte) []byte {
	part, rest, whole := bytes.Cut(p, []byte{'\n'})
	s.line = append(s.line, part[:min(len(part), maxErrorText-len(s.line))]...)
	if whole {
		s.head(s.line)
		s.line = s.line[:0]
	}
	return rest
}

// head takes the first line of something.
func (s *scanner) head(line []byte) {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	if len(line) == 0 {
		s.broken = true
		return
	}
	top := len(s.levels) == 0
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':', '_', '#', ',', '(':
		s.finish()
	case '-':
		if top {
			s.cur.err = string(rest[:min(len(rest), maxErrorText)])
		}
		s.finish()
	case '$', '=', '!':
		n, err := strconv.ParseInt(string(rest), 10, 64)
		switch {
		case err != nil || n < -1:
			s.broken = true
		case n == -1:
			s.finish()
		default:
			s.skip, s.text = n+2, kind == '!' && top
		}
	case '*', '~', '>', '%', '|':
		n, err := strconv.ParseInt(string(rest), 10, 64)
		if err != nil || n < -1 || n > 1<<40 || len(s.levels) == maxDepth {
			s.broken = true
			return
		}
		if kind == '%' || kind == '|' {
			n *= 2
		}
		if kind == '>' && top {
			s.cur.push = true
		}
		if n > 0 {
			s.levels = append(s.levels, level{n, kind == '|'})
		} else if kind != '|' {
			s.finish()
		}
	default:
		s.broken = true
	}
}

// finish ends something that may have been the last of what it is in.
func (s *scanner) finish() {
	for len(s.levels) > 0 {
		l := &s.levels[len(s.levels)-1]
		if l.left--; l.left > 0 {
			return
		}
		extra := l.extra
		s.levels = s.levels[:len(s.levels)-1]
		if extra {
			return
		}
	}
	r := s.cur
	s.cur = reply{}
	s.done(r)
}

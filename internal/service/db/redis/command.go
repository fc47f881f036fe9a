package redis

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"

	"teleport/internal/fault"
)

// Limits of what a client may send; those of the server, or less.
const (
	maxArguments = 1 << 20
	maxBulk      = 512 << 20
	maxLine      = 64 << 10
	// maxName bounds the name of a command, maxWhole one that is read as a whole.
	maxName  = 256
	maxWhole = 64 << 10
	// maxKept is how much of a command is kept for the record.
	maxKept = 4 << 10
)

// reader reads commands.
type reader struct {
	r *bufio.Reader
	// cur is the command whose rest has not been read.
	cur *command
}

func newReader(r io.Reader) *reader { return &reader{r: bufio.NewReaderSize(r, bufferSize)} }

// idle reports whether everything that has come was read.
func (r *reader) idle() bool { return r.r.Buffered() == 0 }

// rest is what has come and was not read, for the record.
func (r *reader) rest() []byte {
	b, _ := r.r.Peek(min(r.r.Buffered(), maxKept))
	return bytes.Clone(b)
}

// command is one command, of which the name has been read.
type command struct {
	r *reader
	// args are those read so far, as far as they are kept; the first is the name.
	args [][]byte
	// count is how many there are, and left how many are still to be read.
	count, left int
	// cut says that not everything was kept.
	cut bool
}

// next reads the name of the next command. What was not read of the one before is
// skipped by no one: it must have been written.
func (r *reader) next() (*command, error) {
	if r.cur != nil && r.cur.left > 0 {
		return nil, errors.New("the command before was not written")
	}
	for {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			continue
		}
		if line[0] != '*' {
			cmd, err := r.inline(line)
			if cmd == nil && err == nil {
				continue
			}
			return cmd, err
		}
		count, err := number(line[1:], maxArguments)
		if err != nil {
			return nil, err
		}
		if count <= 0 {
			continue
		}
		cmd := &command{r: r, count: count, left: count}
		r.cur = cmd
		name, err := cmd.argument(maxName)
		if err != nil {
			return nil, err
		}
		cmd.args = append(cmd.args, name)
		return cmd, nil
	}
}

// line reads a line without its end.
func (r *reader) line() ([]byte, error) {
	var long []byte
	for {
		part, err := r.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if err == nil && long == nil {
			return bytes.TrimSuffix(part[:len(part)-1], []byte("\r")), nil
		}
		if long = append(long, part...); len(long) > maxLine {
			return nil, fault.Invalid("a line of more than %d bytes", maxLine)
		}
		if err == nil {
			return bytes.TrimSuffix(long[:len(long)-1], []byte("\r")), nil
		}
	}
}

func number(b []byte, limit int) (int, error) {
	n, err := strconv.Atoi(string(b))
	if err != nil || n > limit || n < -1 || len(b) > 0 && b[0] == '+' {
		return 0, fault.Invalid("%q is no length that is allowed", clip(b))
	}
	return n, nil
}

func clip(b []byte) []byte { return b[:min(len(b), 32)] }

// size reads the head of a bulk string.
func (r *reader) size() (int, error) {
	line, err := r.line()
	if err != nil {
		return 0, err
	}
	if len(line) == 0 || line[0] != '$' {
		return 0, fault.Invalid("expected a bulk string, found %q", clip(line))
	}
	n, err := number(line[1:], maxBulk)
	if err == nil && n < 0 {
		err = fault.Invalid("a bulk string of a negative length")
	}
	return n, err
}

// argument reads a whole argument of at most limit bytes.
func (c *command) argument(limit int) ([]byte, error) {
	n, err := c.r.size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fault.Invalid("an argument of %d bytes where at most %d are expected", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r.r, b); err != nil {
		return nil, err
	}
	c.left--
	return b, c.r.end()
}

// end reads what follows a bulk string.
func (r *reader) end() error {
	var crlf [2]byte
	if _, err := io.ReadFull(r.r, crlf[:]); err != nil {
		return err
	}
	if crlf != [2]byte{'\r', '\n'} {
		return fault.Invalid("a bulk string that is longer than it said")
	}
	return nil
}

// inline reads a command that is one line of words, as people type it. Words may be in
// quotes.
func (r *reader) inline(line []byte) (*command, error) {
	words, err := split(line)
	if err != nil || len(words) == 0 {
		return nil, err
	}
	cmd := &command{r: r, args: words, count: len(words)}
	r.cur = cmd
	return cmd, nil
}

// split splits a line as the server does (sdssplitargs).
func split(line []byte) ([][]byte, error) {
	var words [][]byte
	unbalanced := fault.Invalid("unbalanced quotes in request")
	for {
		line = bytes.TrimLeft(line, " \t\r\n\v\f\x00")
		if len(line) == 0 {
			return words, nil
		}
		var word []byte
		var quote byte
	word:
		for {
			switch {
			case len(line) == 0 && quote != 0:
				return nil, unbalanced
			case len(line) == 0:
				break word
			case quote == '"' && line[0] == '\\' && len(line) >= 4 && line[1] == 'x' && isHex(line[2]) && isHex(line[3]):
				b, _ := strconv.ParseUint(string(line[2:4]), 16, 8)
				word, line = append(word, byte(b)), line[4:]
			case quote == '"' && line[0] == '\\' && len(line) >= 2:
				word, line = append(word, unescape(line[1])), line[2:]
			case quote == '\'' && line[0] == '\\' && len(line) >= 2 && line[1] == '\'':
				word, line = append(word, '\''), line[2:]
			case quote != 0 && line[0] == quote:
				line = line[1:]
				if len(line) > 0 && !isSpace(line[0]) {
					return nil, unbalanced
				}
				break word
			case quote != 0:
				word, line = append(word, line[0]), line[1:]
			case isSpace(line[0]):
				break word
			case line[0] == '"' || line[0] == '\'':
				quote, line = line[0], line[1:]
			default:
				word, line = append(word, line[0]), line[1:]
			}
		}
		if word == nil {
			word = []byte{}
		}
		words = append(words, word)
	}
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func isSpace(c byte) bool { return strings.IndexByte(" \t\r\n\v\f\x00", c) >= 0 }

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}

// is reports whether the command has the name.
func (c *command) is(name string) bool {
	return len(c.args[0]) == len(name) && strings.EqualFold(string(c.args[0]), name)
}

// authenticates reports whether the command may log somebody in.
func (c *command) authenticates() bool { return c.is("AUTH") || c.is("HELLO") }

// whole reads the rest of a short command.
func (c *command) whole() error {
	room := maxWhole
	for c.left > 0 {
		arg, err := c.argument(room)
		if err != nil {
			return err
		}
		room -= len(arg)
		if len(c.args) >= maxWholeArguments {
			return fault.Invalid("%s with more than %d arguments", clip(c.args[0]), maxWholeArguments)
		}
		c.args = append(c.args, arg)
	}
	if i := c.auth(); c.is("HELLO") && i > 0 && c.authAfter(i+2) > 0 {
		// The server would believe the last one.
		return fault.Invalid("HELLO with more than one AUTH")
	}
	return nil
}

// maxWholeArguments bounds the arguments of AUTH and HELLO.
const maxWholeArguments = 16

// user returns who a whole command logs in.
func (c *command) user() (string, bool) {
	switch {
	case c.is("AUTH") && len(c.args) == 2:
		return defaultUser, true
	case c.is("AUTH") && len(c.args) > 2:
		return string(c.args[1]), true
	case c.is("HELLO"):
		if i := c.auth(); i > 0 && i+1 < len(c.args) {
			return string(c.args[i+1]), true
		}
	}
	return "", false
}

// auth is where AUTH stands in a HELLO, or 0: HELLO version [AUTH user password] [SETNAME
// name].
func (c *command) auth() int { return c.authAfter(1) }

// authAfter is where the first AUTH stands behind a place, or 0.
func (c *command) authAfter(at int) int {
	for i := at + 1; i < len(c.args); i++ {
		switch {
		case strings.EqualFold(string(c.args[i]), "AUTH"):
			return i
		case strings.EqualFold(string(c.args[i]), "SETNAME"):
			i++
		}
	}
	return 0
}

// dropAuth takes AUTH out of a HELLO.
func (c *command) dropAuth() {
	if i := c.auth(); i > 0 {
		c.args = append(c.args[:i:i], c.args[min(i+3, len(c.args)):]...)
		c.count = len(c.args)
	}
}

// write writes the command; what was not read of it yet goes through in pieces.
func (c *command) write(w *bufio.Writer) error {
	if c.left == 0 {
		c.count = len(c.args)
	}
	if err := writeSize(w, '*', c.count); err != nil {
		return err
	}
	for _, arg := range c.args {
		if err := writeBulk(w, arg); err != nil {
			return err
		}
	}
	kept := 0
	for ; c.left > 0; c.left-- {
		n, err := c.r.size()
		if err != nil {
			return err
		}
		if err := writeSize(w, '$', n); err != nil {
			return err
		}
		keep := min(n, maxKept-kept)
		if keep > 0 || n == 0 && kept < maxKept {
			arg := make([]byte, keep)
			if _, err := io.ReadFull(c.r.r, arg); err != nil {
				return err
			}
			if _, err := w.Write(arg); err != nil {
				return err
			}
			c.args, kept = append(c.args, arg), kept+keep+1
		}
		c.cut = c.cut || keep < n
		if _, err := io.CopyN(w, c.r.r, int64(n-keep)); err != nil {
			return err
		}
		if err := c.r.end(); err != nil {
			return err
		}
		if _, err := w.WriteString("\r\n"); err != nil {
			return err
		}
	}
	return nil
}

func writeSize(w *bufio.Writer, kind byte, n int) error {
	_ = w.WriteByte(kind)
	_, _ = w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(n), 10))
	_, err := w.WriteString("\r\n")
	return err
}

func writeBulk(w *bufio.Writer, b []byte) error {
	if err := writeSize(w, '$', len(b)); err != nil {
		return err
	}
	_, _ = w.Write(b)
	_, err := w.WriteString("\r\n")
	return err
}

func writeCommand(w *bufio.Writer, args ...string) error {
	if err := writeSize(w, '*', len(args)); err != nil {
		return err
	}
	for _, a := range args {
		if err := writeBulk(w, []byte(a)); err != nil {
			return err
		}
	}
	return nil
}

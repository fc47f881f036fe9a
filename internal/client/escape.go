package client

import "io"

// escapes reads a terminal and acts on OpenSSH's two most used escapes, at the
// start of a line: ~. calls hangUp, and ~~ is one tilde. Other text passes as it is.
type escapes struct {
	in     io.Reader
	hangUp func()

	begun bool // a line has begun: the next byte is not at its start
	tilde bool // a tilde at the start of a line is held back
	ready []byte
}

// Read returns what goes to the other side.
func (e *escapes) Read(p []byte) (int, error) {
	var buf [4096]byte
	for len(e.ready) == 0 {
		n, err := e.in.Read(buf[:])
		for _, b := range buf[:n] {
			e.take(b)
		}
		if err != nil && len(e.ready) == 0 {
			return 0, err
		}
	}
	n := copy(p, e.ready)
	e.ready = e.ready[n:]
	return n, nil
}

func (e *escapes) take(b byte) {
	switch {
	case e.tilde && b == '.':
		e.tilde, e.begun = false, true
		e.hangUp()
		return
	case e.tilde && b == '~':
		e.tilde = false
	case e.tilde:
		e.tilde = false
		e.ready = append(e.ready, '~')
	case !e.begun && b == '~':
		e.tilde = true
		return
	}
	e.begun = b != '\r' && b != '\n'
	e.ready = append(e.ready, b)
}

package sshd

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipeEnds are standard input, output and error of a process without a terminal.
type pipeEnds struct {
	child, parent [3]*os.File
}

func (e *pipeEnds) open() error {
	for i := range e.child {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("open pipe: %w", err)
		}
		ours, theirs := fds[0], fds[1]
		if i == 0 {
			ours, theirs = fds[1], fds[0]
		}
		// Only our end: programs do not expect theirs to be non-blocking.
		err := unix.SetNonblock(ours, true)
		e.parent[i] = os.NewFile(uintptr(ours), "pipe")
		e.child[i] = os.NewFile(uintptr(theirs), "pipe")
		if err != nil {
			return fmt.Errorf("set pipe to non-blocking: %w", err)
		}
	}
	return nil
}

func (e *pipeEnds) closeChild() {
	for _, f := range e.child {
		if f != nil {
			_ = f.Close()
		}
	}
}

// close closes everything; what is closed already stays so.
func (e *pipeEnds) close() {
	e.closeChild()
	for _, f := range e.parent {
		if f != nil {
			_ = f.Close()
		}
	}
}

const (
	minCopyBuffer = 2 << 10
	maxCopyBuffer = 64 << 10
)

// copyGrowing copies until the end or an error, with a buffer that is small as long as
// little is copied at a time: an idle session costs little memory. before, if not
// nil, is called before each read.
func copyGrowing(dst io.Writer, src io.Reader, before func()) {
	buf := make([]byte, minCopyBuffer)
	for {
		if before != nil {
			before()
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
		if n == len(buf) && n < maxCopyBuffer {
			buf = make([]byte, 4*n)
		}
	}
}

package sshd

// A session that several people take part in: the caller stands between the terminal
// and its session (Command.Between), types into the terminal for others, and decides
// which size it has.

// Write types into the terminal. It waits until the processes there take it, or fails
// when the terminal is closed.
func (t *Terminal) Write(p []byte) (int, error) { return t.master.Write(p) }

// Go runs f, which the end of the session waits for: f has to end when reading from,
// or writing to, the closed session fails. It is for functions that Config.Session
// calls.
func (s *Session) Go(f func()) { s.inputs.Go(f) }

// Fit has the size of the terminal decided by f, which is given the size of the
// client's. It must not call the session.
func (s *Session) Fit(f func(Size) Size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fit = f
}

// Refit gives the terminal its size anew, because what Fit decides by has changed.
func (s *Session) Refit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty != nil && s.terminal != nil {
		_ = s.terminal.resize(s.fittedLocked())
	}
}

// Redraw makes programs that fill the screen draw it again: the terminal is a line
// shorter for a moment.
func (s *Session) Redraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil || s.terminal == nil {
		return
	}
	size := s.fittedLocked()
	shorter := size
	if shorter.Rows > 2 {
		shorter.Rows--
	}
	_ = s.terminal.resize(shorter)
	_ = s.terminal.resize(size)
}

// fittedLocked is the size that the terminal is to have.
func (s *Session) fittedLocked() Size {
	if s.fit == nil {
		return s.pty.Size
	}
	return s.fit(s.pty.Size)
}

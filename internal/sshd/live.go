package sshd

import (
	"io"
	"sync"
	"time"
)

// noticeGrace is how long a client has to take the text that says why its
// connection is closed.
const noticeGrace = time.Second

// live is what runs on a connection now.
type live struct {
	mu       sync.Mutex
	sessions map[*Session]struct{}
}

func (l *live) add(s *Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions == nil {
		l.sessions = map[*Session]struct{}{}
	}
	l.sessions[s] = struct{}{}
}

func (l *live) remove(s *Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, s)
}

func (l *live) list() []*Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*Session, 0, len(l.sessions))
	for s := range l.sessions {
		out = append(out, s)
	}
	return out
}

// Sessions returns the sessions that are open now.
func (c *Conn) Sessions() []*Session { return c.live.list() }

// Disconnect tells the user the reason on the error output of every session, and
// closes the connection: what runs on it is hung up. It returns when the connection
// is closed, which a client that does not read delays by a second at most.
func (c *Conn) Disconnect(reason string) {
	var told sync.WaitGroup
	for _, s := range c.Sessions() {
		told.Go(func() { s.tell("\r\n" + printable(reason) + "\r\n") })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		told.Wait()
	}()
	limit := time.NewTimer(noticeGrace)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	}
	_ = c.ssh.Close()
	<-done
}

// tell writes to the error output, unless the end of output was sent.
func (s *Session) tell(text string) {
	s.telling.Lock()
	defer s.telling.Unlock()
	if !s.silent {
		_, _ = io.WriteString(s.ch.Stderr(), text)
	}
}

// endOutput sends the end of output: nothing is told after it, or at the same time.
func (s *Session) endOutput() {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.silent = true
	_ = s.ch.CloseWrite()
}

// touch notes that the user did something.
func (c *Conn) touch() { c.active.Store(int64(time.Since(c.began))) }

// LastActive is when the user last did something: input, opening or closing
// something, and data in either direction of what is no terminal. What a program
// writes to a terminal is not the user's doing, nor are keepalives.
func (c *Conn) LastActive() time.Time { return c.began.Add(time.Duration(c.active.Load())) }

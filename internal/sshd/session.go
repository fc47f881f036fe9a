package sshd

import (
	"context"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// Kind is what a client asked a session for.
type Kind string

// Kinds of session.
const (
	KindShell     Kind = "shell"
	KindExec      Kind = "exec"
	KindSubsystem Kind = "subsystem"
)

// Exit says how a session ended.
type Exit struct {
	// Code is the exit status; it is not sent when Signal is set.
	Code int
	// Signal is the name, without SIG, of the signal that ended the process.
	Signal string
	// Core reports that the process left a core dump.
	Core bool
}

// Session is one session channel after the client said what it wants. Read reads
// the client's input, Write writes to its output and Stderr to its error output.
type Session struct {
	conn *Conn
	cfg  *Config
	id   string
	ch   ssh.Channel

	kind    Kind
	command string
	env     []string
	pty     *ptyRequest

	received, sent atomic.Int64

	// telling is held by who writes what is not the program's; silent is set with the end
	// of output.
	telling sync.Mutex
	silent  bool

	mu       sync.Mutex
	terminal *Terminal
	process  *process
	early    []unix.Signal
	resized  func(Size)
	fit      func(Size) Size

	// inputs are the copies from the client; they end with the channel.
	inputs sync.WaitGroup

	// Agent and display: what was opened for them, and what programs are told. Notes
	// are why they were refused.
	agent, x11 bool
	listeners  []net.Listener
	extraEnv   []string
	extras     sync.WaitGroup
	notes      []string
}

// ID is a random UUID.
func (s *Session) ID() string { return s.id }

// Conn is the connection of the session.
func (s *Session) Conn() *Conn { return s.conn }

// Kind is what the client asked for.
func (s *Session) Kind() Kind { return s.kind }

// Command is the command of an exec or the name of a subsystem.
func (s *Session) Command() string { return s.command }

// Env are the accepted variables, in the form NAME=value.
func (s *Session) Env() []string { return slices.Clone(s.env) }

// ForwardEnv are the variables that lead to the client's agent and display.
func (s *Session) ForwardEnv() []string { return slices.Clone(s.extraEnv) }

// Notes are texts for the user: why an agent or a display was refused.
func (s *Session) Notes() []string { return slices.Clone(s.notes) }

// Interactive reports whether the client asked for a terminal.
func (s *Session) Interactive() bool { return s.pty != nil }

// Term is the type of the client's terminal, or "".
func (s *Session) Term() string {
	if s.pty == nil {
		return ""
	}
	return s.pty.Term
}

// Size is the size of the client's terminal now.
func (s *Session) Size() Size {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil {
		return Size{}
	}
	return s.pty.Size
}

// OnResize has f called when the client's terminal gets another size.
func (s *Session) OnResize(f func(Size)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resized = f
}

// Traffic returns the bytes received from and sent to the client.
func (s *Session) Traffic() (received, sent int64) { return s.received.Load(), s.sent.Load() }

// Read reads the client's input; io.EOF when the client closed it.
func (s *Session) Read(p []byte) (int, error) {
	n, err := s.ch.Read(p)
	s.received.Add(int64(n))
	s.conn.touch()
	return n, err
}

// Write writes to the client's output.
func (s *Session) Write(p []byte) (int, error) {
	n, err := s.ch.Write(p)
	s.sent.Add(int64(n))
	if s.pty == nil {
		s.conn.touch()
	}
	return n, err
}

// Close closes the channel: nothing can be read or written any more.
func (s *Session) Close() error { return s.ch.Close() }

// Stderr returns the client's error output.
func (s *Session) Stderr() *Stderr { return &Stderr{s} }

// Stderr is the error output of a session.
type Stderr struct{ s *Session }

// Write writes to the client's error output.
func (e *Stderr) Write(p []byte) (int, error) {
	n, err := e.s.ch.Stderr().Write(p)
	e.s.sent.Add(int64(n))
	if e.s.pty == nil {
		e.s.conn.touch()
	}
	return n, err
}

// session serves one session channel until it is closed and its process is gone.
func (s *Server) session(ctx context.Context, c *Conn, nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	se := &Session{conn: c, cfg: &s.cfg, id: uuid.NewString(), ch: ch}
	c.live.add(se)
	var run sync.WaitGroup
	defer func() {
		c.touch()
		c.live.remove(se)
		cancel()
		_ = ch.Close()
		run.Wait()
		se.closeListeners()
		se.extras.Wait()
		se.closeTerminal()
		se.inputs.Wait()
	}()
	started := false
	for r := range reqs {
		if ofUser(r.Type) {
			c.touch()
		}
		if ok := s.start(se, r, &started); ok {
			// The answer goes first: the client must not see output before it.
			_ = r.Reply(true, nil)
			run.Go(func() { s.run(ctx, se) })
			continue
		}
		if started {
			_ = r.Reply(se.live(r), nil)
			continue
		}
		_ = r.Reply(s.prepare(ctx, se, r), nil)
	}
}

// ofUser reports whether a request of a session is something that a user does. Programs
// send others as signs of life.
func ofUser(request string) bool {
	switch request {
	case "shell", "exec", "subsystem", "env", "pty-req", "window-change", "signal", "break", agentRequest, x11Request:
		return true
	}
	return false
}

// start reports whether r is a valid first shell, exec or subsystem request.
func (s *Server) start(se *Session, r *ssh.Request, started *bool) bool {
	if *started {
		return false
	}
	var err error
	switch r.Type {
	case "shell":
	case "exec":
		se.command, err = parseText(r.Payload, maxCommand)
	case "subsystem":
		se.command, err = parseText(r.Payload, maxName)
		if err == nil && !slices.ContainsFunc(s.cfg.Subsystems, func(name string) bool {
			return se.command == name || strings.HasSuffix(name, ":") && strings.HasPrefix(se.command, name)
		}) {
			return false
		}
	default:
		return false
	}
	if err != nil {
		return false
	}
	se.kind = Kind(r.Type)
	*started = true
	return true
}

// prepare handles what may come before the start and reports success.
func (s *Server) prepare(ctx context.Context, se *Session, r *ssh.Request) bool {
	switch r.Type {
	case "env":
		name, value, err := parseEnv(r.Payload)
		if err != nil || len(se.env) >= maxEnvs || s.cfg.AcceptEnv == nil || !s.cfg.AcceptEnv(name) {
			return false
		}
		se.env = append(se.env, name+"="+value)
		return true
	case "pty-req":
		req, err := parsePty(r.Payload)
		if err != nil || se.pty != nil || se.conn.login.NoTerminal {
			return false
		}
		se.pty = &req
		return true
	case "window-change":
		return se.live(r)
	case agentRequest:
		return s.agent(ctx, se)
	case x11Request:
		return s.display(ctx, se, r.Payload)
	}
	return false
}

// live handles what may come while something runs and reports success.
func (s *Session) live(r *ssh.Request) bool {
	switch r.Type {
	case "window-change":
		size, err := parseSize(r.Payload)
		if err != nil || !s.resize(size) {
			return false
		}
		s.mu.Lock()
		resized := s.resized
		s.mu.Unlock()
		if resized != nil {
			resized(size)
		}
		return true
	case "signal":
		sig, err := parseSignal(r.Payload)
		return err == nil && s.signal(sig)
	case "break":
		return s.sendBreak()
	}
	return false
}

func (s *Session) resize(size Size) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil {
		return false
	}
	s.pty.Size = size
	if s.terminal != nil {
		return s.terminal.resize(s.fittedLocked()) == nil
	}
	return true
}

// sendBreak passes a break (RFC 4335) on to the terminal.
func (s *Session) sendBreak() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.terminal != nil && s.terminal.sendBreak() == nil
}

// signal sends sig to the process; one that does not run yet gets it then.
func (s *Session) signal(sig unix.Signal) bool {
	s.mu.Lock()
	p := s.process
	if p == nil {
		defer s.mu.Unlock()
		if len(s.early) >= len(signals) {
			return false
		}
		s.early = append(s.early, sig)
		return true
	}
	s.mu.Unlock()
	return p.signal(sig) == nil
}

// run calls the session callback and tells the client how it ended: output, end
// of output, exit status, close, in this order.
func (s *Server) run(ctx context.Context, se *Session) {
	exit := Exit{Code: 255}
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.ErrorContext(ctx, "panic in ssh session", "panic", r, "stack", string(debug.Stack()))
			_ = se.conn.ssh.Close()
		}
		// The client sees the end when what was there for the session is gone.
		se.closeListeners()
		se.finish(exit)
	}()
	exit = s.cfg.Session(ctx, se)
}

func (s *Session) finish(exit Exit) {
	s.endOutput()
	if exit.Signal != "" {
		_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name     string
			Core     bool
			Message  string
			Language string
		}{exit.Signal, exit.Core, "", ""}))
	} else {
		_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(exit.Code)}))
	}
	_ = s.ch.Close()
}

func (s *Session) closeTerminal() {
	s.mu.Lock()
	t := s.terminal
	s.mu.Unlock()
	if t != nil {
		t.close()
	}
}

// Terminal opens the pseudo terminal that the client asked for, with its size and
// modes, or returns nil if it asked for none. The caller may give the slave's file
// to its user; Run uses and closes it.
func (s *Session) Terminal() (*Terminal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil || s.terminal != nil {
		return s.terminal, nil
	}
	t, err := openTerminal(s.pty)
	if err != nil {
		return nil, err
	}
	s.terminal = t
	return t, nil
}

// File is a terminal's slave side, for setting its owner.
func (t *Terminal) File() *os.File { return t.slave }

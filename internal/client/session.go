package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"teleport/internal/fault"
)

// Session is one command or shell on a node.
type Session struct {
	// Command runs under the user's shell; empty is a login shell.
	Command string
	// PTY asks for a terminal; stdin is put into raw mode if it is one.
	PTY bool
	// NoEscapes passes ~. at the start of a line on instead of ending the session.
	NoEscapes bool
	// Env are variables to set, in the form NAME=value; the node takes LANG and LC_*.
	Env []string
	// Agent asks for the agent that the Forwarder serves, Display for its display. Note
	// is told if the node refuses.
	Agent   bool
	Display *Display
	Note    func(string)
	// Term is the terminal type, $TERM.
	Term           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// patience takes the place of signalPatience if it is not 0.
	patience time.Duration
}

// exitSignalBase is added to the number of the signal that ended the command, as
// shells do.
const exitSignalBase = 128

// Run runs the session to its end and returns the exit code of the command.
// Window changes and signals of this process are passed on. Reading from Stdin may
// outlast Run: it cannot be interrupted.
func (s *Session) Run(ctx context.Context, client *ssh.Client) (int, error) {
	sess, err := client.NewSession()
	if err != nil {
		return 0, fault.Unreachable("open a session: %w", err)
	}
	defer func() { _ = sess.Close() }()
	sess.Stdout, sess.Stderr = s.Stdout, s.Stderr
	stdin, err := sess.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("open a session: %w", err)
	}
	s.extras(sess)
	restore, err := s.terminal(sess)
	if err != nil {
		return 0, err
	}
	defer restore()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, s.signals()...)
	defer signal.Stop(signals)
	if code, err := s.start(ctx, sess, signals); code != 0 || err != nil {
		return code, err
	}
	input, hungUp := s.input()
	go func() {
		_, _ = io.Copy(stdin, input)
		_ = stdin.Close()
	}()
	ended := make(chan error, 1)
	go func() { ended <- sess.Wait() }()
	interrupts := 0
	var patience <-chan time.Time
	var last unix.Signal
	for {
		select {
		case <-patience:
			return exitSignalBase + int(last), nil
		case err := <-ended:
			code, err := exitCode(err)
			return code, lost(client, err)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-hungUp:
			return exitSignalBase + int(unix.SIGHUP), nil
		case sig := <-signals:
			number, ok := sig.(unix.Signal)
			if !ok {
				continue
			}
			if number == unix.SIGWINCH {
				s.resize(sess)
				continue
			}
			if number == unix.SIGINT || number == unix.SIGTERM {
				interrupts++
			}
			if interrupts > 1 {
				return exitSignalBase + int(number), nil // the other side does not react
			}
			_ = sess.Signal(signalName(number))
			if patience == nil && (number == unix.SIGTERM || number == unix.SIGHUP) {
				// Whoever wants this process to end is not kept waiting by a node.
				last, patience = number, time.After(cmp.Or(s.patience, signalPatience))
			}
		}
	}
}

// signalPatience is how long the command has to end after a signal that asks for it.
const signalPatience = 10 * time.Second

// start asks the node to begin. A node that does not answer does not keep signals from
// ending this process: then the code is that of the signal.
func (s *Session) start(ctx context.Context, sess *ssh.Session, signals <-chan os.Signal) (code int, err error) {
	begun := make(chan error, 1)
	go func() {
		if s.Command == "" {
			begun <- sess.Shell()
		} else {
			begun <- sess.Start(s.Command)
		}
	}()
	for {
		select {
		case err := <-begun:
			if errors.Is(err, io.EOF) {
				return 0, fault.Unreachable("the connection ended before the command began")
			}
			if err != nil {
				return 0, fault.Denied("the node refused to run it: %w", err)
			}
			return 0, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case sig := <-signals:
			switch sig {
			case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
				number, _ := sig.(unix.Signal)
				return exitSignalBase + int(number), nil
			}
		}
	}
}

// extras asks for what may be refused.
func (s *Session) extras(sess *ssh.Session) {
	for _, v := range s.Env {
		name, value, _ := strings.Cut(v, "=")
		_, _ = sess.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{name, value}))
	}
	ask := func(what, request string, payload []byte) {
		if granted, err := sess.SendRequest(request, true, payload); err == nil && !granted && s.Note != nil {
			s.Note("the node refused to forward " + what + ": your roles, your certificate or the node do not allow it")
		}
	}
	if s.Agent {
		ask("the SSH agent", "auth-agent-req@openssh.com", nil)
	}
	if s.Display != nil {
		ask("X11", "x11-req", s.Display.request())
	}
}

// input returns what to read for the command. On a terminal that is ours, ~. at the
// start of a line ends the session: hungUp is closed.
func (s *Session) input() (in io.Reader, hungUp <-chan struct{}) {
	closed := make(chan struct{})
	if fd, ok := fileDescriptor(s.Stdin); !s.PTY || s.NoEscapes || !ok || !term.IsTerminal(fd) {
		return s.Stdin, closed
	}
	hangUp := sync.OnceFunc(func() { close(closed) })
	return &escapes{in: s.Stdin, hangUp: hangUp}, closed
}

// terminal asks for a PTY of the size of ours and puts ours into raw mode.
func (s *Session) terminal(sess *ssh.Session) (restore func(), err error) {
	restore = func() {}
	if !s.PTY {
		return restore, nil
	}
	width, height := s.size()
	kind := s.Term
	if kind == "" {
		kind = "xterm"
	}
	modes := ssh.TerminalModes{ssh.ECHO: 1, ssh.TTY_OP_ISPEED: 38400, ssh.TTY_OP_OSPEED: 38400}
	if err := sess.RequestPty(kind, height, width, modes); err != nil {
		return restore, fault.Denied("the node refused a terminal: %w", err)
	}
	fd, ok := fileDescriptor(s.Stdin)
	if !ok || !term.IsTerminal(fd) {
		return restore, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return restore, fault.Invalid("put the terminal into raw mode: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

// size returns columns and rows of our terminal, or 80 and 24.
func (s *Session) size() (width, height int) {
	for _, stream := range []any{s.Stdout, s.Stdin} {
		if fd, ok := fileDescriptor(stream); ok {
			if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 {
				return w, h
			}
		}
	}
	return 80, 24
}

func (s *Session) resize(sess *ssh.Session) {
	width, height := s.size()
	_ = sess.WindowChange(height, width)
}

// signals are those that are passed on. With a terminal in raw mode, Ctrl-C is a
// byte and no signal.
func (s *Session) signals() []os.Signal {
	out := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}
	if s.PTY {
		out = append(out, unix.SIGWINCH)
	}
	return out
}

// signalNames are the names of RFC 4254 section 6.10.
func signalNames() map[unix.Signal]ssh.Signal {
	return map[unix.Signal]ssh.Signal{
		unix.SIGABRT: ssh.SIGABRT, unix.SIGALRM: ssh.SIGALRM, unix.SIGFPE: ssh.SIGFPE, unix.SIGHUP: ssh.SIGHUP,
		unix.SIGILL: ssh.SIGILL, unix.SIGINT: ssh.SIGINT, unix.SIGKILL: ssh.SIGKILL, unix.SIGPIPE: ssh.SIGPIPE,
		unix.SIGQUIT: ssh.SIGQUIT, unix.SIGSEGV: ssh.SIGSEGV, unix.SIGTERM: ssh.SIGTERM, unix.SIGUSR1: ssh.SIGUSR1,
		unix.SIGUSR2: ssh.SIGUSR2,
	}
}

func signalName(number unix.Signal) ssh.Signal { return signalNames()[number] }

// exitCode turns how a session ended into the code to exit with.
func exitCode(err error) (int, error) {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Signal() != "":
		for number, name := range signalNames() {
			if string(name) == exit.Signal() {
				return exitSignalBase + int(number), nil
			}
		}
		return exitSignalBase, nil
	case errors.As(err, &exit):
		return exit.ExitStatus(), nil
	case errors.As(err, &missing):
		return 0, fault.Unreachable("the connection ended before the command did")
	}
	return 0, fault.Unreachable("the connection was lost: %w", err)
}

func fileDescriptor(stream any) (int, bool) {
	f, ok := stream.(interface{ Fd() uintptr })
	if !ok {
		return 0, false
	}
	return int(f.Fd()), true
}

// Relay copies between the node's connection and a ProxyCommand's stdin and
// stdout until the node is done, passing on the end of stdin.
func (n *NodeConn) Relay(stdin io.Reader, stdout io.Writer) error {
	go func() {
		if _, err := io.CopyBuffer(onlyWriter{n.Conn}, onlyReader{stdin}, make([]byte, relayBuffer)); err == nil {
			_ = n.CloseWrite()
		}
	}()
	if _, err := io.CopyBuffer(onlyWriter{stdout}, onlyReader{n.Conn}, make([]byte, relayBuffer)); err != nil {
		return fault.Unreachable("the connection to the node was lost: %w", err)
	}
	return nil
}

// relayBuffer is the size of the buffers of Relay.
const relayBuffer = 64 << 10

// onlyReader and onlyWriter keep io.Copy from choosing another way than the buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

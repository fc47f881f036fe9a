package client

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// Join is a place in a session of somebody else.
type Join struct {
	// HostID is the id of the node that the session runs on, Session its own.
	HostID, Session string
	// Mode is types.ModeObserver, ModePeer or ModeModerator.
	Mode string
	// Term is the terminal type, $TERM.
	Term           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// maxJoinError bounds what is shown of why a node refuses.
const maxJoinError = 4 << 10

// Join takes part in a session until it ends or is left. Stdin is put into raw mode if
// it is a terminal; then ~. at the start of a line leaves. Reading from Stdin may
// outlast Join: it cannot be interrupted.
func (c *Client) Join(ctx context.Context, j Join) error {
	joining := &Client{cfg: c.cfg, addrs: c.addrs, join: true}
	conn, err := joining.SSH(ctx, types.LoginJoin, j.HostID, 0)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ch, reqs, err := conn.OpenChannel("session", nil)
	if err != nil {
		return fault.Unreachable("open a session: %w", err)
	}
	exit := make(chan uint32, 1)
	go awaitExit(reqs, exit)
	s := &Session{PTY: true, Term: j.Term, Stdin: j.Stdin, Stdout: j.Stdout}
	restore, err := j.terminal(s, ch)
	if err != nil {
		return err
	}
	defer restore()
	ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"join:" + j.Mode + ":" + j.Session}))
	if err != nil {
		return fault.Unreachable("join the session: %w", err)
	}
	if !ok {
		return fault.Unsupported("the node does not know of sessions that can be joined: its version may be older")
	}
	input, left := s.input()
	go func() {
		_, _ = io.Copy(ch, input)
		_ = ch.CloseWrite()
	}()
	return j.attend(ctx, s, ch, exit, left)
}

// attend shows the session until it ends.
func (j Join) attend(ctx context.Context, s *Session, ch ssh.Channel, exit <-chan uint32, left <-chan struct{}) error {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	var refusal strings.Builder
	var shown sync.WaitGroup
	shown.Go(func() { _, _ = io.Copy(j.Stdout, ch) })
	shown.Go(func() { _, _ = io.Copy(&refusal, io.LimitReader(ch.Stderr(), maxJoinError)) })
	for {
		select {
		case code, ok := <-exit:
			shown.Wait()
			switch {
			case (!ok || code != 0) && refusal.Len() > 0:
				return fault.Denied("%s", firstLine(refusal.String()))
			case !ok:
				return fault.Unreachable("the connection was lost")
			case code != 0:
				return fault.Denied("the node ended it with code %d", code)
			}
			_, _ = io.WriteString(j.Stderr, strings.TrimLeft(refusal.String(), "\r\n"))
			return nil
		case <-left:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-resized:
			width, height := s.size()
			size := struct{ Columns, Rows, Width, Height uint32 }{uint32(width), uint32(height), 0, 0}
			_, _ = ch.SendRequest("window-change", false, ssh.Marshal(size))
		}
	}
}

// awaitExit passes the exit status on and closes exit when the channel is closed.
func awaitExit(reqs <-chan *ssh.Request, exit chan<- uint32) {
	defer close(exit)
	for r := range reqs {
		var m struct{ Code uint32 }
		if r.Type == "exit-status" && ssh.Unmarshal(r.Payload, &m) == nil {
			select {
			case exit <- m.Code:
			default:
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
}

// terminal says that there is one, if there is, and puts it into raw mode.
func (j Join) terminal(s *Session, ch ssh.Channel) (restore func(), err error) {
	fd, ok := fileDescriptor(j.Stdin)
	if !ok || !term.IsTerminal(fd) {
		s.PTY = false
		return func() {}, nil
	}
	kind := j.Term
	if kind == "" {
		kind = "xterm"
	}
	width, height := s.size()
	granted, err := ch.SendRequest("pty-req", true, ssh.Marshal(struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}{kind, uint32(width), uint32(height), 0, 0, ""}))
	if err != nil {
		return nil, fault.Unreachable("join the session: %w", err)
	}
	if !granted {
		return nil, fault.Denied("the node refused a terminal: your certificate does not permit one")
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

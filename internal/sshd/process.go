package sshd

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a process to run in a session.
type Command struct {
	// Path is the program; Args its arguments with the name it sees of itself first.
	Path string
	Args []string
	// Env is the whole environment.
	Env []string
	// Dir is the directory to start in; if the process cannot enter it, it starts in
	// / and the user is told.
	Dir string
	// Credential is whom to run as: groups, group and user are set in this order.
	// Nil keeps those of this process.
	Credential *syscall.Credential
	// Started is called with the process id before any byte flows; an error kills
	// the process. It may be nil.
	Started func(pid int) error
	// Start, if not nil, starts the process on the three files in our stead, and then
	// nothing above is used: who starts it sees to all of that.
	Start func(files []*os.File) (Leader, error)
	// Between, if not nil, stands between the terminal and the session: what is read
	// from it is typed, and what the terminal shows is written to it. Reading has to end
	// when reading from the session does.
	Between io.ReadWriter
}

// Run runs the command on the session: on its terminal if the client asked for
// one (see Terminal), otherwise on pipes. It returns when the process has ended
// and its output was delivered, or after killing it when ctx ends. A process that
// cannot be started is an error; the client has been sent nothing then, unless Start
// had something to say.
func (s *Session) Run(ctx context.Context, c Command) (Exit, error) {
	t, err := s.Terminal()
	if err != nil {
		return Exit{}, err
	}
	if t != nil {
		return s.runTerminal(ctx, c, t)
	}
	return s.runPipes(ctx, c)
}

func (s *Session) runTerminal(ctx context.Context, c Command, t *Terminal) (Exit, error) {
	files := []*os.File{t.slave, t.slave, t.slave}
	p, note, err := begin(c, files, t)
	t.closeSlave()
	if err != nil {
		return Exit{}, err
	}
	if err := s.adopt(p, c); err != nil {
		return Exit{}, err
	}
	var client io.ReadWriter = s
	if c.Between != nil {
		client = c.Between
	}
	if note != "" {
		_, _ = client.Write([]byte(note + "\r\n"))
	}
	s.inputs.Go(func() { copyGrowing(t.master, client, nil) })
	out := newOutput(t.master, client, terminalDrain)
	var outputs sync.WaitGroup
	outputs.Go(out.copy)
	exit, err := p.wait(ctx, s.cfg.KillAfter, func() {
		out.processEnded()
		outputs.Wait()
	})
	t.close()
	outputs.Wait()
	return exit, err
}

// terminalDrain is how long a terminal whose shell has ended is read from if a
// background process still holds it.
const terminalDrain = 200 * time.Millisecond

func (s *Session) runPipes(ctx context.Context, c Command) (Exit, error) {
	var ends pipeEnds
	defer ends.close()
	if err := ends.open(); err != nil {
		return Exit{}, err
	}
	p, note, err := begin(c, ends.child[:], nil)
	ends.closeChild()
	if err != nil {
		return Exit{}, err
	}
	if err := s.adopt(p, c); err != nil {
		return Exit{}, err
	}
	if note != "" {
		_, _ = s.Stderr().Write([]byte(note + "\n"))
	}
	s.inputs.Go(func() {
		copyGrowing(ends.parent[0], s, nil)
		_ = ends.parent[0].Close()
		// Nobody reads the input any more: keep the client's window open.
		copyGrowing(discard{}, s, nil)
	})
	stdout := newOutput(ends.parent[1], s, s.cfg.Drain)
	stderr := newOutput(ends.parent[2], s.Stderr(), s.cfg.Drain)
	var outputs sync.WaitGroup
	outputs.Go(stdout.copy)
	outputs.Go(stderr.copy)
	exit, err := p.wait(ctx, s.cfg.KillAfter, func() {
		stdout.processEnded()
		stderr.processEnded()
		outputs.Wait()
	})
	ends.close()
	outputs.Wait()
	return exit, err
}

// discard drops what is written to it.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// adopt makes p the session's process, once its starter finds it in order.
func (s *Session) adopt(p *process, c Command) error {
	if c.Started != nil && c.Start == nil {
		if err := c.Started(p.leader.ID()); err != nil {
			_ = p.signal(unix.SIGKILL)
			_, _ = p.leader.Release()
			return err
		}
	}
	s.mu.Lock()
	s.process = p
	early := s.early
	s.early = nil
	s.mu.Unlock()
	for _, sig := range early {
		_ = p.signal(sig)
	}
	return nil
}

// process is what runs in a session.
type process struct {
	leader   Leader
	terminal *Terminal
}

// begin starts the process of a session, on a terminal if t is not nil. The note tells
// the user about a directory that could not be entered.
func begin(c Command, files []*os.File, t *Terminal) (*process, string, error) {
	if c.Start != nil {
		l, err := c.Start(files)
		if err != nil {
			return nil, "", err
		}
		return &process{l, t}, "", nil
	}
	l, note, err := startChild(c, files, t != nil)
	if err != nil {
		return nil, "", err
	}
	return &process{l, t}, note, nil
}

// signal sends sig to the process group of the leader.
func (p *process) signal(sig unix.Signal) error { return p.leader.Signal(sig) }

// wait returns how the process ended. When it ended by itself, delivered is called
// to wait for the output. When ctx ends first, the process and what it started in
// its group get the hang-up signal, and are killed if they outlive killAfter.
func (p *process) wait(ctx context.Context, killAfter time.Duration, delivered func()) (Exit, error) {
	ended := p.leader.Ended()
	select {
	case <-ended:
	case <-ctx.Done():
		p.hangUp(ended, killAfter)
		return p.leader.Release()
	}
	outDone := make(chan struct{})
	go func() {
		defer close(outDone)
		delivered()
	}()
	select {
	case <-outDone:
	case <-ctx.Done():
	}
	return p.leader.Release()
}

// output copies what a process writes to the client.
type output struct {
	from  *os.File
	to    writer
	drain time.Duration
	ended atomic.Bool
}

type writer interface{ Write([]byte) (int, error) }

func newOutput(from *os.File, to writer, drain time.Duration) *output {
	return &output{from: from, to: to, drain: drain}
}

// copy returns when every writer closed its end, the client is gone, or the
// process has ended and nothing came for the drain time.
func (o *output) copy() {
	copyGrowing(o.to, o.from, func() {
		if o.ended.Load() {
			_ = o.from.SetReadDeadline(time.Now().Add(o.drain))
		}
	})
}

// processEnded starts the drain time.
func (o *output) processEnded() {
	o.ended.Store(true)
	_ = o.from.SetReadDeadline(time.Now().Add(o.drain))
}

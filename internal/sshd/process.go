package sshd

import (
	"context"
	"errors"
	"fmt"
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
	// Between, if not nil, stands between the terminal and the session: what is read
	// from it is typed, and what the terminal shows is written to it. Reading has to end
	// when reading from the session does.
	Between io.ReadWriter
}

// Run runs the command on the session: on its terminal if the client asked for
// one (see Terminal), otherwise on pipes. It returns when the process has ended
// and its output was delivered, or after killing it when ctx ends. A process that
// cannot be started is an error; the client has been sent nothing then.
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
	p, note, err := startProcess(c, files, true)
	t.closeSlave()
	if err != nil {
		return Exit{}, err
	}
	p.terminal = t
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
	exit := p.wait(ctx, s.cfg.KillAfter, func() {
		out.processEnded()
		outputs.Wait()
	})
	t.close()
	outputs.Wait()
	return exit, nil
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
	p, note, err := startProcess(c, ends.child[:], false)
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
	exit := p.wait(ctx, s.cfg.KillAfter, func() {
		stdout.processEnded()
		stderr.processEnded()
		outputs.Wait()
	})
	ends.close()
	outputs.Wait()
	return exit, nil
}

// discard drops what is written to it.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// adopt makes p the session's process, once its starter finds it in order.
func (s *Session) adopt(p *process, c Command) error {
	if c.Started != nil {
		if err := c.Started(p.pid); err != nil {
			_ = p.signal(unix.SIGKILL)
			p.reap()
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

// process is a running session leader.
type process struct {
	pid      int
	proc     *os.Process
	exited   *os.File // pidfd, or nil
	terminal *Terminal

	mu sync.Mutex
	// reaped is set before the process id may belong to somebody else.
	reaped bool
	state  *os.ProcessState
	err    error
}

// startProcess starts c as the leader of a new session. The note tells the user
// about a directory that could not be entered.
func startProcess(c Command, files []*os.File, terminal bool) (*process, string, error) {
	pidfd := -1
	attr := &os.ProcAttr{Dir: c.Dir, Env: c.Env, Files: files, Sys: &syscall.SysProcAttr{
		Credential: c.Credential, Setsid: true, Setctty: terminal, Ctty: 0, PidFD: &pidfd,
	}}
	note := ""
	proc, err := os.StartProcess(c.Path, c.Args, attr)
	if err != nil && c.Dir != "/" {
		attr.Dir = "/"
		if again, errAgain := os.StartProcess(c.Path, c.Args, attr); errAgain == nil {
			note = fmt.Sprintf("Could not change directory to %s: starting in /", printable(c.Dir))
			proc, err = again, nil
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("start %q: %w", c.Path, err)
	}
	p := &process{pid: proc.Pid, proc: proc}
	if pidfd >= 0 && unix.SetNonblock(pidfd, true) == nil {
		p.exited = os.NewFile(uintptr(pidfd), "pidfd")
	}
	return p, note, nil
}

// signal sends sig to the process group of the leader.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return unix.Kill(-p.pid, sig)
}

// wait returns how the process ended. When it ended by itself, delivered is called
// to wait for the output. When ctx ends first, the process and what it started in
// its group get the hang-up signal, and are killed if they outlive killAfter.
func (p *process) wait(ctx context.Context, killAfter time.Duration, delivered func()) Exit {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.awaitExit()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		p.hangUp(ended, killAfter)
		p.reap()
		return p.exit()
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
	p.reap()
	return p.exit()
}

// awaitExit returns when the process has ended. It does not reap it, so that its
// id stays its own. With a pidfd no thread is kept waiting.
func (p *process) awaitExit() {
	if p.exited != nil {
		rc, err := p.exited.SyscallConn()
		if err == nil {
			err = rc.Read(func(fd uintptr) bool {
				polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(polled, 0)
				return err == nil && n > 0
			})
		}
		if err == nil {
			return
		}
	}
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// reap collects the process.
func (p *process) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return
	}
	p.reaped = true
	p.state, p.err = p.proc.Wait()
	if p.exited != nil {
		_ = p.exited.Close()
	}
}

func (p *process) exit() Exit {
	if p.err != nil || p.state == nil {
		return Exit{Code: 255}
	}
	ws, ok := p.state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return Exit{Code: p.state.ExitCode()}
	}
	return Exit{Code: 128 + int(ws.Signal()), Signal: signalName(ws.Signal()), Core: ws.CoreDump()}
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

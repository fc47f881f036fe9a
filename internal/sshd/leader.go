package sshd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Leader is the process that leads a session. Who starts it in our stead (Command.Start)
// has one of their own.
type Leader interface {
	// ID is its process id, or 0 as long as there is none. Nobody else has the id before
	// Release.
	ID() int
	// Signal sends sig to its process group, also after it has ended.
	Signal(sig unix.Signal) error
	// Ended is closed when it has ended, or will not begin. It is called once.
	Ended() <-chan struct{}
	// Abandon is called when its client is gone: what has not begun does not begin.
	Abandon()
	// Release is called once, after Ended, and returns how it ended, or why it did not
	// begin.
	Release() (Exit, error)
}

// child is a process that we started ourselves.
type child struct {
	pid    int
	proc   *os.Process
	exited *os.File // pidfd, or nil

	mu sync.Mutex
	// reaped is set before the process id may belong to somebody else.
	reaped bool
}

// startChild starts c as the leader of a new session. The note tells the user about a
// directory that could not be entered.
func startChild(c Command, files []*os.File, terminal bool) (*child, string, error) {
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
	p := &child{pid: proc.Pid, proc: proc}
	if pidfd >= 0 && unix.SetNonblock(pidfd, true) == nil {
		p.exited = os.NewFile(uintptr(pidfd), "pidfd")
	}
	return p, note, nil
}

// ID is the process id.
func (p *child) ID() int { return p.pid }

// Signal sends sig to the process group.
func (p *child) Signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return unix.Kill(-p.pid, sig)
}

// Ended is closed when the process has ended.
func (p *child) Ended() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.awaitExit()
	}()
	return ended
}

// awaitExit returns when the process has ended. It does not reap it, so that its
// id stays its own. With a pidfd no thread is kept waiting.
func (p *child) awaitExit() {
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

// Abandon does nothing: the process runs.
func (p *child) Abandon() {}

// Release collects the process.
func (p *child) Release() (Exit, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	state, err := p.proc.Wait()
	if p.exited != nil {
		_ = p.exited.Close()
	}
	if err != nil || state == nil {
		return Exit{Code: 255}, nil //nolint:nilerr // it did run: that is all that is known
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok {
		return ExitOf(ws), nil
	}
	return Exit{Code: state.ExitCode()}, nil
}

// ExitOf is how a process with the status ended.
func ExitOf(ws syscall.WaitStatus) Exit {
	if !ws.Signaled() {
		return Exit{Code: ws.ExitStatus()}
	}
	return Exit{Code: 128 + int(ws.Signal()), Signal: signalName(ws.Signal()), Core: ws.CoreDump()}
}

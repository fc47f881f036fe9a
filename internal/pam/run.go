package pam

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

const (
	// decideTimeout bounds everything until the program runs: people type passwords.
	decideTimeout = 2 * time.Minute
	// closeTimeout is how long the end of a session waits for modules, leftTimeout how long
	// where nobody waits for it any more; they go on behind.
	closeTimeout = 10 * time.Second
	leftTimeout  = time.Second
	// killAfter is how long a program may live on whose teleport-pam died.
	killAfter = 3 * time.Second
	// maxReport bounds a message of teleport-pam, maxEarly the signals before the program.
	maxReport = 1 << 10
	maxEarly  = 16
)

// errDied: there was no last word.
var errDied = fault.Unreachable("%s, which held the PAM session, has ended: its own lines, or those of the system's log, say why", Program)

// Run is a PAM session, with its program if it has one.
type Run struct {
	request *Request
	proc    *os.Process
	control *os.File
	timer   *time.Timer
	// decided is closed when PAM allows or refuses, ended when nothing runs in the session
	// any more, gone when teleport-pam has ended.
	decided, ended, gone chan struct{}
	decide, finish       sync.Once

	mu    sync.Mutex
	pid   int
	pidfd int
	// early are the signals for a program that does not run yet.
	early []unix.Signal
	// left says that the client has, abandoned that the program is not to run any more.
	left, abandoned bool
	// verdict is why PAM does not let the user in; status and err are how it all ended.
	verdict error
	status  syscall.WaitStatus
	err     error
}

// Start has the program run in a session, on the three files.
func (h *Helper) Start(r Request, files []*os.File) (*Run, error) { return h.start(r, modeRun, files) }

// Hold opens a session without a program. Errors of modules are written to report, which
// may be nil.
func (h *Helper) Hold(ctx context.Context, r Request, report *os.File) (*Run, error) {
	run, err := h.start(r, modeHold, []*os.File{nil, nil, report})
	if err != nil {
		return nil, err
	}
	if err := run.await(ctx); err != nil {
		run.Close()
		return nil, err
	}
	return run, nil
}

// Check asks whether the user may be here, and opens no session.
func (h *Helper) Check(ctx context.Context, r Request) error {
	run, err := h.start(r, modeCheck, []*os.File{nil, nil, nil})
	if err != nil {
		return err
	}
	err = run.await(ctx)
	run.Close()
	return err
}

// await returns when PAM has decided.
func (r *Run) await(ctx context.Context) error {
	select {
	case <-r.decided:
	case <-ctx.Done():
		r.Abandon()
		return context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.verdict
}

func (h *Helper) start(request Request, m mode, files []*os.File) (*Run, error) {
	message, err := request.encode(m)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	defer func() { _ = null.Close() }()
	given := []*os.File{null, null, null, theirs}
	for i, f := range files {
		if f != nil {
			given[i] = f
		}
	}
	proc, err := os.StartProcess(h.path(), []string{Program}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: given, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start %s: %w", Program, err)
	}
	r := &Run{
		request: &request, proc: proc, control: ours, pidfd: -1,
		decided: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{}),
	}
	r.timer = time.AfterFunc(decideTimeout, func() {
		r.giveUp(fault.Unreachable("PAM did not decide within %s", decideTimeout))
	})
	go func() {
		defer close(r.gone)
		r.listen(message)
		// It has closed its end. To wait before would keep a thread.
		_, _ = proc.Wait()
		_ = r.control.Close()
	}()
	return r, nil
}

// socketPair returns two ends, of which the first is ours.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	err = unix.SetNonblock(fds[0], true)
	ours, theirs = os.NewFile(uintptr(fds[0]), "pam"), os.NewFile(uintptr(fds[1]), "pam")
	if err != nil {
		_, _ = ours.Close(), theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// listen sends the request and takes what teleport-pam says, until it is gone.
func (r *Run) listen(request []byte) {
	_, err := r.control.Write(request)
	for err == nil {
		var text string
		if text, err = readReport(r.control); err == nil {
			err = r.take(text)
		}
	}
	select {
	case <-r.ended:
		return
	default:
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		err = errDied
	}
	r.orphaned()
	r.done(0, err)
}

func readReport(from io.Reader) (string, error) {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxReport {
		return "", fault.Invalid("%s sends a message of %d bytes", Program, n)
	}
	text := make([]byte, n)
	_, err := io.ReadFull(from, text)
	return string(text), err
}

// take handles one message.
func (r *Run) take(text string) error {
	kind, rest, _ := strings.Cut(text, " ")
	words := strings.SplitN(rest, " ", 4)
	numbers := make([]int, len(words))
	for i, w := range words {
		numbers[i], _ = strconv.Atoi(w)
	}
	switch {
	case kind == "O":
		r.decideOn(nil)
	case kind == "P" && numbers[0] > 1:
		return r.started(numbers[0])
	case kind == "X" && len(words) == 4:
		r.done(0, &Refusal{
			Service: r.request.Service, User: r.request.User, Stage: words[1], Code: numbers[0], Asked: words[2] == "1", Detail: words[3],
		})
	case kind == "F":
		r.done(0, fmt.Errorf("start %q: %w", r.request.Path, syscall.Errno(numbers[0])))
	case kind == "E" && len(words) == 2:
		r.done(waitStatus(numbers[0], numbers[1]), nil)
	default:
		return fault.Invalid("%s sends %q", Program, text)
	}
	return nil
}

// waitStatus is how a program ended: by itself, by a signal, or with a core dump too.
func waitStatus(kind, value int) syscall.WaitStatus {
	const exited, dumped, core = 0, 2, 0x80
	switch kind {
	case exited:
		return syscall.WaitStatus(value << 8)
	case dumped:
		return syscall.WaitStatus(value | core)
	}
	return syscall.WaitStatus(value)
}

// decideOn notes whether PAM lets the user in. The first word counts.
func (r *Run) decideOn(verdict error) {
	r.decide.Do(func() {
		r.timer.Stop()
		r.mu.Lock()
		r.verdict = verdict
		r.mu.Unlock()
		close(r.decided)
	})
}

// done notes that nothing runs in the session any more, and why. The first word counts.
func (r *Run) done(status syscall.WaitStatus, err error) {
	r.finish.Do(func() {
		r.mu.Lock()
		r.status, r.err = status, err
		r.mu.Unlock()
		close(r.ended)
		r.decideOn(err)
	})
}

// started lets the program run that waits, unless nobody wants it any more.
func (r *Run) started(pid int) error {
	if r.request.Started != nil {
		if err := r.request.Started(pid); err != nil {
			return err
		}
	}
	if err := r.letRun(pid); err != nil {
		return err
	}
	r.decideOn(nil)
	return nil
}

func (r *Run) letRun(pid int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.abandoned {
		return nil
	}
	// Kernels before 5.3 have none: then the program is not ended with its teleport-pam by us.
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		r.pidfd = fd
	}
	words := []byte{'G'}
	for _, sig := range r.early {
		words = append(words, 'S', byte(sig))
	}
	if _, err := r.control.Write(words); err != nil {
		return err
	}
	r.pid = pid
	return nil
}

// ID is the number of the program's process, which leads a session of its own; 0 as long
// as it does not run.
func (r *Run) ID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pid
}

// HelperID is the number of teleport-pam's process.
func (r *Run) HelperID() int { return r.proc.Pid }

// Signal signals the program and its group, also after it has ended; before it runs, as
// soon as it does.
func (r *Run) Signal(sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.abandoned {
		return os.ErrProcessDone
	}
	if r.pid == 0 {
		if len(r.early) < maxEarly {
			r.early = append(r.early, sig)
		}
		return nil
	}
	_, err := r.control.Write([]byte{'S', byte(sig)})
	return err
}

// Ended is closed when nothing runs in the session any more.
func (r *Run) Ended() <-chan struct{} { return r.ended }

// Abandon says that the client has left, and gives up what does not run yet: what PAM
// opened is closed behind.
func (r *Run) Abandon() {
	r.mu.Lock()
	r.left = true
	r.mu.Unlock()
	r.giveUp(fault.Denied("the session ended before PAM let it begin"))
}

func (r *Run) giveUp(err error) {
	r.mu.Lock()
	if r.pid != 0 || r.abandoned {
		r.mu.Unlock()
		return
	}
	r.abandoned = true
	r.mu.Unlock()
	r.hangUp()
	r.done(0, err)
}

// hangUp is the end of file for teleport-pam; it can still be listened to.
func (r *Run) hangUp() {
	if rc, err := r.control.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// Close ends the session. It returns when PAM has closed it, or after ten seconds: what
// modules still do they do behind. It does not wait that long when the client has left.
func (r *Run) Close() {
	r.hangUp()
	r.mu.Lock()
	patience := closeTimeout
	if r.left {
		patience = leftTimeout
	}
	r.mu.Unlock()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-r.gone:
	case <-limit.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pid, r.abandoned = 0, true
	if r.pidfd >= 0 {
		_ = unix.Close(r.pidfd)
		r.pidfd = -1
	}
}

// Result says how the program ended.
func (r *Run) Result() (syscall.WaitStatus, error) {
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.err
}

// orphaned ends the program whose teleport-pam is gone. Its number may be somebody
// else's from now on.
func (r *Run) orphaned() {
	r.mu.Lock()
	pidfd := r.pidfd
	r.pid, r.pidfd, r.abandoned = 0, -1, true
	r.mu.Unlock()
	r.hangUp()
	if pidfd < 0 {
		return
	}
	defer func() { _ = unix.Close(pidfd) }()
	_ = unix.PidfdSendSignal(pidfd, unix.SIGHUP, nil, 0)
	_ = unix.PidfdSendSignal(pidfd, unix.SIGCONT, nil, 0)
	polled := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(polled, int(killAfter.Milliseconds())); err == nil && n > 0 {
		return
	}
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
}

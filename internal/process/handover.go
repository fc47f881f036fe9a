package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/state"
)

// An agent is upgraded without ending a session: at SIGHUP, when the program on disk
// is another one than the one that runs, the process starts it beside itself and hands
// it the lock of the data directory and the open ports. Once the new process serves,
// the old one takes no new connections, keeps those that are open, and ends with the
// last of them.
//
//	old                                    new
//	start, with the files and handed     ->
//	                                     <- "ready", when every service serves
//	drain
const handoverEnv = "TELEPORT_HANDOVER"

const (
	// handoverTimeout is the time that the new process has to serve.
	handoverTimeout = time.Minute
	// drainPoll is how often the old process looks whether it may end.
	drainPoll = 500 * time.Millisecond
	// firstHanded is the number of the first file that is handed over (exec.Cmd).
	firstHanded = 3
)

// handed is what the old process tells the new one, in the environment.
type handed struct {
	// RunID is the run that both belong to: for Auth they are one process.
	RunID string `json:"run_id"`
	// Files has the numbers of the open files: of the lock of the data directory, of
	// the way back to the old process, and of the ports by their key.
	Lock  int            `json:"lock"`
	Ready int            `json:"ready"`
	Ports map[string]int `json:"ports"`
}

// program is the file that this process runs.
type program struct {
	path string
	info os.FileInfo
}

// thisProgram returns the program of this process, or nil if that cannot be told:
// then there is no upgrade without a restart.
func thisProgram() *program {
	path, err := os.Executable()
	if err != nil {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return &program{path, info}
}

// replaced reports whether another file is there now.
func (e *program) replaced() bool {
	if e == nil {
		return false
	}
	info, err := os.Stat(e.path)
	return err == nil && (!os.SameFile(info, e.info) || !info.ModTime().Equal(e.info.ModTime()) || info.Size() != e.info.Size())
}

// takeHanded reads what an old process handed to this one; nil if there is none. The
// variable does not reach the programs that sessions run.
func takeHanded() (*handed, error) {
	text := os.Getenv(handoverEnv)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(handoverEnv); err != nil {
		return nil, err
	}
	h := &handed{}
	if err := json.Unmarshal([]byte(text), h); err != nil {
		return nil, fault.Invalid("%s is set by the process that hands over, and by nobody else: %w", handoverEnv, err)
	}
	return h, nil
}

// file returns a file that was handed over, for this process alone.
func (h *handed) file(number int, name string) *os.File {
	syscall.CloseOnExec(number)
	return os.NewFile(uintptr(number), name)
}

// takeOver makes what was handed to this process its own.
func (p *process) takeOver(h *handed) error {
	p.handed = h
	p.runID = h.RunID
	for key, number := range h.Ports {
		f := h.file(number, key)
		ln, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("%s: the port that was handed over: %w", key, err)
		}
		p.listeners[key] = ln
	}
	return nil
}

// openDir opens the data directory, with the lock that was handed over if there is one.
func (p *process) openDir() (*state.Dir, error) {
	if p.handed == nil {
		return state.Open(p.config().DataDir)
	}
	return state.OpenLocked(p.config().DataDir, p.handed.file(p.handed.Lock, "lock"))
}

// tookOver tells the old process that this one serves.
func (p *process) tookOver() error {
	if p.handed == nil {
		return nil
	}
	f := p.handed.file(p.handed.Ready, "handover")
	p.handed = nil
	_, err := io.WriteString(f, handoverReady)
	return errors.Join(err, f.Close())
}

const handoverReady = "ready\n"

// upgrade starts the program on disk and waits until it serves. On an error this
// process goes on as if nothing had been.
func (p *process) upgrade(ctx context.Context) (pid int, err error) {
	h := handed{RunID: p.runID, Ports: map[string]int{}}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	hand := func(f *os.File) int {
		files = append(files, f)
		return firstHanded + len(files) - 1
	}
	lock, err := p.dir.LockFile()
	if err != nil {
		return 0, err
	}
	h.Lock = hand(lock)
	for key, ln := range p.listeners {
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			return 0, fmt.Errorf("%s: a port of this kind cannot be handed over", key)
		}
		f, err := tcp.File()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", key, err)
		}
		h.Ports[key] = hand(f)
	}
	back, theirs, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer back.Close()
	h.Ready = hand(theirs)
	text, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	// It outlives this process, so nothing of ours may end it.
	cmd := exec.Command(p.program.path, os.Args[1:]...) //nolint:noctx,gosec // see above; it is the program that runs, with its own arguments
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), handoverEnv+"="+string(text))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, files
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// Our copy of their end must be closed, or its end of file never comes.
	_ = theirs.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	if err := awaitReady(ctx, back); err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// awaitReady waits for the word of the new process.
func awaitReady(ctx context.Context, back *os.File) error {
	if err := back.SetReadDeadline(time.Now().Add(handoverTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = back.SetReadDeadline(time.Now()) })
	defer stop()
	word := make([]byte, len(handoverReady))
	switch _, err := io.ReadFull(back, word); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it did not serve within %s", handoverTimeout)
	case err != nil || string(word) != handoverReady:
		return errors.New("it ended before it served: its own lines in the log say why")
	}
	return nil
}

// handOver upgrades the process and returns the names of the services that the new
// process has instead; nil if it could not be done.
func (p *process) handOver(ctx context.Context, cfg *config.Config) []string {
	if cfg.Auth.Enabled || cfg.Proxy.Enabled {
		p.log.WarnContext(ctx, "another program is installed: restart the process to run it (an Auth or Proxy Service is not handed over)")
		return nil
	}
	p.log.InfoContext(ctx, "another program is installed, handing over to it", "program", p.program.path)
	// From here on the state file is the new process's.
	p.draining.Store(true)
	pid, err := p.upgrade(ctx)
	if err != nil {
		p.draining.Store(false)
		p.log.ErrorContext(ctx, "the new program could not take over, this process goes on", "error", err)
		return nil
	}
	notifySystemd("MAINPID=" + strconv.Itoa(pid))
	p.log.InfoContext(ctx, "handed over, ending with the last open connection", "pid", pid, "connections", p.openConnections())
	// The new process accepts on its own copies, and says from now on what there is.
	p.servers.freeze()
	if s := p.ssh.Load(); s != nil {
		s.Drain()
	}
	if s := p.app.Load(); s != nil {
		s.Drain(ctx)
	}
	return []string{"diag", "renewal"}
}

// openConnections is how many connections users have to this process.
func (p *process) openConnections() int {
	n := 0
	if s := p.ssh.Load(); s != nil {
		n += s.Open()
	}
	if s := p.app.Load(); s != nil {
		n += s.Open()
	}
	if s := p.db.Load(); s != nil {
		n += s.Open()
	}
	return n
}

// waitDrained returns when the process has handed over and nobody uses it any more.
func (p *process) waitDrained(ctx context.Context) {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if p.draining.Load() && p.handedOver.Load() && p.openConnections() == 0 {
			p.log.InfoContext(ctx, "the last connection has ended, so has this process")
			return
		}
	}
}

// follow takes the identity that the new process saved, for what this one still has
// to say to Auth: which locks are in force.
func (p *process) follow() error {
	st, err := state.Peek(p.config().DataDir)
	if err != nil {
		return err
	}
	if err := p.holder.Replace(st); err != nil {
		return err
	}
	return p.showIdentity()
}

// notifySystemd says something to systemd, if it runs this process (sd_notify(3)).
func notifySystemd(text string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, text)
}

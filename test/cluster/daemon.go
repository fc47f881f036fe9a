package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// readyLine is what a daemon says when every service serves.
	readyLine  = "Teleport is ready."
	readyLimit = 30 * time.Second
	stopLimit  = 15 * time.Second
)

// Daemon is a running teleport.
type Daemon struct {
	// PID is its process id.
	PID int
	// Began is just before the process was made, Ready when it said that it is ready.
	Began, Ready time.Time
	// Log is the file with what it wrote.
	Log string

	config string
	cmd    *exec.Cmd
	done   chan struct{}
}

// Start starts a daemon with a file of configuration and waits until it is ready.
func (c *Cluster) Start(ctx context.Context, name, config string) (*Daemon, error) {
	d, ready, err := c.Spawn(name, config)
	if err != nil {
		return nil, err
	}
	select {
	case d.Ready = <-ready:
		return d, nil
	case <-d.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(readyLimit):
	}
	text, _ := os.ReadFile(d.Log)
	return nil, fmt.Errorf("%s did not become ready:\n%s", name, text)
}

// Spawn starts a daemon and does not wait; the channel gets the time at which it
// says that it is ready.
func (c *Cluster) Spawn(name, config string) (*Daemon, <-chan time.Time, error) {
	args := []string{"start", "-c", config}
	c.show("teleport", args)
	d := &Daemon{Log: c.Path(name + ".log"), config: config, done: make(chan struct{})}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	d.cmd = exec.Command(c.Tool("teleport"), args...)
	d.cmd.Stdout, d.cmd.Stderr = w, w
	// Ctrl-C is for the program that started it, which stops its daemons in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.Began = time.Now()
	err = d.cmd.Start()
	_ = w.Close()
	if err != nil {
		return nil, nil, err
	}
	d.PID = d.cmd.Process.Pid
	c.daemons = append(c.daemons, d)
	ready := make(chan time.Time, 1)
	go func() {
		defer log.Close()
		follow(r, log, ready)
	}()
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	return d, ready, nil
}

// follow copies what a daemon writes to its log and tells when it is ready.
func follow(r *os.File, log io.Writer, ready chan<- time.Time) {
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line == readyLine+"\n" {
			select {
			case ready <- time.Now():
			default:
			}
		}
		if _, werr := io.WriteString(log, line); err != nil || werr != nil {
			return
		}
	}
}

// Stop ends the daemon and waits for it; one that does not stop is killed.
func (d *Daemon) Stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(stopLimit):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

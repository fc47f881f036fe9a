package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// meterArg makes this program a meter: it runs the command that follows and reports
// what it cost on descriptor 3. A process of its own is needed because ssh leaves the
// processes of a ProxyJump or ProxyCommand to others to reap: their time would be lost.
const meterArg = "-run-and-report-cost"

// reading is what a meter reports.
type reading struct {
	Elapsed, CPU time.Duration
	Exit         int
}

func meterMain(args []string) int {
	var r reading
	err := meter(args, &r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.NewFile(3, "report")).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func meter(args []string, r *reading) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper: %w", err)
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	began := time.Now()
	p, err := os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ()})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			var usage unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err != nil {
				return err
			}
			r.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
			return nil
		case err != nil:
			return err
		case pid == p.Pid:
			r.Elapsed, r.Exit = time.Since(began), status.ExitStatus()
		}
	}
}

// command is what a way runs.
type command struct {
	args   []string
	env    []string
	stdin  string // a file; none if empty
	stdout io.Writer
}

// plain runs a command without a meter, whose start would count where many run at
// once.
func plain(ctx context.Context, c command) error {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	if c.stdin != "" {
		in, err := os.Open(c.stdin)
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", c.args, err, out)
	}
	return nil
}

// measure runs a command under a meter.
func measure(ctx context.Context, c command) (reading, error) {
	var r reading
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	report, w, err := os.Pipe()
	if err != nil {
		return r, err
	}
	defer report.Close()
	cmd := exec.CommandContext(ctx, self, append([]string{meterArg}, c.args...)...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.ExtraFiles = []*os.File{w}
	// Ctrl-C ends the bench, which ends the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if c.stdin != "" {
		in, err := os.Open(c.stdin)
		if err != nil {
			return r, err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = c.stdout, &stderr
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return r, err
	}
	derr := json.NewDecoder(report).Decode(&r)
	if err := errors.Join(cmd.Wait(), derr); err != nil || r.Exit != 0 {
		return r, fmt.Errorf("%q: exit %d %w: %s", c.args, r.Exit, err, stderr.String())
	}
	return r, nil
}

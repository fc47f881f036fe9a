// Package label makes labels from what programs print: those of a host, and those of the
// applications and databases that a host serves. Which labels there are besides, and what
// they decide, is not its business.
package label

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// Command makes a label from what a program prints.
type Command struct {
	Name    string
	Command []string
	// Period is the pause between runs, at least a minute.
	Period time.Duration
}

const (
	minPeriod = time.Minute
	timeout   = 10 * time.Second
	maxOutput = 1 << 10
)

// Set is labels of one thing that are made by commands. It is safe for concurrent use.
type Set struct {
	commands []Command
	log      *slog.Logger

	mu      sync.Mutex
	results map[string]string
}

// New checks the commands; static are the labels that the thing has anyway, which no
// command may replace. Nothing runs yet, and all results are empty.
func New(static map[string]string, commands []Command, log *slog.Logger) (*Set, error) {
	s := &Set{commands: commands, log: log, results: map[string]string{}}
	for _, c := range commands {
		switch {
		case c.Name == "" || len(c.Command) == 0 || c.Command[0] == "":
			return nil, fault.Invalid("command label %q: name and command are needed", c.Name)
		case c.Period < minPeriod:
			return nil, fault.Invalid("command label %q: period %s is too short, use at least %s", c.Name, c.Period, minPeriod)
		}
		if _, twice := s.results[c.Name]; twice {
			return nil, fault.Invalid("command label %q is defined twice", c.Name)
		}
		if _, both := static[c.Name]; both {
			return nil, fault.Invalid("label %q is both static and made by a command", c.Name)
		}
		s.results[c.Name] = ""
	}
	return s, nil
}

// Commands returns the commands as New got them.
func (s *Set) Commands() []Command { return s.commands }

// Results returns what the commands printed last, by name of the label.
func (s *Set) Results() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.results)
}

// RunAll runs every command once, all at the same time.
func (s *Set) RunAll(ctx context.Context) {
	var all sync.WaitGroup
	for _, c := range s.commands {
		all.Go(func() { s.refresh(ctx, c) })
	}
	all.Wait()
}

// Run runs each command at its period until ctx ends and calls changed when a result is
// new, several calls at the same time included.
func (s *Set) Run(ctx context.Context, changed func()) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range s.commands {
		all.Go(func() {
			tick := time.NewTicker(c.Period)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if s.refresh(ctx, c) {
					changed()
				}
			}
		})
	}
}

// refresh runs one command and reports whether its result is new.
func (s *Set) refresh(ctx context.Context, c Command) bool {
	value, err := value(ctx, c.Command)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		s.log.WarnContext(ctx, "command of a label failed", "label", c.Name, "error", err)
		value = clean("error: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.results[c.Name] == value {
		return false
	}
	s.results[c.Name] = value
	return true
}

// value runs a command and returns the cleaned beginning of what it prints.
func value(ctx context.Context, command []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var out firstBytes
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("no end after %s", timeout)
		}
		return "", err
	}
	return clean(out.String()), nil
}

// clean makes one printable line of a value.
func clean(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s), "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxOutput {
		s = strings.ToValidUTF8(s[:maxOutput], "")
	}
	return s
}

// firstBytes keeps the beginning of what is written to it.
type firstBytes struct{ bytes.Buffer }

// Write keeps what fits and drops the rest.
func (b *firstBytes) Write(p []byte) (int, error) {
	if room := maxOutput + 64 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

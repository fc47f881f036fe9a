package ssh

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
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
	"teleport/internal/version"
)

// Command makes a label from what a program prints.
type Command struct {
	Name    string
	Command []string
	// Period is the pause between runs, at least a minute.
	Period time.Duration
}

const (
	minPeriod      = time.Minute
	labelTimeout   = 10 * time.Second
	maxLabelOutput = 1 << 10
)

// labels are those of this host. The results of commands change.
type labels struct {
	static   map[string]string
	commands []Command
	log      *slog.Logger

	mu      sync.Mutex
	results map[string]string
}

func newLabels(static map[string]string, commands []Command, log *slog.Logger) (*labels, error) {
	l := &labels{static: maps.Clone(static), commands: commands, log: log, results: map[string]string{}}
	for _, c := range commands {
		switch {
		case c.Name == "" || len(c.Command) == 0 || c.Command[0] == "":
			return nil, fault.Invalid("command label %q: name and command are needed", c.Name)
		case c.Period < minPeriod:
			return nil, fault.Invalid("command label %q: period %s is too short, use at least %s", c.Name, c.Period, minPeriod)
		}
		if _, twice := l.results[c.Name]; twice {
			return nil, fault.Invalid("command label %q is defined twice", c.Name)
		}
		if _, both := static[c.Name]; both {
			return nil, fault.Invalid("label %q is both static and made by a command", c.Name)
		}
		l.results[c.Name] = ""
	}
	return l, nil
}

// runAll runs every command once, all at the same time.
func (l *labels) runAll(ctx context.Context) {
	var all sync.WaitGroup
	for _, c := range l.commands {
		all.Go(func() { l.refresh(ctx, c) })
	}
	all.Wait()
}

// run runs each command at its period until ctx ends and calls changed when a
// result is new.
func (l *labels) run(ctx context.Context, changed func()) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range l.commands {
		all.Go(func() {
			tick := time.NewTicker(c.Period)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if l.refresh(ctx, c) {
					changed()
				}
			}
		})
	}
}

// refresh runs one command and reports whether its result is new.
func (l *labels) refresh(ctx context.Context, c Command) bool {
	value, err := labelValue(ctx, c.Command)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		l.log.WarnContext(ctx, "command of a label failed", "label", c.Name, "error", err)
		value = cleanLabel("error: " + err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.results[c.Name] == value {
		return false
	}
	l.results[c.Name] = value
	return true
}

// labelValue runs a command and returns the cleaned beginning of what it prints.
func labelValue(ctx context.Context, command []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, labelTimeout)
	defer cancel()
	var out firstBytes
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("no end after %s", labelTimeout)
		}
		return "", err
	}
	return cleanLabel(out.String()), nil
}

// cleanLabel makes one printable line of a value.
func cleanLabel(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s), "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxLabelOutput {
		s = strings.ToValidUTF8(s[:maxLabelOutput], "")
	}
	return s
}

// firstBytes keeps the beginning of what is written to it.
type firstBytes struct{ bytes.Buffer }

// Write keeps what fits and drops the rest.
func (b *firstBytes) Write(p []byte) (int, error) {
	if room := maxLabelOutput + 64 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// self describes this host to the cluster.
func (s *Service) self() *typesv1.Server {
	node, ok := types.New(types.KindNode, s.cfg.Holder.HostID()).(*typesv1.Server)
	if !ok {
		return nil
	}
	if len(s.labels.static) > 0 {
		node.Metadata.Labels = maps.Clone(s.labels.static)
	}
	node.Spec = &typesv1.ServerSpec{Hostname: s.cfg.Hostname, Version: version.Version, UseTunnel: s.cfg.UseTunnel}
	if !s.cfg.UseTunnel {
		node.Spec.Addr = s.cfg.AdvertiseAddr
		if node.Spec.Addr == "" && s.cfg.Listener != nil {
			node.Spec.Addr = s.cfg.Listener.Addr().String()
		}
	}
	s.labels.mu.Lock()
	defer s.labels.mu.Unlock()
	for _, c := range s.labels.commands {
		if node.Spec.CmdLabels == nil {
			node.Spec.CmdLabels = map[string]*typesv1.CommandLabel{}
		}
		node.Spec.CmdLabels[c.Name] = &typesv1.CommandLabel{Command: c.Command, Period: c.Period.String(), Result: s.labels.results[c.Name]}
	}
	return proto.CloneOf(node)
}

// labelMap returns the labels that roles are held against.
func (s *Service) labelMap() map[string]string { return types.ServerLabels(s.self()) }

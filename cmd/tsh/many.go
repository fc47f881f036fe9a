package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	// maxAtOnce is on how many servers a command runs at the same time.
	maxAtOnce = 20
	// maxLine is how much of a line without an end is held back.
	maxLine = 64 << 10
)

// host is one of the servers that a command line means.
type host struct {
	// id is its host id, name its host name, and title what tells it from the others.
	id, name, title string
}

// byLabel reports whether the target is label=value[,label=value...].
func (t target) byLabel() bool { return strings.Contains(t.host, "=") }

// hosts returns the servers that a target means: those with the labels, at least one;
// a host name or id is left to the Proxy to find.
func (a *app) hosts(ctx context.Context, c *client.Client, t target) ([]host, error) {
	if !t.byLabel() {
		return []host{{t.host, t.host, t.host}}, nil
	}
	choice, err := client.NewChoice(types.KindNode, t.host, "", "")
	if err != nil {
		return nil, err
	}
	choice.Usable = true
	conn, err := c.Auth()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	nodes, err := choice.Servers(ctx, conn)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fault.NotFound("there is no server with %s that you may connect to: see tsh ls", t.host)
	}
	names := map[string]int{}
	for _, n := range nodes {
		names[n.GetSpec().GetHostname()]++
	}
	out := make([]host, len(nodes))
	for i, n := range nodes {
		h := host{id: n.GetMetadata().GetName(), name: n.GetSpec().GetHostname()}
		h.title = h.name
		if names[h.name] > 1 || types.ValidHostname(h.name) != nil {
			h.title = h.name + "/" + h.id
		}
		out[i] = h
	}
	return out, nil
}

// runOnMany runs the command on all of the hosts and says which failed.
func runOnMany(ctx context.Context, a *app, c *client.Client, login string, hosts []host, o *sshOptions) error {
	if len(hosts) > 1 {
		switch {
		case len(o.command) == 0:
			return screen.Usage("%s means %d servers: a command is needed", o.target, len(hosts))
		case o.ttyFlag || len(o.local)+len(o.remote)+len(o.dynamic) > 0 || o.onLocalhost || o.noCommand || o.agent || o.x11 || o.x11Trusted || o.jump != "":
			return screen.Usage("%s means %d servers: terminals, forwarding, --local, -N and -J work with one", o.target, len(hosts))
		}
	}
	if o.logDir != "" {
		if err := os.MkdirAll(o.logDir, 0o700); err != nil {
			return fault.Invalid("make the directory of --log-dir: %w", err)
		}
	}
	screen.ReleaseSignals(ctx)
	ctx = context.WithoutCancel(ctx)
	m := many{app: a, client: c, login: login, options: o, labelled: len(hosts) > 1 || o.logDir != ""}
	problems := make([]string, len(hosts))
	codes := make([]int, len(hosts))
	var group errgroup.Group
	group.SetLimit(maxAtOnce)
	for i, h := range hosts {
		group.Go(func() error {
			var err error
			if codes[i], err = m.one(ctx, h); err != nil {
				codes[i], problems[i] = screen.ExitError, err.Error()
			} else if codes[i] != screen.ExitOK {
				problems[i] = fmt.Sprintf("exit code %d", codes[i])
			}
			return nil
		})
	}
	_ = group.Wait()
	return m.summary(hosts, codes, problems)
}

// summary names the hosts that failed. With one host the code is its own.
func (m *many) summary(hosts []host, codes []int, problems []string) error {
	failed := 0
	for i, p := range problems {
		if p == "" {
			continue
		}
		if failed++; failed == 1 && len(hosts) > 1 {
			_, _ = fmt.Fprintln(m.app.Err, "Failed:")
		}
		_, _ = fmt.Fprintf(m.app.Err, "  %s: %s\n", screen.Escape(hosts[i].title), screen.Escape(p))
	}
	switch {
	case failed == 0:
		return nil
	case len(hosts) == 1:
		return screen.Code(codes[0])
	}
	_, _ = fmt.Fprintf(m.app.Err, "%d of %d servers failed\n", failed, len(hosts))
	return screen.Code(screen.ExitError)
}

// many is a command that runs on several hosts.
type many struct {
	app      *app
	client   *client.Client
	login    string
	options  *sshOptions
	labelled bool
	// writing keeps lines of hosts apart.
	writing sync.Mutex
}

// one runs the command on one host and returns its exit code.
func (m *many) one(ctx context.Context, h host) (code int, err error) {
	stdout, stderr, done, err := m.outputs(h)
	if err != nil {
		return 0, err
	}
	defer func() {
		if failure := done(); err == nil && failure != nil {
			err = failure
		}
	}()
	conn, err := m.client.SSH(ctx, m.login, h.id, nodePort(uint32(m.options.port)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	run := client.Session{
		Command: strings.Join(m.options.command, " "), Env: append(localeEnv(), m.options.env...),
		Stdin: bytes.NewReader(nil), Stdout: stdout, Stderr: stderr,
	}
	return run.Run(ctx, conn)
}

// outputs returns where the output of a host goes, and what to call at its end.
func (m *many) outputs(h host) (stdout, stderr io.Writer, done func() error, err error) {
	prefix := ""
	if m.labelled {
		prefix = "[" + screen.Escape(h.title) + "] "
	}
	out := &lineWriter{to: m.app.Out, prefix: prefix, writing: &m.writing}
	talk := &lineWriter{to: m.app.Err, prefix: prefix, writing: &m.writing}
	if m.options.logDir == "" {
		return out, talk, func() error { out.flush(); talk.flush(); return nil }, nil
	}
	name := strings.ReplaceAll(h.title, "/", "-")
	if types.ValidHostname(h.name) != nil {
		name = h.id
	}
	var files []*os.File
	for _, suffix := range []string{".stdout", ".stderr"} {
		f, err := os.OpenFile(filepath.Join(m.options.logDir, name+suffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			for _, open := range files {
				_ = open.Close()
			}
			return nil, nil, nil, fault.Invalid("keep the output: %w", err)
		}
		files = append(files, f)
	}
	done = func() error {
		out.flush()
		talk.flush()
		for _, f := range files {
			if err := f.Close(); err != nil {
				return fault.Invalid("keep the output: %w", err)
			}
		}
		return nil
	}
	return io.MultiWriter(files[0], out), io.MultiWriter(files[1], talk), done, nil
}

// lineWriter writes whole lines, each with a prefix, so that those of several hosts do
// not mix.
type lineWriter struct {
	to      io.Writer
	prefix  string
	writing *sync.Mutex
	held    []byte
}

// Write passes on the lines that are complete.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.held = append(w.held, p...)
	end := bytes.LastIndexByte(w.held, '\n') + 1
	if end == 0 && len(w.held) < maxLine {
		return len(p), nil
	}
	if end == 0 {
		end = len(w.held)
	}
	err := w.pass(w.held[:end])
	w.held = append(w.held[:0], w.held[end:]...)
	return len(p), err
}

func (w *lineWriter) pass(text []byte) error {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		out.WriteString(w.prefix)
		out.Write(line)
	}
	if w.prefix != "" && !bytes.HasSuffix(text, []byte("\n")) {
		out.WriteByte('\n')
	}
	w.writing.Lock()
	defer w.writing.Unlock()
	_, err := w.to.Write(out.Bytes())
	return err
}

// flush passes on a last line that did not end.
func (w *lineWriter) flush() {
	if len(w.held) > 0 {
		_ = w.pass(w.held)
		w.held = nil
	}
}

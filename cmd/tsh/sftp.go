package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"teleport/internal/client/screen"
	"teleport/internal/client/transfer"
	"teleport/internal/fault"
)

type sftpOptions struct {
	batch     string
	quiet     bool
	recursive bool
	preserve  bool
	port      uint16
	cluster   string
	jump      string
	target    string
}

func newSftp(a *app) *cobra.Command {
	var o sftpOptions
	cmd := &cobra.Command{
		Use:   "sftp [flags] [user@]host[:path]",
		Short: "Look around on a server and copy files, command by command",
		Long: "Start a session of commands for files; help lists them. With a path to a directory it begins there; a file is\n" +
			"fetched, and that is all.\n\n" +
			"With -b, or if standard input is no terminal, commands are read from there, and the first that fails ends it with\n" +
			"exit code 1; a - before a command lets it fail.",
		Args: screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = args[0]
			return runSftp(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.batch, "batch", "b", "", "read commands from this file, - is standard input")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.BoolVarP(&o.recursive, "recursive", "r", false, "get and put copy directories with all that is in them")
	f.BoolVarP(&o.preserve, "preserve", "p", false, "get and put keep permissions and the time of change")
	f.Uint16VarP(&o.port, "port", "P", 0, "port of the server; servers behind a tunnel have none")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	jumpFlag(f, &o.jump)
	a.resumeFlag(f)
	return cmd
}

func runSftp(ctx context.Context, a *app, o sftpOptions) error {
	if !strings.Contains(o.target, ":") {
		o.target += ":"
	}
	p, err := parsePlace(o.target)
	if err != nil {
		return err
	}
	if !p.remote {
		return screen.Usage("%q: expected [user@]host[:path]", o.target)
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	x := &copying{
		app: a, client: c, session: s, sides: map[string]*transfer.Remote{},
		options: scpOptions{quiet: o.quiet, recursive: o.recursive, preserve: o.preserve, port: o.port, jump: o.jump},
	}
	defer x.close()
	stop := context.AfterFunc(ctx, x.close)
	defer stop()
	err = x.sftp(ctx, p, o)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sftp runs the commands.
func (x *copying) sftp(ctx context.Context, p place, o sftpOptions) error {
	login, err := x.app.loginFor(p.target, x.session)
	if err != nil {
		return err
	}
	hosts, err := x.hosts(ctx, p.target)
	if err != nil {
		return err
	}
	if len(hosts) > 1 {
		return screen.Usage("%s means %d servers: name one", p.target.host, len(hosts))
	}
	side, err := x.side(ctx, login, hosts[0])
	if err != nil {
		return err
	}
	begin, err := side.RealPath(p.path)
	if err != nil {
		return fault.Invalid("%s: %w", p.path, err)
	}
	info, err := side.Stat(begin)
	if err != nil {
		return fault.NotFound("%s: %w", p.path, err)
	}
	shell := &fileShell{copying: x, side: side, dir: begin}
	if !info.IsDir() {
		return shell.fetch(ctx, []string{begin}, x.options)
	}
	if o.batch == "" && screen.IsTerminal(x.app.In) {
		return x.interact(ctx, shell)
	}
	in := x.app.In
	if o.batch != "" && o.batch != "-" {
		f, err := os.Open(o.batch)
		if err != nil {
			return fault.Invalid("read the commands: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return shell.batch(ctx, in)
}

// interact reads commands from the terminal.
func (x *copying) interact(ctx context.Context, shell *fileShell) error {
	f, ok := x.app.In.(*os.File)
	if !ok {
		return shell.batch(ctx, x.app.In)
	}
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{x.app.In, x.app.Out}, "sftp> ")
	for ctx.Err() == nil {
		old, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return fault.Invalid("read from the terminal: %w", err)
		}
		if width, height, err := term.GetSize(int(f.Fd())); err == nil {
			_ = t.SetSize(width, height)
		}
		line, err := t.ReadLine()
		_ = term.Restore(int(f.Fd()), old)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.Invalid("read from the terminal: %w", err)
		}
		switch err := shell.run(ctx, line); {
		case errors.Is(err, errQuit):
			return nil
		case err != nil && !errors.As(err, new(screen.Code)):
			x.app.note(err.Error())
		}
	}
	return context.Cause(ctx)
}

// maxCommand bounds a line of a batch.
const maxCommand = 64 << 10

// batch reads commands until one fails.
func (s *fileShell) batch(ctx context.Context, in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxCommand)
	for lines.Scan() && ctx.Err() == nil {
		line, mayFail := strings.CutPrefix(strings.TrimSpace(lines.Text()), "-")
		switch err := s.run(ctx, line); {
		case errors.Is(err, errQuit):
			return nil
		case err != nil && mayFail:
			if !errors.As(err, new(screen.Code)) {
				s.app.note(err.Error())
			}
		case err != nil:
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fault.Invalid("read the commands: %w", err)
	}
	return nil
}

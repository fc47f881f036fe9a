package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"teleport/internal/client/screen"
	"teleport/internal/client/transfer"
	"teleport/internal/fault"
)

// errQuit ends a file shell.
var errQuit = errors.New("quit")

// fileShell is a session of commands for files.
type fileShell struct {
	*copying
	side *transfer.Remote
	// dir is where relative names on the server begin.
	dir string
}

// fileCommand is one of the commands. Its arguments are split, and without the name.
type fileCommand struct {
	names       []string
	usage, help string
	least, most int
	run         func(ctx context.Context, args []string) error
}

func (s *fileShell) commands() []fileCommand {
	return []fileCommand{
		{[]string{"ls", "dir"}, "ls [-la] [path...]", "list a directory of the server", 0, -1, s.list},
		{[]string{"cd"}, "cd [path]", "go to another directory of the server", 0, 1, s.changeDir},
		{[]string{"pwd"}, "pwd", "say which directory of the server this is", 0, 0, func(context.Context, []string) error { return s.app.print("%s\n", screen.Escape(s.dir)) }},
		{[]string{"get", "mget"}, "get [-rp] file... [to]", "copy files from the server; of several names the last is where to, unless it is mget", 1, -1, s.get},
		{[]string{"put", "mput"}, "put [-rp] file... [to]", "copy files to the server; of several names the last is where to, unless it is mput", 1, -1, s.put},
		{[]string{"rm", "delete"}, "rm [-r] path...", "delete files; with -r directories too", 1, -1, s.remove},
		{[]string{"mkdir"}, "mkdir [-p] path...", "make directories", 1, -1, s.makeDir},
		{[]string{"rmdir"}, "rmdir path...", "delete empty directories", 1, -1, func(_ context.Context, args []string) error {
			return s.each(args, s.side.RemoveDirectory)
		}},
		{[]string{"rename", "mv"}, "rename from to", "rename a file or a directory", 2, 2, s.rename},
		{[]string{"ln", "symlink"}, "ln -s target name", "make a symbolic link", 2, 3, s.link},
		{[]string{"chmod"}, "chmod mode path...", "set permissions, in octal digits", 2, -1, s.chmod},
		{[]string{"stat"}, "stat path...", "show what a file is", 1, -1, s.stat},
		{[]string{"lcd"}, "lcd [path]", "go to another directory of this machine", 0, 1, s.localDir},
		{[]string{"lpwd"}, "lpwd", "say which directory of this machine this is", 0, 0, s.localWhere},
		{[]string{"lls"}, "lls [path]", "list a directory of this machine", 0, 1, s.localList},
		{[]string{"lmkdir"}, "lmkdir path", "make a directory on this machine", 1, 1, func(_ context.Context, args []string) error {
			return because(args[0], os.Mkdir(args[0], 0o777)) //nolint:gosec // the umask decides, as everywhere
		}},
		{[]string{"help", "?"}, "help", "list the commands", 0, 0, s.help},
		{[]string{"quit", "exit", "bye"}, "quit", "end the session", 0, 0, func(context.Context, []string) error { return errQuit }},
	}
}

// run runs one line.
func (s *fileShell) run(ctx context.Context, line string) error {
	args, err := splitCommand(line)
	if err != nil || len(args) == 0 || strings.HasPrefix(args[0], "#") {
		return err
	}
	for _, c := range s.commands() {
		if !slices.Contains(c.names, args[0]) {
			continue
		}
		if n := len(args) - 1; n < c.least || c.most >= 0 && n > c.most {
			return fault.Invalid("expected: %s", c.usage)
		}
		if strings.HasPrefix(args[0], "m") && (args[0] == "mget" || args[0] == "mput") {
			args = append(args, ".")
		}
		return c.run(ctx, args[1:])
	}
	return fault.Invalid("unknown command %q: help lists those that there are", args[0])
}

// splitCommand cuts a line into words. Text in single or double quotes stays together;
// a backslash takes the next character as it is, outside of single quotes.
func splitCommand(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	begun, quote, escaped := false, rune(0), false
	for _, r := range line {
		switch {
		case escaped:
			// What a pattern would take for a special character stays one that is not.
			if strings.ContainsRune(`*?[\`, r) {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, begun = r, true
		case r == ' ' || r == '\t':
			if begun {
				out = append(out, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quote != 0 || escaped {
		return nil, fault.Invalid("a quotation mark or a character after \\ is missing")
	}
	if begun {
		out = append(out, word.String())
	}
	return out, nil
}

// options reads -x flags of a command and returns what follows them.
func options(args []string, known map[string]*bool) ([]string, error) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.Usage = func() {}
	for name, to := range known {
		f.BoolVarP(to, "flag-"+name, name, *to, "")
	}
	if err := f.Parse(args); err != nil {
		return nil, fault.Invalid("%w", err)
	}
	return f.Args(), nil
}

// at returns the whole path of a name on the server.
func (s *fileShell) at(name string) string {
	if rest, ok := strings.CutPrefix(name+"/", "~/"); ok {
		if home, err := s.side.RealPath("."); err == nil {
			return path.Join(home, rest)
		}
	}
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(s.dir, name)
}

// match returns the paths on the server that names and patterns stand for.
func (s *fileShell) match(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		found, err := s.side.Glob(s.at(name))
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// because names the file that an error is about.
func because(name string, err error) error {
	if err == nil {
		return nil
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fault.Invalid("%s: %w", name, err)
}

// each does something to each path that the names stand for, until one fails.
func (s *fileShell) each(names []string, do func(name string) error) error {
	found, err := s.match(names)
	if err != nil {
		return err
	}
	for _, name := range found {
		if err := because(name, do(name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *fileShell) list(_ context.Context, args []string) error {
	var long, all, one bool
	names, err := options(args, map[string]*bool{"l": &long, "a": &all, "1": &one})
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	found, err := s.match(names)
	if err != nil {
		return err
	}
	for i, name := range found {
		info, err := s.side.Stat(name)
		if err != nil {
			return because(name, err)
		}
		if !info.IsDir() {
			if err := s.show(name, info, long); err != nil {
				return err
			}
			continue
		}
		if len(found) > 1 {
			if err := s.app.print("%s%s:\n", map[bool]string{true: "\n"}[i > 0], screen.Escape(name)); err != nil {
				return err
			}
		}
		entries, err := s.side.ReadDir(name)
		if err != nil {
			return because(name, err)
		}
		slices.SortFunc(entries, func(a, b fs.FileInfo) int { return cmp.Compare(a.Name(), b.Name()) })
		for _, e := range entries {
			if !all && strings.HasPrefix(e.Name(), ".") {
				continue
			}
			if err := s.show(e.Name(), e, long); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *fileShell) show(name string, info fs.FileInfo, long bool) error {
	if !long {
		return s.app.print("%s\n", screen.Escape(name))
	}
	return s.app.print("%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().Format("2006-01-02 15:04"), screen.Escape(name))
}

func (s *fileShell) changeDir(_ context.Context, args []string) error {
	to := "~"
	if len(args) > 0 {
		to = args[0]
	}
	dir, err := s.side.RealPath(s.at(to))
	if err != nil {
		return because(to, err)
	}
	info, err := s.side.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return because(to, err)
	}
	s.dir = dir
	return nil
}

// copyOptions reads the flags of get and put.
func (s *fileShell) copyOptions(args []string) (scpOptions, []string, error) {
	o, unused := s.options, false
	names, err := options(args, map[string]*bool{"r": &o.recursive, "R": &o.recursive, "p": &o.preserve, "P": &o.preserve, "a": &unused, "f": &unused})
	if err == nil && len(names) == 0 {
		err = fault.Invalid("expected the name of a file")
	}
	return o, names, err
}

func (s *fileShell) get(ctx context.Context, args []string) error {
	o, names, err := s.copyOptions(args)
	if err != nil {
		return err
	}
	to := "."
	if n := len(names); n > 1 {
		names, to = names[:n-1], names[n-1]
	}
	found, err := s.match(names)
	if err != nil {
		return err
	}
	return s.fetch(ctx, found, o, to)
}

// fetch copies paths of the server here.
func (s *fileShell) fetch(ctx context.Context, names []string, o scpOptions, to ...string) error {
	var sources []transfer.Source
	for _, name := range names {
		sources = append(sources, transfer.Source{Side: s.side, Name: name})
	}
	return s.move(ctx, sources, transfer.Local{}, cmp.Or(strings.Join(to, ""), "."), o)
}

func (s *fileShell) put(ctx context.Context, args []string) error {
	o, names, err := s.copyOptions(args)
	if err != nil {
		return err
	}
	to := "."
	if n := len(names); n > 1 {
		names, to = names[:n-1], names[n-1]
	}
	var sources []transfer.Source
	for _, name := range names {
		found, err := filepath.Glob(name)
		if err != nil || len(found) == 0 {
			found = []string{name}
		}
		for _, f := range found {
			sources = append(sources, transfer.Source{Side: transfer.Local{}, Name: f})
		}
	}
	return s.move(ctx, sources, s.side, s.at(to), o)
}

func (s *fileShell) move(ctx context.Context, sources []transfer.Source, to transfer.Side, name string, o scpOptions) error {
	x := &copying{app: s.app, client: s.client, session: s.session, options: o}
	bar := s.app.progress(o.quiet)
	failed, err := x.copy(ctx, bar, sources, to, name, "")
	bar.stop()
	if err == nil && failed > 0 {
		err = screen.Code(screen.ExitError)
	}
	return err
}

func (s *fileShell) remove(_ context.Context, args []string) error {
	recursive, force := false, false
	names, err := options(args, map[string]*bool{"r": &recursive, "f": &force})
	if err != nil {
		return err
	}
	return s.each(names, func(name string) error {
		info, err := s.side.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && force:
			return nil
		case err != nil:
			return err
		case info.IsDir() && !recursive:
			return errors.New("it is a directory: use rm -r or rmdir")
		case info.IsDir():
			return s.side.RemoveAll(name)
		}
		return s.side.Remove(name)
	})
}

func (s *fileShell) makeDir(_ context.Context, args []string) error {
	parents := false
	names, err := options(args, map[string]*bool{"p": &parents})
	if err != nil {
		return err
	}
	for _, name := range names {
		do := s.side.Client.Mkdir
		if parents {
			do = s.side.MkdirAll
		}
		if err := because(name, do(s.at(name))); err != nil {
			return err
		}
	}
	return nil
}

func (s *fileShell) rename(_ context.Context, args []string) error {
	return because(args[0], s.side.PosixRename(s.at(args[0]), s.at(args[1])))
}

func (s *fileShell) link(_ context.Context, args []string) error {
	if len(args) != 3 || args[0] != "-s" {
		return fault.Invalid("expected: ln -s target name")
	}
	return because(args[2], s.side.Symlink(args[1], s.at(args[2])))
}

func (s *fileShell) chmod(_ context.Context, args []string) error {
	mode, err := strconv.ParseUint(args[0], 8, 12)
	if err != nil || mode > 0o777 {
		return fault.Invalid("%q: expected permissions in octal digits, such as 644", args[0])
	}
	return s.each(args[1:], func(name string) error { return s.side.Chmod(name, fs.FileMode(mode)) })
}

func (s *fileShell) stat(_ context.Context, args []string) error {
	return s.each(args, func(name string) error {
		info, err := s.side.Stat(name)
		if err != nil {
			return err
		}
		return s.app.print("%s: %s, %d bytes, changed %s\n", screen.Escape(name), info.Mode(), info.Size(), info.ModTime().Format(time.RFC3339))
	})
}

func (s *fileShell) localDir(_ context.Context, args []string) error {
	to := screen.Env("HOME")
	if len(args) > 0 {
		to = args[0]
	}
	return because(to, os.Chdir(to))
}

func (s *fileShell) localWhere(context.Context, []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return because(".", err)
	}
	return s.app.print("%s\n", screen.Escape(dir))
}

func (s *fileShell) localList(_ context.Context, args []string) error {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return because(dir, err)
	}
	for _, e := range entries {
		if err := s.app.print("%s\n", screen.Escape(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *fileShell) help(context.Context, []string) error {
	pairs := make([][2]string, 0, len(s.commands()))
	for _, c := range s.commands() {
		pairs = append(pairs, [2]string{c.usage, c.help})
	}
	if err := screen.Pairs(s.app.Out, "", pairs...); err != nil {
		return err
	}
	return s.app.print("Names with spaces go in quotes; *, ? and [a-z] stand for names of files.\n")
}

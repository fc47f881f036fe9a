package screen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes of tsh and tctl; `tsh ssh` also passes on that of the command.
const (
	ExitOK    = 0
	ExitError = 1
	ExitUsage = 2
)

// Streams are what a command reads and writes: results go to Out, talk to Err.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Code is an error that only says what to exit with.
type Code int

// Error returns what the code is.
func (c Code) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// Usage returns an error for a mistake on the command line: exit code 2.
func Usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Execute runs the command line and returns the exit code. SIGINT and SIGTERM end
// the context of commands.
func Execute(root *cobra.Command, args []string, s Streams) int {
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usage("%s: %w", cmd.CommandPath(), err)
	})
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := root.ExecuteContext(context.WithValue(ctx, stopKey{}, stop))
	var code Code
	var usage usageError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(s.Err, "ERROR: %s\nRun '%s --help' for usage.\n", EscapeLines(err.Error()), root.Name())
		return ExitUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(s.Err, "interrupted")
		return ExitError
	}
	_, _ = fmt.Fprintf(s.Err, "ERROR: %s\n", EscapeLines(err.Error()))
	return ExitError
}

type stopKey struct{}

// ReleaseSignals makes signals act as usual again, for a command that handles them
// itself.
func ReleaseSignals(ctx context.Context) {
	if stop, ok := ctx.Value(stopKey{}).(context.CancelFunc); ok {
		stop()
	}
}

// Group makes cmd a command of nothing but subcommands.
func Group(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subs...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = ": did you mean " + strings.Join(near, " or ") + "?"
		}
		return Usage("%s: unknown command %q%s", cmd.CommandPath(), args[0], hint)
	}
	return cmd
}

// Args checks the number of arguments; most below zero is no limit.
func Args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return Usage("%s: an argument is missing: %s", cmd.CommandPath(), cmd.UseLine())
		}
		if most >= 0 && len(args) > most {
			return Usage("%s: unexpected argument %q: %s", cmd.CommandPath(), args[most], cmd.UseLine())
		}
		return nil
	}
}

// Logger returns a logger for --debug, or one that drops everything.
func Logger(debug bool, w io.Writer) *slog.Logger {
	if !debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Env returns the first of the environment variables that is set, or "".
func Env(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// Package main is the teleport daemon: it starts the services of a process, and
// writes the configuration file and the systemd unit that a host needs. It turns
// flags into calls and errors into exit codes, and has no logic of its own.
// Administration is tctl's work, using the cluster is tsh's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/process"
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// app is what commands write to.
type app struct {
	stdout, stderr io.Writer
	// configPath is what "-o file" means.
	configPath string
}

func main() {
	a := &app{stdout: os.Stdout, stderr: os.Stderr, configPath: config.DefaultPath}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	understood := false
	root := a.newRoot() //nolint:contextcheck // commands get theirs from cobra
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	a.report(err)
	var coded *exitError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case !understood, errors.Is(err, fault.ErrInvalid), errors.Is(err, fault.ErrUnsupported):
		return process.ExitUsage
	}
	return process.ExitError
}

// report prints an error. The problems of a configuration stay in the form that
// editors understand, one a line.
func (a *app) report(err error) {
	var problems *config.Error
	if errors.As(err, &problems) {
		fmt.Fprintln(a.stderr, problems.Error())
		fmt.Fprintf(a.stderr, "ERROR: %s\n", count(len(problems.Problems), "problem"))
		return
	}
	text := strings.TrimSpace(err.Error())
	if code := fault.Code(err); code != "" {
		// docs/reference/join-errors.md has a row for it.
		text += " [" + code + "]"
	}
	fmt.Fprintf(a.stderr, "ERROR: %s\n", text)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what + " in the configuration"
	}
	return fmt.Sprintf("%d %ss in the configuration", n, what)
}

func (a *app) newRoot() *cobra.Command {
	showVersion := false
	root := &cobra.Command{
		Use:   "teleport",
		Short: "Access to servers, applications and databases without open ports: the daemon",
		Long: `Access to servers, applications and databases without open ports: the daemon.

Exit codes: 0 done, 1 error, 2 wrong usage or configuration, 3 the cluster refused
the join, 4 the data directory cannot be used.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				return a.runVersion(versionOptions{})
			}
			return cmd.Help()
		},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	root.AddCommand(
		newStart(),
		a.newJoin(),
		a.newDoctor(),
		a.newConfigure(),
		a.newNode(),
		newAppCommands(),
		a.newDBCommands(),
		a.newInstall(),
		a.newTPM(),
		a.newKeypair(),
		a.newVersion(),
	)
	return root
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/process"
)

func (a *app) newJoin() *cobra.Command {
	var o startOptions
	dryRun, format := false, ""
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Rehearse the join of this machine and see each check",
		Long: `Rehearse the join that "teleport start" would make with the same configuration and
flags: the whole exchange runs, and nothing is issued, counted or saved. The daemon
may run meanwhile.

Exit codes: 0 it would be admitted, 3 it would be refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dryRun {
				return fault.Invalid("only a rehearsal is made here: give --dry-run, or join with `teleport start`")
			}
			return a.runJoin(cmd.Context(), o, format)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "rehearse")
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON)
	o.flags(cmd.Flags())
	cmd.AddCommand(a.newJoinOpenSSH())
	return cmd
}

func (a *app) runJoin(ctx context.Context, o startOptions, format string) error {
	cfg, err := o.load()
	if err != nil {
		return &exitError{process.ExitUsage, err}
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := process.Rehearse(ctx, process.Options{Config: cfg, Insecure: o.insecure, Log: log})
	if err != nil {
		return &exitError{process.ExitJoinRefused, err}
	}
	if format == screen.JSON {
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(e)
		if err != nil {
			return err
		}
		if err := screen.WriteRawJSON(a.stdout, text); err != nil {
			return err
		}
	} else if err := writeExplanation(a.stdout, e); err != nil {
		return err
	}
	if e.GetCode() != "" || e.GetMessage() != "" {
		return &exitError{process.ExitJoinRefused, fault.New(fault.ErrDenied, "the join would be refused").WithCode(e.GetCode())}
	}
	return nil
}

// writeExplanation prints a line per check, and the rules with their fields.
func writeExplanation(w io.Writer, e *joinv1.Explanation) error {
	var b strings.Builder
	for _, c := range e.GetChecks() {
		mark := "ok    "
		if !c.GetPassed() {
			mark = "FAILED"
		}
		fmt.Fprintf(&b, "%s  %-9s  %s\n", mark, c.GetName(), screen.Escape(c.GetDetail()))
	}
	for _, r := range e.GetRules() {
		verdict := "does not match"
		if r.GetMatched() {
			verdict = "matches"
		}
		fmt.Fprintf(&b, "\nRule %s %s\n", screen.Escape(r.GetPath()), verdict)
		for _, f := range r.GetFields() {
			mark := "no "
			if f.GetMatched() {
				mark = "yes"
			}
			got := f.GetGot()
			if got == "" {
				got = "(not proven)"
			}
			fmt.Fprintf(&b, "  %s  %s: %s", mark, screen.Escape(f.GetName()), screen.Escape(got))
			if f.GetWant() != "" {
				fmt.Fprintf(&b, " (the rule wants %s)", screen.Escape(f.GetWant()))
			}
			b.WriteString("\n")
		}
	}
	if e.GetCode() == "" && e.GetMessage() == "" {
		b.WriteString("\nThis machine would be admitted.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

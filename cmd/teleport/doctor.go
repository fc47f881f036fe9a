package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/client/screen"
	"teleport/internal/config"
	"teleport/internal/doctor"
	"teleport/internal/process"
)

func (a *app) newDoctor() *cobra.Command {
	var o startOptions
	format, proxyServer := "", ""
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out why this machine does not get into the cluster",
		Long: `Walk the way of a join with the configuration and flags of "teleport start": data
directory, identity, DNS, TCP, TLS, ALPN, balancers, clock, token, and a rehearsal
of the join. Each step is ok, broken or unknown; of the first broken one it says
what to do. Nothing is changed, and the daemon may run meanwhile.

Exit codes: 0 nothing is broken, 1 something is, 2 wrong usage.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runDoctor(cmd.Context(), o, proxyServer, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON)
	cmd.Flags().StringVar(&proxyServer, "proxy-server", "", "address of the Proxy Service to join (host:port)")
	o.flags(cmd.Flags())
	return cmd
}

func (a *app) runDoctor(ctx context.Context, o startOptions, proxyServer, format string) error {
	cfg, err := o.loadFor(proxyServer)
	var report *doctor.Report
	if err != nil {
		report = &doctor.Report{FirstBroken: "configuration", Steps: []doctor.Step{{
			Name: "configuration", Status: doctor.Broken, Detail: strings.ReplaceAll(err.Error(), "\n", "; "), Fix: "correct it; `teleport configure --test FILE` checks a file",
		}}}
	} else {
		log := slog.New(slog.DiscardHandler)
		report = doctor.Examine(ctx, doctor.Options{
			Config: cfg, Insecure: o.insecure,
			Rehearse: func(ctx context.Context) (*joinv1.Explanation, error) {
				return process.Rehearse(ctx, process.Options{Config: cfg, Insecure: o.insecure, Log: log})
			},
		})
	}
	if format == screen.JSON {
		err = screen.WriteJSON(a.stdout, report)
	} else {
		err = writeReport(a.stdout, report)
	}
	if err == nil && report.FirstBroken != "" {
		err = &exitError{code: process.ExitError, err: fmt.Errorf("broken: %s", report.FirstBroken)}
	}
	return err
}

// loadFor is load with the address of a Proxy to join. Without a file and roles the
// machine is taken for a node.
func (o startOptions) loadFor(proxyServer string) (*config.Config, error) {
	if proxyServer == "" {
		return o.load()
	}
	if _, err := os.Stat(config.DefaultPath); o.configFile == "" && o.roles == "" && errors.Is(err, os.ErrNotExist) {
		o.roles = "node"
	}
	o.proxyServer = proxyServer
	return o.load()
}

// writeReport prints a line per step, and what to do about the first broken one.
func writeReport(w io.Writer, r *doctor.Report) error {
	width := 0
	for _, s := range r.Steps {
		width = max(width, len(s.Name))
	}
	var b strings.Builder
	for _, s := range r.Steps {
		mark := string(s.Status)
		if s.Status == doctor.Broken {
			mark = "BROKEN"
		}
		detail := s.Detail
		if s.Code != "" {
			detail += " [" + s.Code + "]"
		}
		fmt.Fprintf(&b, "%-7s  %-*s  %s\n", mark, width, s.Name, screen.Escape(detail))
	}
	if s := r.Broken(); s != nil {
		fmt.Fprintf(&b, "\nMend first: %s. To do: %s.\n", s.Name, screen.Escape(strings.TrimSuffix(s.Fix, ".")))
	} else {
		b.WriteString("\nNothing is broken.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

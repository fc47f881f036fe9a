package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/types"
)

type lsOptions struct {
	format  string
	verbose bool
	labels  string
}

func newLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the servers that you may use, e.g. tsh ls env=prod,os=linux",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return runLs(cmd.Context(), a, o)
		},
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML, screen.Names)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show host ids and versions too")
	return cmd
}

func runLs(ctx context.Context, a *app, o lsOptions) error {
	want, err := types.ParseLabels(o.labels)
	if err != nil {
		return err
	}
	c, _, err := a.client(ctx)
	if err != nil {
		return err
	}
	conn, err := c.Auth()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	nodes, err := client.Servers(ctx, conn, types.KindNode, want)
	if err != nil {
		return err
	}
	return a.writeNodes(nodes, o)
}

func (a *app) writeNodes(nodes []*typesv1.Server, o lsOptions) error {
	resources := make([]types.Resource, len(nodes))
	for i, n := range nodes {
		resources[i] = n
	}
	switch o.format {
	case screen.JSON:
		text, err := types.MarshalJSON(resources...)
		if err != nil {
			return err
		}
		return screen.WriteRawJSON(a.Out, text)
	case screen.YAML:
		text, err := types.MarshalYAML(resources...)
		if err != nil {
			return err
		}
		return screen.WriteText(a.Out, text)
	case screen.Names:
		for _, n := range nodes {
			if err := a.print("%s\n", screen.Escape(n.GetSpec().GetHostname())); err != nil {
				return err
			}
		}
		return nil
	}
	titles := []string{"Node Name", "Address", "Labels"}
	if o.verbose {
		titles = []string{"Node Name", "Node ID", "Address", "Version", "Labels"}
	}
	table := screen.NewTable(titles...)
	for _, n := range nodes {
		spec, labels := n.GetSpec(), screen.Labels(types.ServerLabels(n))
		if o.verbose {
			table.Row(spec.GetHostname(), n.GetMetadata().GetName(), address(spec), spec.GetVersion(), labels)
			continue
		}
		table.Row(spec.GetHostname(), address(spec), labels)
	}
	return table.Write(a.Out)
}

func address(s *typesv1.ServerSpec) string {
	if s.GetUseTunnel() {
		return "⟵ Tunnel"
	}
	return s.GetAddr()
}

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

func newLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the servers that you may use, e.g. tsh ls env=prod,os=linux",
		Long: "List the servers that your roles let you connect to. Labels, --query and --search choose among them.\n\n" +
			`A query compares name and labels["key"] with ==, !=, &&, || and !, and calls equals, exists, search, hasPrefix, split and contains:` + "\n" +
			`  tsh ls --query='labels["env"] == "prod" && hasPrefix(name, "web-")'`,
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return runLs(cmd.Context(), a, o)
		},
	}
	o.flags(cmd, "servers", screen.Text, screen.JSON, screen.YAML, screen.Names)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show host ids and versions too")
	return cmd
}

func runLs(ctx context.Context, a *app, o lsOptions) error {
	choice, err := o.choice(types.KindNode)
	if err != nil {
		return err
	}
	lists, missing, err := listings(ctx, a, o, func(ctx context.Context, s *session) ([]*typesv1.Server, error) {
		return a.nodes(ctx, s, choice)
	})
	if err != nil {
		return err
	}
	if err := a.writeNodes(lists, o); err != nil {
		return err
	}
	return missing
}

// nodes lists the servers of one session's cluster.
func (a *app) nodes(ctx context.Context, s *session, choice client.Choice) ([]*typesv1.Server, error) {
	c, err := a.clientOf(s)
	if err != nil {
		return nil, err
	}
	conn, err := c.Auth()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return choice.Servers(ctx, conn)
}

func (a *app) writeNodes(lists []listing[*typesv1.Server], o lsOptions) error {
	if o.format == screen.Names {
		for _, l := range lists {
			for _, n := range l.items {
				if err := a.print("%s\n", screen.Escape(n.GetSpec().GetHostname())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	titles := []string{"Node Name", "Address", "Labels"}
	if o.verbose {
		titles = []string{"Node Name", "Node ID", "Address", "Version", "Labels"}
	}
	return writeListings(a, o, lists, titles, func(_ client.Profile, n *typesv1.Server) []string {
		spec, labels := n.GetSpec(), screen.Labels(types.ServerLabels(n))
		if o.verbose {
			return []string{spec.GetHostname(), n.GetMetadata().GetName(), address(spec), spec.GetVersion(), labels}
		}
		return []string{spec.GetHostname(), address(spec), labels}
	})
}

func address(s *typesv1.ServerSpec) string {
	if s.GetUseTunnel() {
		return "⟵ Tunnel"
	}
	return s.GetAddr()
}

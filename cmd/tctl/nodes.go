package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/types"
)

func newNodes(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "nodes", Aliases: []string{"node"}, Short: "Invite and list servers"},
		newNodesAdd(a), newNodesLs(a))
}

func newNodesAdd(a *app) *cobra.Command {
	var o tokenOptions
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Make a join token for a server; the same as tokens add",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runTokensAdd(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.roles, "roles", "node", "what may join, comma-separated")
	f.DurationVar(&o.ttl, "ttl", defaultTokenTTL, "how long the token works")
	f.StringVar(&o.value, "token", "", "secret to use instead of a random one (it shows in the shell's history)")
	f.StringVar(&o.labels, "labels", "", "labels that every machine that joins gets, a=b,c=d")
	f.Uint32Var(&o.maxUses, "max-uses", 0, "how many machines may join; 0 is no limit")
	o.formatFlag(cmd)
	return cmd
}

type nodesLsOptions struct {
	labels, query, search, format string
	verbose                       bool
}

func newNodesLs(a *app) *cobra.Command {
	var o nodesLsOptions
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the servers of the cluster, e.g. tctl nodes ls env=prod",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return runNodesLs(cmd.Context(), a, o)
		},
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show ids in full")
	cmd.Flags().StringVar(&o.query, "query", "", `only the servers that this is true of, e.g. 'labels["env"] == "prod"'`)
	cmd.Flags().StringVar(&o.search, "search", "", "only the servers whose name, id or labels contain all of these words")
	return cmd
}

func runNodesLs(ctx context.Context, a *app, o nodesLsOptions) error {
	choice, err := client.NewChoice(types.KindNode, o.labels, o.query, o.search)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		nodes, err := choice.Servers(ctx, conn)
		if err != nil {
			return err
		}
		if o.format != screen.Text {
			resources := make([]types.Resource, len(nodes))
			for i, n := range nodes {
				resources[i] = n
			}
			return a.writeResources(o.format, resources)
		}
		table := screen.NewTable("Host", "UUID", "Public Address", "Labels", "Version")
		for _, n := range nodes {
			id := n.GetMetadata().GetName()
			if !o.verbose {
				id = screen.Short(id)
			}
			table.Row(n.GetSpec().GetHostname(), id, publicAddr(n.GetSpec()), screen.Labels(types.ServerLabels(n)), n.GetSpec().GetVersion())
		}
		return table.Write(a.Out)
	})
}

// publicAddr is empty for a server behind a tunnel.
func publicAddr(s *typesv1.ServerSpec) string {
	if len(s.GetPublicAddrs()) > 0 {
		return strings.Join(s.GetPublicAddrs(), ",")
	}
	if s.GetUseTunnel() {
		return ""
	}
	return s.GetAddr()
}

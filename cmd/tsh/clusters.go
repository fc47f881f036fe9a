package main

import (
	"context"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
)

type clustersOptions struct {
	format  string
	quiet   bool
	verbose bool
}

func newClusters(a *app) *cobra.Command {
	var o clustersOptions
	cmd := &cobra.Command{
		Use:   "clusters",
		Short: "List the clusters behind the Proxy that you are logged in to",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runClusters(cmd.Context(), a, o) },
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "no titles")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "accepted; nothing is left out anyway")
	return cmd
}

// clusterInfo is what clusters says about one cluster.
type clusterInfo struct {
	Name     string            `json:"cluster_name" yaml:"cluster_name"`
	Status   string            `json:"status" yaml:"status"`
	Type     string            `json:"cluster_type" yaml:"cluster_type"`
	Labels   map[string]string `json:"labels" yaml:"labels"`
	Selected bool              `json:"selected" yaml:"selected"`
}

func runClusters(ctx context.Context, a *app, o clustersOptions) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if _, err := a.clientOf(s); err != nil {
		return err // expired
	}
	info := clusterInfo{Name: s.profile.Cluster, Status: "online", Type: "root", Selected: true, Labels: map[string]string{}}
	proxy, err := client.ConnectProxy(ctx, client.ProxyConfig{
		Addr: s.profile.Proxy, Known: s.credentials.Trust.Pins(), Insecure: a.insecure, Log: screen.Logger(a.debug, a.Err),
	})
	if err == nil {
		_, err = proxy.Ping(ctx)
	}
	if err != nil {
		info.Status = "offline"
		a.note(err.Error())
	}
	switch o.format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, []clusterInfo{info})
	case screen.YAML:
		return screen.WriteYAML(a.Out, []clusterInfo{info})
	}
	if o.quiet {
		return a.print("%s %s %s  *\n", screen.Escape(info.Name), info.Status, info.Type)
	}
	table := screen.NewTable("Cluster Name", "Status", "Cluster Type", "Labels", "Selected")
	table.Row(info.Name, info.Status, info.Type, screen.Labels(info.Labels), "*")
	return table.Write(a.Out)
}

package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

type lsOptions struct {
	format, query, search, cluster string
	verbose, all                   bool
	labels                         string
}

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
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML, screen.Names)
	f := cmd.Flags()
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show host ids and versions too")
	f.StringVar(&o.query, "query", "", `only the servers that this is true of, e.g. 'labels["env"] == "prod"'`)
	f.StringVar(&o.search, "search", "", "only the servers whose name, id or labels contain all of these words")
	f.BoolVarP(&o.all, "all", "R", false, "list the servers of every cluster that you are logged in to")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

// listing are the servers of one cluster.
type listing struct {
	profile client.Profile
	nodes   []*typesv1.Server
}

func runLs(ctx context.Context, a *app, o lsOptions) error {
	choice, err := client.NewChoice(types.KindNode, o.labels, o.query, o.search)
	if err != nil {
		return err
	}
	choice.Usable = true
	if o.all {
		return a.listAll(ctx, choice, o)
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	nodes, err := a.nodes(ctx, s, choice)
	if err != nil {
		return err
	}
	return a.writeNodes([]listing{{s.profile, nodes}}, o)
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

// listAll lists the servers of every profile. A cluster that cannot be asked is named,
// and the others are listed.
func (a *app) listAll(ctx context.Context, choice client.Choice, o lsOptions) error {
	if a.identityFile() != "" {
		return screen.Usage("--all lists the clusters of your logins: it does not go with an identity file")
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	profiles, err := home.Profiles()
	if err != nil {
		return err
	}
	if len(profiles) == 0 {
		_, err := home.Find("", "")
		return err
	}
	var lists []listing
	failed := 0
	for _, p := range profiles {
		creds, err := home.Credentials(ctx, p)
		var nodes []*typesv1.Server
		if err == nil {
			nodes, err = a.nodes(ctx, &session{p, creds}, choice)
		}
		if err != nil {
			failed++
			a.note(p.Cluster + ": " + err.Error())
			continue
		}
		lists = append(lists, listing{p, nodes})
	}
	if err := a.writeNodes(lists, o); err != nil {
		return err
	}
	if failed > 0 {
		return fault.Unreachable("%d of %d clusters could not be listed", failed, len(profiles))
	}
	return nil
}

func (a *app) writeNodes(lists []listing, o lsOptions) error {
	var resources []types.Resource
	for _, l := range lists {
		for _, n := range l.nodes {
			resources = append(resources, n)
		}
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
		for _, r := range resources {
			if err := a.print("%s\n", screen.Escape(r.(*typesv1.Server).GetSpec().GetHostname())); err != nil {
				return err
			}
		}
		return nil
	}
	titles := []string{"Node Name", "Address", "Labels"}
	if o.verbose {
		titles = []string{"Node Name", "Node ID", "Address", "Version", "Labels"}
	}
	if o.all {
		titles = append([]string{"Proxy", "Cluster"}, titles...)
	}
	table := screen.NewTable(titles...)
	for _, l := range lists {
		for _, n := range l.nodes {
			spec, labels := n.GetSpec(), screen.Labels(types.ServerLabels(n))
			cells := []string{spec.GetHostname(), address(spec), labels}
			if o.verbose {
				cells = []string{spec.GetHostname(), n.GetMetadata().GetName(), address(spec), spec.GetVersion(), labels}
			}
			if o.all {
				cells = append([]string{l.profile.Host(), l.profile.Cluster}, cells...)
			}
			table.Row(cells...)
		}
	}
	return table.Write(a.Out)
}

func address(s *typesv1.ServerSpec) string {
	if s.GetUseTunnel() {
		return "⟵ Tunnel"
	}
	return s.GetAddr()
}

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

func newApps(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "apps", Aliases: []string{"app"}, Short: "List applications"}, newAppsLs(a))
}

func newDatabases(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "db", Aliases: []string{"databases"}, Short: "List databases"}, newDatabasesLs(a))
}

// servedOptions are those of a list of who serves something.
type servedOptions struct {
	labels, query, search, format string
	verbose                       bool
}

// command makes the command; what is what is listed.
func (o *servedOptions) command(what, example string, run func(ctx context.Context) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the " + what + " that agents serve, a row for each agent, e.g. " + example,
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return run(cmd.Context())
		},
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show the ids of the agents and what they found at the target, too")
	cmd.Flags().StringVar(&o.query, "query", "", `only the `+what+` that this is true of, e.g. 'labels["env"] == "prod"'`)
	cmd.Flags().StringVar(&o.search, "search", "", "only the "+what+" whose name, description or labels contain all of these words")
	return cmd
}

// row is one of them.
type servedRow struct {
	cells          []string
	hostID, health string
}

// listServed lists those of a kind.
func listServed[T types.Resource](ctx context.Context, a *app, o servedOptions, kind string, titles []string, row func(T) servedRow) error {
	choice, err := client.NewChoice(kind, o.labels, o.query, o.search)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		servers, err := client.Serving[T](ctx, conn, choice)
		if err != nil {
			return err
		}
		if o.format != screen.Text {
			resources := make([]types.Resource, len(servers))
			for i, s := range servers {
				resources[i] = s
			}
			return a.writeResources(o.format, resources)
		}
		if o.verbose {
			titles = append(titles, "Host UUID", "Health")
		}
		table := screen.NewTable(titles...)
		for _, s := range servers {
			r := row(s)
			if o.verbose {
				r.cells = append(r.cells, r.hostID, r.health)
			}
			table.Row(r.cells...)
		}
		return table.Write(a.Out)
	})
}

func newAppsLs(a *app) *cobra.Command {
	var o servedOptions
	return o.command("applications", "tctl apps ls env=prod", func(ctx context.Context) error {
		return listServed(ctx, a, o, types.KindAppServer, []string{"Host", "Name", "Public Address", "URI", "Labels", "Version"},
			func(s *typesv1.AppServer) servedRow {
				app := s.GetSpec().GetApp()
				return servedRow{
					cells: []string{
						s.GetSpec().GetHostname(), app.GetMetadata().GetName(), app.GetSpec().GetPublicAddr(), app.GetSpec().GetUri(),
						screen.Labels(types.AppServerLabels(s)), s.GetSpec().GetSoftwareVersion(),
					},
					hostID: s.GetSpec().GetHostId(), health: s.GetSpec().GetHealth(),
				}
			})
	})
}

func newDatabasesLs(a *app) *cobra.Command {
	var o servedOptions
	return o.command("databases", "tctl db ls env=prod", func(ctx context.Context) error {
		return listServed(ctx, a, o, types.KindDatabaseServer, []string{"Host", "Name", "Protocol", "URI", "Labels", "Version"},
			func(s *typesv1.DatabaseServer) servedRow {
				db := s.GetSpec().GetDatabase()
				return servedRow{
					cells: []string{
						s.GetSpec().GetHostname(), db.GetMetadata().GetName(), db.GetSpec().GetProtocol(), db.GetSpec().GetUri(),
						screen.Labels(types.DatabaseServerLabels(s)), s.GetSpec().GetSoftwareVersion(),
					},
					hostID: s.GetSpec().GetHostId(), health: s.GetSpec().GetHealth(),
				}
			})
	})
}

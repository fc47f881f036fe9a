package main

import (
	"context"

	"github.com/spf13/cobra"

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

// flags adds those of a command that lists what is called so.
func (o *lsOptions) flags(cmd *cobra.Command, what string, formats ...string) {
	screen.FormatFlag(cmd, &o.format, formats...)
	f := cmd.Flags()
	f.StringVar(&o.query, "query", "", `only the `+what+` that this is true of, e.g. 'labels["env"] == "prod"'`)
	f.StringVar(&o.search, "search", "", "only the "+what+" whose name, id or labels contain all of these words")
	f.BoolVarP(&o.all, "all", "R", false, "list the "+what+" of every cluster that you are logged in to")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
}

// choice reads what is wanted of a kind of which the caller may use some.
func (o *lsOptions) choice(kind string) (client.Choice, error) {
	c, err := client.NewChoice(kind, o.labels, o.query, o.search)
	c.Usable = true
	return c, err
}

// listing are the resources of one cluster.
type listing[T any] struct {
	profile client.Profile
	items   []T
}

// listings lists what there is in the cluster of the session, or with all in that of
// every profile. A cluster that cannot be asked is named, and the others are listed;
// missing is then what to exit with.
func listings[T any](ctx context.Context, a *app, o lsOptions, list func(context.Context, *session) ([]T, error)) (lists []listing[T], missing, err error) {
	if !o.all {
		s, err := a.session(ctx)
		if err != nil {
			return nil, nil, err
		}
		if err := s.inCluster(o.cluster); err != nil {
			return nil, nil, err
		}
		items, err := list(ctx, s)
		return []listing[T]{{s.profile, items}}, nil, err
	}
	if a.identityFile() != "" {
		return nil, nil, screen.Usage("--all lists the clusters of your logins: it does not go with an identity file")
	}
	home, err := a.home()
	if err != nil {
		return nil, nil, err
	}
	profiles, err := home.Profiles()
	if err != nil {
		return nil, nil, err
	}
	if len(profiles) == 0 {
		_, err := home.Find("", "")
		return nil, nil, err
	}
	for _, p := range profiles {
		creds, err := home.Credentials(ctx, p)
		var items []T
		if err == nil {
			items, err = list(ctx, &session{p, creds})
		}
		if err != nil {
			a.note(p.Cluster + ": " + err.Error())
			continue
		}
		lists = append(lists, listing[T]{p, items})
	}
	if failed := len(profiles) - len(lists); failed > 0 {
		missing = fault.Unreachable("%d of %d clusters could not be listed", failed, len(profiles))
	}
	return lists, missing, nil
}

// writeListings writes resources as JSON or YAML, otherwise as a table of what row
// says, with the Proxy and the cluster in front if there are several.
func writeListings[T types.Resource](a *app, o lsOptions, lists []listing[T], titles []string, row func(p client.Profile, item T) []string) error {
	var resources []types.Resource
	for _, l := range lists {
		for _, item := range l.items {
			resources = append(resources, item)
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
	}
	if o.all {
		titles = append([]string{"Proxy", "Cluster"}, titles...)
	}
	table := screen.NewTable(titles...)
	for _, l := range lists {
		for _, item := range l.items {
			cells := row(l.profile, item)
			if o.all {
				cells = append([]string{l.profile.Host(), l.profile.Cluster}, cells...)
			}
			table.Row(cells...)
		}
	}
	return table.Write(a.Out)
}

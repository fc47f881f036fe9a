package main

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/types"
)

type sessionsOptions struct {
	format, kinds, cluster string
	verbose                bool
}

func newSessions(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "sessions", Short: "Sessions that run now"}, newSessionsLs(a))
}

func newSessionsLs(a *app) *cobra.Command {
	var o sessionsOptions
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the sessions that run now: your own, and those that you may join",
		Args:  screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runSessionsLs(cmd.Context(), a, o)
		},
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	f := cmd.Flags()
	f.StringVar(&o.kinds, "kind", strings.Join(types.SessionKinds(), ","), "kinds of sessions")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show whose the sessions are, who is in them and who is missing")
	return cmd
}

func runSessionsLs(ctx context.Context, a *app, o sessionsOptions) error {
	kinds := strings.Split(o.kinds, ",")
	for _, k := range kinds {
		if !slices.Contains(types.SessionKinds(), k) {
			return screen.Usage("--kind=%s: use %s", o.kinds, strings.Join(types.SessionKinds(), ","))
		}
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	conn, err := c.Auth()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	found, err := client.List(ctx, conn, types.KindSessionTracker)
	if err != nil {
		return err
	}
	var list []*typesv1.SessionTracker
	for _, r := range found {
		if t, ok := r.(*typesv1.SessionTracker); ok && slices.Contains(kinds, t.GetSpec().GetSessionKind()) {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(x, y *typesv1.SessionTracker) int {
		return cmp.Or(y.GetSpec().GetCreated().AsTime().Compare(x.GetSpec().GetCreated().AsTime()),
			cmp.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName()))
	})
	return a.writeSessions(list, o)
}

func (a *app) writeSessions(list []*typesv1.SessionTracker, o sessionsOptions) error {
	if o.format != screen.Text {
		resources := make([]types.Resource, len(list))
		for i, t := range list {
			resources[i] = t
		}
		if o.format == screen.JSON {
			text, err := types.MarshalJSON(resources...)
			if err != nil {
				return err
			}
			return screen.WriteRawJSON(a.Out, text)
		}
		text, err := types.MarshalYAML(resources...)
		if err != nil {
			return err
		}
		return screen.WriteText(a.Out, text)
	}
	titles := []string{"ID", "Kind", "Created", "Hostname", "Address", "Login", "Command"}
	if o.verbose {
		titles = append(titles, "User", "State", "Participants", "Waits For", "Invited", "Reason")
	}
	table := screen.NewTable(titles...)
	for _, t := range list {
		s := t.GetSpec()
		created := s.GetCreated().AsTime().UTC().Format("2006-01-02 15:04:05 UTC")
		cells := []string{t.GetMetadata().GetName(), s.GetSessionKind(), created, s.GetHostname(), s.GetServerId(), s.GetLogin(), s.GetCommand()}
		if o.verbose {
			cells = append(cells, s.GetOwner(), s.GetState(), types.ParticipantsText(t), strings.Join(s.GetNeeds(), "; "), strings.Join(s.GetInvited(), ","), s.GetReason())
		}
		table.Row(cells...)
	}
	return table.Write(a.Out)
}

package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newResolve(a *app) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "resolve [user@]host",
		Short: "Say which server a name means; exit code 1 if none or several (for Match exec of OpenSSH)",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runResolve(cmd.Context(), a, args[0], format, quiet)
		},
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing, errors included: only the exit code counts")
	return cmd
}

func runResolve(ctx context.Context, a *app, name, format string, quiet bool) error {
	node, s, err := a.resolve(ctx, name)
	switch {
	case err != nil && quiet:
		return screen.Code(screen.ExitError)
	case err != nil:
		return err
	case quiet:
		return nil
	}
	return a.writeNodes([]listing[*typesv1.Server]{{s.profile, []*typesv1.Server{node}}}, lsOptions{format: format, verbose: true})
}

// resolve finds the one server that the name means, as the Proxy would.
func (a *app) resolve(ctx context.Context, name string) (*typesv1.Server, *session, error) {
	t, err := parseTarget(name, false)
	if err != nil {
		return nil, nil, err
	}
	labels, wanted := "", strings.ToLower(t.host)
	if t.byLabel() {
		labels, wanted = t.host, ""
	}
	choice, err := client.NewChoice(types.KindNode, labels, "", "")
	if err != nil {
		return nil, nil, err
	}
	choice.Usable = true
	s, err := a.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	if wanted != "" {
		// Of "web.prod" in cluster "prod" the name may be either.
		choice = choice.Narrowed(strings.TrimSuffix(wanted, "."+strings.ToLower(s.profile.Cluster)))
	}
	nodes, err := a.nodes(ctx, s, choice)
	if err != nil {
		return nil, nil, err
	}
	found := nodes
	if wanted != "" {
		found = called(nodes, wanted, strings.ToLower(s.profile.Cluster))
	}
	switch len(found) {
	case 0:
		return nil, nil, fault.NotFound("there is no server %q that you may connect to: see tsh ls", t.host)
	case 1:
		return found[0], s, nil
	}
	ids := make([]string, len(found))
	for i, n := range found {
		ids[i] = n.GetMetadata().GetName()
	}
	return nil, nil, fault.Invalid("%d servers are named %q, say which by its id: %s", len(found), t.host, strings.Join(ids, ", "))
}

// called returns the servers with the name: a host id goes before host names.
func called(nodes []*typesv1.Server, name, cluster string) []*typesv1.Server {
	names := []string{name}
	if bare, ok := strings.CutSuffix(name, "."+cluster); ok && bare != "" {
		names = append(names, bare)
	}
	var out []*typesv1.Server
	for _, n := range nodes {
		if slices.Contains(names, strings.ToLower(n.GetMetadata().GetName())) {
			return []*typesv1.Server{n}
		}
		if slices.Contains(names, strings.ToLower(n.GetSpec().GetHostname())) {
			out = append(out, n)
		}
	}
	return out
}

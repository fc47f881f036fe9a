package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newJoin(a *app) *cobra.Command {
	var mode, cluster string
	cmd := &cobra.Command{
		Use:   "join <session>",
		Short: "Take part in a session of somebody else",
		Long: "Take part in a session of somebody else, which tsh sessions ls lists by its id.\n\n" +
			"An observer sees it, and leaves with Ctrl-C. A peer sees it and types, and leaves with ~. at the start\n" +
			"of a line. A moderator sees it, ends it for everybody with t, and leaves with Ctrl-C.",
		Args: screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runJoin(cmd.Context(), a, mode, cluster, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVarP(&mode, "mode", "m", types.ModeObserver, "observer, peer or moderator")
	f.StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	a.resumeFlag(f)
	return cmd
}

func runJoin(ctx context.Context, a *app, mode, cluster, id string) error {
	if err := errors.Join(types.ValidMode(mode), types.ValidSessionID(id)); err != nil {
		return screen.Usage("%v", err)
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(cluster); err != nil {
		return err
	}
	t, err := findSession(ctx, c, id)
	if err != nil {
		return err
	}
	screen.ReleaseSignals(ctx)
	return c.Join(context.WithoutCancel(ctx), client.Join{
		HostID: t.GetSpec().GetServerId(), Session: id, Mode: mode,
		Term: screen.Env("TERM"), Stdin: a.In, Stdout: a.Out, Stderr: a.Err,
	})
}

// findSession asks Auth which host a session is on.
func findSession(ctx context.Context, c *client.Client, id string) (*typesv1.SessionTracker, error) {
	conn, err := c.Auth()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	r, err := getSession(ctx, conn, id)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.NotFound("there is no session %s that you may join: see tsh sessions ls", id)
	}
	return r, err
}

func getSession(ctx context.Context, conn grpc.ClientConnInterface, id string) (*typesv1.SessionTracker, error) {
	resp, err := resourcev1.NewResourceServiceClient(conn).GetResource(ctx, &resourcev1.GetResourceRequest{Kind: types.KindSessionTracker, Name: id})
	if err != nil {
		return nil, err
	}
	r, err := types.FromAny(resp.GetResource())
	if err != nil {
		return nil, err
	}
	t, ok := r.(*typesv1.SessionTracker)
	if !ok {
		return nil, fault.Invalid("the cluster sent a %s instead of a session", r.GetKind())
	}
	return t, nil
}

// company is what tsh ssh says about those who may join its session.
type company struct {
	invite  string
	reason  string
	verbose bool
}

func (o *company) flags(f *pflag.FlagSet) {
	f.StringVar(&o.invite, "invite", "", "NAME,...: people who are asked to join the session; those who see it see that")
	f.StringVar(&o.reason, "reason", "", "what the session is for, for those who see it")
	f.BoolVar(&o.verbose, "participant-req", false, "say in full who has to be in the session, if somebody has to")
}

func (o *company) check() error {
	if o.invite == "" {
		return nil
	}
	if err := types.ValidInvitation(strings.Split(o.invite, ",")); err != nil {
		return screen.Usage("--invite: %v", err)
	}
	return nil
}

// environ are the variables that tell the node.
func (o *company) environ() []string {
	var out []string
	if o.invite != "" {
		out = append(out, "TELEPORT_SESSION_INVITED="+o.invite)
	}
	if o.reason != "" {
		out = append(out, "TELEPORT_SESSION_REASON="+o.reason)
	}
	if o.verbose {
		out = append(out, "TELEPORT_SESSION_PARTICIPANT_REQ=1")
	}
	return out
}

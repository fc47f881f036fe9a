package main

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// explainResource says what a user may do at an application or a database. Several
// agents may serve it, and its labels may differ from one to the other: what is decided
// for the first that allows it is shown, or else for the first.
func (a *app) explainResource(ctx context.Context, conn grpc.ClientConnInterface, w *world, name string, what asked) (*explanation, error) {
	i := slices.IndexFunc(w.users, func(u *typesv1.User) bool { return u.GetMetadata().GetName() == name })
	if i < 0 {
		return nil, fault.NotFound("there is no user %q: tctl users ls shows those that there are", name)
	}
	labels, err := servedLabels(ctx, conn, what)
	if err != nil {
		return nil, err
	}
	out := &explanation{User: name, App: what.app, DB: what.db, DBUser: what.dbUser, DBName: what.dbName}
	for n, server := range labels {
		s := w.subject(w.users[i])
		s.Locks, s.ServerID = w.locks, server.hostID
		var d access.Decision
		var verdicts []access.Verdict
		if what.app != "" {
			d, verdicts = access.ExplainApp(s, server.labels)
		} else {
			login := access.DatabaseLogin{User: what.dbUser, Name: what.dbName, AnyUser: what.dbUser == "", AnyName: what.dbName == ""}
			d, verdicts = access.ExplainDatabase(s, server.labels, login)
		}
		if n == 0 || d.Allowed {
			out.fill(w, w.users[i], d, verdicts)
		}
		if d.Allowed {
			break
		}
	}
	return out, nil
}

// served is where a resource is served.
type served struct {
	hostID string
	labels map[string]string
}

// servedLabels returns the agents that serve a resource.
func servedLabels(ctx context.Context, conn grpc.ClientConnInterface, what asked) ([]served, error) {
	var out []served
	if what.app != "" {
		list, err := listOf[*typesv1.AppServer](ctx, conn, types.KindAppServer)
		for _, s := range list {
			if s.GetSpec().GetApp().GetMetadata().GetName() == what.app {
				out = append(out, served{s.GetSpec().GetHostId(), types.AppServerLabels(s)})
			}
		}
		if len(out) == 0 && err == nil {
			err = fault.NotFound("no agent serves an application %q: tctl apps ls shows those that there are", what.app)
		}
		return out, err
	}
	list, err := listOf[*typesv1.DatabaseServer](ctx, conn, types.KindDatabaseServer)
	for _, s := range list {
		if s.GetSpec().GetDatabase().GetMetadata().GetName() == what.db {
			out = append(out, served{s.GetSpec().GetHostId(), types.DatabaseServerLabels(s)})
		}
	}
	if len(out) == 0 && err == nil {
		err = fault.NotFound("no agent serves a database %q: tctl db ls shows those that there are", what.db)
	}
	return out, err
}

package authapi

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/authz"
	"teleport/internal/fault"
	"teleport/internal/retry"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// serverTTL is how long a server stays listed after its stream broke.
	serverTTL = 10 * time.Minute
	// refreshInterval is how often a stream renews that, with jitter.
	refreshInterval = 5 * time.Minute
	// freshEnough: a server that expires later than this need not be written again.
	freshEnough = serverTTL - refreshInterval/2
)

func refreshAfter() time.Duration {
	return refreshInterval*3/4 + retry.Jitter(refreshInterval/2)
}

// announce writes or withdraws a server of the calling host.
func (a *agentStream) announce(ctx context.Context, m *agentv1.Announce) error {
	r, err := types.FromAny(m.GetServer())
	if err != nil {
		return err
	}
	server, ok := r.(*typesv1.Server)
	if !ok {
		return fault.Invalid("announced a %s: only servers are announced", r.GetKind())
	}
	kind, name := server.GetKind(), server.GetMetadata().GetName()
	if err := authz.MayAnnounce(a.caller, kind, name); err != nil {
		return err
	}
	a.announced = slices.DeleteFunc(a.announced, func(other *typesv1.Server) bool { return other.GetKind() == kind })
	if m.GetGone() {
		err := a.server.cfg.Store.Tx().Delete(kind, name, "").Commit(ctx)
		if errors.Is(err, fault.ErrNotFound) {
			return nil
		}
		return err
	}
	server, err = a.settle(ctx, server)
	if err != nil {
		return err
	}
	a.announced = append(a.announced, server)
	return a.keep(ctx, server)
}

// settle makes of what an agent says of its server what Auth stores: the name is
// that of the certificate, and the labels of the join token win.
func (a *agentStream) settle(ctx context.Context, said *typesv1.Server) (*typesv1.Server, error) {
	host := a.caller.Host()
	labels := maps.Clone(said.GetMetadata().GetLabels())
	cmdLabels := maps.Clone(said.GetSpec().GetCmdLabels())
	instance, err := store.Get[*typesv1.Instance](ctx, a.server.cfg.Store, types.KindInstance, host.ID)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return nil, err
	}
	for k, v := range instance.GetSpec().GetLabels() {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v
		delete(cmdLabels, k) // the result of a command would cover the label
	}
	server, ok := types.New(said.GetKind(), host.ID).(*typesv1.Server)
	if !ok {
		return nil, fault.Invalid("announced a %s: only servers are announced", said.GetKind())
	}
	if said.GetSubKind() == types.SubKindOpenSSH {
		return nil, fault.Invalid("announced a server of sub_kind %s: an agent is none, `teleport join openssh` makes one", types.SubKindOpenSSH)
	}
	server.SubKind = said.GetSubKind()
	server.Metadata.Labels = labels
	server.Spec = &typesv1.ServerSpec{}
	if said.GetSpec() != nil {
		server.Spec = proto.CloneOf(said.GetSpec())
	}
	server.Spec.CmdLabels = cmdLabels
	if host.Name != "" && server.Spec.Hostname != host.Name {
		a.server.cfg.Log.DebugContext(ctx, "a server announced another host name than its certificate has",
			"host_id", host.ID, "announced", clip(server.Spec.Hostname), "certificate", host.Name)
		server.Spec.Hostname = host.Name
	}
	return server, types.Check(server)
}

// keep stores the server for serverTTL, unless it is there, the same and fresh:
// agents that come back after a break announce what Auth knows.
func (a *agentStream) keep(ctx context.Context, server *typesv1.Server) error {
	cfg := a.server.cfg
	now := cfg.Now()
	old, err := store.Get[*typesv1.Server](ctx, cfg.Store, server.GetKind(), server.GetMetadata().GetName())
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	server.Metadata.Revision = old.GetMetadata().GetRevision()
	server.Metadata.Expires = old.GetMetadata().GetExpires()
	if err == nil && proto.Equal(old, server) && server.GetMetadata().GetExpires().AsTime().Sub(now) > freshEnough {
		return nil
	}
	server.Metadata.Expires = timestamppb.New(now.Add(serverTTL))
	return cfg.Store.Tx().Upsert(server).Commit(ctx)
}

// refresh keeps the servers of the stream alive, if the host may still be one.
func (a *agentStream) refresh(ctx context.Context) error {
	if err := a.server.cfg.SeenGeneration(ctx, *a.caller.Host()); err != nil {
		return err
	}
	for _, server := range a.announced {
		if err := a.keep(ctx, server); err != nil {
			return err
		}
	}
	return a.refreshSessions(ctx)
}

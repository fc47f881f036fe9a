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
	// maxServers bounds what one stream announces.
	maxServers = 10_000
	// keepBatch is how many servers are written at once.
	keepBatch = 100
)

func refreshAfter() time.Duration {
	return refreshInterval*3/4 + retry.Jitter(refreshInterval/2)
}

// announce takes what an agent says of its servers, in the order in which it said it.
// Of what was said of one server only the last counts.
func (a *agentStream) announce(ctx context.Context, batch []*agentv1.Announce) error {
	said := make(map[serverName]types.Resource, len(batch))
	var order []serverName
	for _, m := range batch {
		r, err := types.FromAny(m.GetServer())
		if err != nil {
			return err
		}
		switch r.(type) {
		case *typesv1.Server, *typesv1.AppServer, *typesv1.DatabaseServer:
		default:
			return fault.Invalid("announced a %s: only servers are announced", r.GetKind())
		}
		name := serverName{r.GetKind(), r.GetMetadata().GetName()}
		if err := authz.MayAnnounce(a.caller, name.kind, name.name); err != nil {
			return err
		}
		if _, again := said[name]; !again {
			order = append(order, name)
		}
		if said[name] = r; m.GetGone() {
			said[name] = nil
		}
	}
	var keep []types.Resource
	var gone []serverName
	for _, name := range order {
		r := said[name]
		if r == nil {
			delete(a.announced, name)
			gone = append(gone, name)
			continue
		}
		server, err := a.settle(ctx, r)
		if err == nil {
			err = a.room(name)
		}
		if err != nil && ofResource(name.kind) && (errors.Is(err, fault.ErrInvalid) || errors.Is(err, fault.ErrLimit)) {
			// One resource that cannot be listed leaves the others of the host in peace.
			a.server.cfg.Log.WarnContext(ctx, "a resource that an agent serves is not listed", "host_id", a.caller.Host().ID, "kind", name.kind, "name", clip(name.name), "error", err)
			delete(a.announced, name)
			gone = append(gone, name)
			continue
		}
		if err != nil {
			return err
		}
		a.announced[name] = server
		keep = append(keep, server)
	}
	if err := a.withdraw(ctx, gone); err != nil {
		return err
	}
	return a.keep(ctx, keep)
}

// serverName names a server.
type serverName struct{ kind, name string }

// room bounds the servers of one stream.
func (a *agentStream) room(name serverName) error {
	if a.announced[name] == nil && len(a.announced) >= maxServers {
		return fault.Limit("host %s serves more than %d resources", a.caller.Host().ID, maxServers)
	}
	return nil
}

// withdraw removes servers that are no more.
func (a *agentStream) withdraw(ctx context.Context, names []serverName) error {
	st := a.server.cfg.Store
	for part := range slices.Chunk(names, keepBatch) {
		tx := st.Tx()
		some := false
		for _, n := range part {
			r, err := st.Get(ctx, n.kind, n.name)
			if errors.Is(err, fault.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			tx.Delete(n.kind, n.name, r.GetMetadata().GetRevision())
			some = true
		}
		if !some {
			continue
		}
		err := tx.Commit(ctx)
		if !errors.Is(err, fault.ErrNotFound) && !errors.Is(err, fault.ErrStale) {
			if err != nil {
				return err
			}
			continue
		}
		// Some of them expired, or another stream of the host wrote them, meanwhile.
		for _, n := range part {
			if err := st.Tx().Delete(n.kind, n.name, "").Commit(ctx); err != nil && !errors.Is(err, fault.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// settle makes of what an agent says of a server what Auth stores: the name is that of
// the certificate, and the labels of the join token win.
func (a *agentStream) settle(ctx context.Context, said types.Resource) (types.Resource, error) {
	instance, err := store.Get[*typesv1.Instance](ctx, a.server.cfg.Store, types.KindInstance, a.caller.Host().ID)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return nil, err
	}
	var server types.Resource
	switch said := said.(type) {
	case *typesv1.Server:
		server, err = a.settleServer(ctx, said, instance)
	case *typesv1.AppServer:
		server, err = a.settleApp(ctx, said, instance)
	case *typesv1.DatabaseServer:
		server, err = a.settleDatabase(ctx, said, instance)
	default:
		return nil, fault.Invalid("announced a %s: only servers are announced", said.GetKind())
	}
	if err != nil {
		return nil, err
	}
	return server, types.Check(server)
}

// withToken returns the labels of what a host serves, where those of its join token win.
func withToken(labels map[string]string, instance *typesv1.Instance) map[string]string {
	labels = maps.Clone(labels)
	for k, v := range instance.GetSpec().GetLabels() {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v
	}
	return labels
}

func (a *agentStream) settleServer(ctx context.Context, said *typesv1.Server, instance *typesv1.Instance) (types.Resource, error) {
	host := a.caller.Host()
	cmdLabels := maps.Clone(said.GetSpec().GetCmdLabels())
	for k := range instance.GetSpec().GetLabels() {
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
	server.Metadata.Labels = withToken(said.GetMetadata().GetLabels(), instance)
	server.Spec = &typesv1.ServerSpec{}
	if said.GetSpec() != nil {
		server.Spec = proto.CloneOf(said.GetSpec())
	}
	server.Spec.CmdLabels = cmdLabels
	server.Spec.Hostname = a.hostname(ctx, server.Spec.Hostname)
	return server, nil
}

// hostname returns the name in the certificate of the host, whatever was said.
func (a *agentStream) hostname(ctx context.Context, said string) string {
	host := a.caller.Host()
	if host.Name == "" || said == host.Name {
		return said
	}
	a.server.cfg.Log.DebugContext(ctx, "a server announced another host name than its certificate has",
		"host_id", host.ID, "announced", clip(said), "certificate", host.Name)
	return host.Name
}

// keep stores servers for serverTTL, unless they are there, the same and fresh: agents
// that come back after a break announce what Auth knows.
func (a *agentStream) keep(ctx context.Context, servers []types.Resource) error {
	cfg := a.server.cfg
	now := cfg.Now()
	for part := range slices.Chunk(servers, keepBatch) {
		tx := cfg.Store.Tx()
		some := false
		for _, server := range part {
			old, err := cfg.Store.Get(ctx, server.GetKind(), server.GetMetadata().GetName())
			if err != nil && !errors.Is(err, fault.ErrNotFound) {
				return err
			}
			md := server.GetMetadata()
			if md.Revision, md.Expires = "", nil; err == nil {
				md.Revision, md.Expires = old.GetMetadata().GetRevision(), old.GetMetadata().GetExpires()
				if proto.Equal(old, server) && md.GetExpires().AsTime().Sub(now) > freshEnough {
					continue
				}
			}
			md.Expires = timestamppb.New(now.Add(serverTTL))
			tx.Upsert(server)
			some = true
		}
		if !some {
			continue
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// refresh keeps the servers of the stream alive, if the host may still be one.
func (a *agentStream) refresh(ctx context.Context) error {
	if err := a.server.cfg.SeenGeneration(ctx, *a.caller.Host()); err != nil {
		return err
	}
	servers := slices.Collect(maps.Values(a.announced))
	if err := a.keep(ctx, servers); err != nil {
		return err
	}
	return a.refreshSessions(ctx)
}

package authapi

import (
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/authz"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// maxReported and maxGone bound one report about sessions, maxSessions those of one
	// host that Auth lists.
	maxReported = 100
	maxGone     = 1000
	maxSessions = 10_000
)

// report takes what an agent says about its sessions.
func (a *agentStream) report(ctx context.Context, m *agentv1.Sessions) error {
	host := a.caller.Host()
	if err := authz.MayAnnounce(a.caller, types.KindNode, host.ID); err != nil {
		return err
	}
	if len(m.GetChanged()) > maxReported || len(m.GetGone()) > maxGone {
		return fault.Limit("a report about %d sessions and %d that ended, the most is %d and %d", len(m.GetChanged()), len(m.GetGone()), maxReported, maxGone)
	}
	var changed []*typesv1.SessionTracker
	for _, packed := range m.GetChanged() {
		r, err := types.FromAny(packed)
		if err != nil {
			return err
		}
		said, ok := r.(*typesv1.SessionTracker)
		if !ok {
			return fault.Invalid("reported a %s: only sessions are reported", r.GetKind())
		}
		t, err := a.settleSession(ctx, said)
		if err != nil {
			return err
		}
		changed = append(changed, t)
	}
	gone := slices.DeleteFunc(slices.Clone(m.GetGone()), func(id string) bool { return a.sessions[id] == nil })
	if m.GetFirst() {
		for _, id := range a.server.hub.sessionsOf(host.ID) {
			if !a.server.elsewhere(a, id) && !slices.ContainsFunc(changed, func(t *typesv1.SessionTracker) bool { return t.GetMetadata().GetName() == id }) {
				gone = append(gone, id)
			}
		}
	}
	if len(a.sessions)+len(changed) > maxSessions {
		return fault.Limit("host %s has more than %d sessions that could be joined", host.ID, maxSessions)
	}
	a.sessionsMu.Lock()
	for _, t := range changed {
		a.sessions[t.GetMetadata().GetName()] = t
	}
	for _, id := range gone {
		delete(a.sessions, id)
	}
	a.sessionsMu.Unlock()
	return errors.Join(a.keepSessions(ctx, changed), a.dropSessions(ctx, gone))
}

// elsewhere reports whether another stream of the host has the session: a process that
// hands over to the next one keeps its sessions, and both have a stream.
func (s *AgentServer) elsewhere(a *agentStream, session string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.hosts[a.caller.Host().ID], func(other *agentStream) bool {
		if other == a {
			return false
		}
		other.sessionsMu.Lock()
		defer other.sessionsMu.Unlock()
		return other.sessions[session] != nil
	})
}

// settleSession makes of what an agent says of a session what Auth stores: the host is
// that of the certificate, and a session of another host is not this one's to change.
func (a *agentStream) settleSession(ctx context.Context, said *typesv1.SessionTracker) (*typesv1.SessionTracker, error) {
	host, id := a.caller.Host(), said.GetMetadata().GetName()
	if err := types.ValidSessionID(id); err != nil {
		return nil, err
	}
	if a.sessions[id] == nil {
		old, err := store.Get[*typesv1.SessionTracker](ctx, a.server.cfg.Store, types.KindSessionTracker, id)
		if err != nil && !errors.Is(err, fault.ErrNotFound) {
			return nil, err
		}
		if err == nil && old.GetSpec().GetServerId() != host.ID {
			return nil, fault.Denied("access denied: host %s reported a session of another host", host.ID)
		}
	}
	t, ok := types.New(types.KindSessionTracker, id).(*typesv1.SessionTracker)
	if !ok || said.GetSpec() == nil {
		return nil, fault.Invalid("reported a session without saying anything of it")
	}
	t.Spec = proto.CloneOf(said.GetSpec())
	t.Spec.ServerId = host.ID
	if host.Name != "" {
		t.Spec.Hostname = host.Name
	}
	return t, types.Check(t)
}

// keepSessions stores sessions for serverTTL.
func (a *agentStream) keepSessions(ctx context.Context, list []*typesv1.SessionTracker) error {
	expires := timestamppb.New(a.server.cfg.Now().Add(serverTTL))
	for part := range slices.Chunk(list, maxReported) {
		tx := a.server.cfg.Store.Tx()
		for _, t := range part {
			t = proto.CloneOf(t)
			t.Metadata.Expires = expires
			tx.Upsert(t)
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// dropSessions deletes sessions that ended; some may be gone already.
func (a *agentStream) dropSessions(ctx context.Context, ids []string) error {
	for part := range slices.Chunk(ids, maxReported) {
		tx := a.server.cfg.Store.Tx()
		for _, id := range part {
			tx.Delete(types.KindSessionTracker, id, "")
		}
		err := tx.Commit(ctx)
		if errors.Is(err, fault.ErrNotFound) {
			err = nil
			for _, id := range part {
				one := a.server.cfg.Store.Tx().Delete(types.KindSessionTracker, id, "").Commit(ctx)
				if !errors.Is(one, fault.ErrNotFound) {
					err = errors.Join(err, one)
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refreshSessions keeps the sessions of the stream listed.
func (a *agentStream) refreshSessions(ctx context.Context) error {
	return a.keepSessions(ctx, slices.Collect(maps.Values(a.sessions)))
}

// sessionsOf returns the ids of the sessions of a host that are listed.
func (h *hub) sessionsOf(hostID string) []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Keys(h.facts.sessions[hostID]))
}

// takeSession notes which host a session is on.
func (f *facts) takeSession(c types.Change) {
	if t, ok := c.Resource.(*typesv1.SessionTracker); ok {
		id := t.GetSpec().GetServerId()
		if f.sessions[id] == nil {
			f.sessions[id] = map[string]bool{}
		}
		f.sessions[id][c.Name] = true
		f.hostOf[c.Name] = id
		return
	}
	id := f.hostOf[c.Name]
	delete(f.hostOf, c.Name)
	delete(f.sessions[id], c.Name)
	if len(f.sessions[id]) == 0 {
		delete(f.sessions, id)
	}
}

// seesSessions returns which sessions the caller, a user, sees: its own, those that it
// may join, and what its rules let it list or read.
func (s *ResourceServer) seesSessions(ctx context.Context, verb string) (func(types.Resource) bool, error) {
	subject, err := s.cfg.Authorizer.Subject(ctx, rpc.CallerFrom(ctx))
	if err != nil {
		return nil, err
	}
	checker := access.NewChecker(subject)
	return func(r types.Resource) bool {
		t, ok := r.(*typesv1.SessionTracker)
		if !ok {
			return false
		}
		spec := t.GetSpec()
		g := access.Gathering{Kind: spec.GetSessionKind(), Owner: spec.GetOwner(), OwnerRoles: spec.GetOwnerRoles()}
		return checker.SeesSession(g).Allowed || checker.VerbOn(types.KindSessionTracker, verb, r).Allowed
	}, nil
}

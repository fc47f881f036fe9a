package authapi

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// lockGrace is how long a host that is locked may still be told of it, and end
	// what it serves, before its stream is cut. Its calls are refused at once.
	lockGrace = 4 * time.Second
	// maxPending bounds the processes that the status of a lock names.
	maxPending = 100
)

// facts are what locks are decided and reported with, kept from the changes.
type facts struct {
	locks map[string]*typesv1.Lock
	// sorted are the locks by name, replaced and never changed.
	sorted []*typesv1.Lock
	// tokens are the ids of the tokens that the hosts joined with.
	tokens map[string]string
	// hostnames are those of the servers, by kind and host id.
	hostnames map[[2]string]string
	// sessions are those that are listed, by host id, and hostOf the hosts they are on.
	sessions map[string]map[string]bool
	hostOf   map[string]string
}

func newFacts() facts {
	return facts{locks: map[string]*typesv1.Lock{}, tokens: map[string]string{}, hostnames: map[[2]string]string{}, sessions: map[string]map[string]bool{}, hostOf: map[string]string{}}
}

func (f *facts) take(c types.Change) {
	switch c.Kind {
	case types.KindLock:
		delete(f.locks, c.Name)
		if l, ok := c.Resource.(*typesv1.Lock); ok {
			f.locks[c.Name] = l
		}
		f.sorted = slices.SortedFunc(maps.Values(f.locks), func(a, b *typesv1.Lock) int {
			return cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
		})
	case types.KindInstance:
		delete(f.tokens, c.Name)
		if i, ok := c.Resource.(*typesv1.Instance); ok && i.GetSpec().GetToken() != "" {
			f.tokens[c.Name] = i.GetSpec().GetToken()
		}
	case types.KindSessionTracker:
		f.takeSession(c)
	case types.KindNode, types.KindProxy:
		delete(f.hostnames, [2]string{c.Kind, c.Name})
		// For an OpenSSH server the Proxies enforce.
		if s, ok := c.Resource.(*typesv1.Server); ok && s.GetSubKind() != types.SubKindOpenSSH {
			f.hostnames[[2]string{c.Kind, c.Name}] = s.GetSpec().GetHostname()
		}
	}
}

// Load reads what is locked, so that nobody who is gets in while Run begins.
func (s *AgentServer) Load(ctx context.Context) error {
	snapshot, _, err := s.cfg.Store.Snapshot(ctx, []string{types.KindLock, types.KindInstance})
	if err != nil {
		return err
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for _, c := range snapshot {
		s.hub.facts.take(c)
	}
	return nil
}

// Locks returns the locks; some may have expired.
func (s *AgentServer) Locks() []*typesv1.Lock {
	s.hub.mu.RLock()
	defer s.hub.mu.RUnlock()
	return s.hub.facts.sorted
}

// JoinToken returns the id of the token that the host joined with, or "".
func (s *AgentServer) JoinToken(hostID string) string {
	s.hub.mu.RLock()
	defer s.hub.mu.RUnlock()
	return s.hub.facts.tokens[hostID]
}

// checkHost refuses a host that is locked.
func (s *AgentServer) checkHost(hostID string) error {
	return access.CheckLocks(s.Locks(), access.Facts{ServerID: hostID, JoinToken: s.JoinToken(hostID)}, s.cfg.Now())
}

// lockdown is the lock that ends a stream.
type lockdown struct {
	revision uint64
	err      error
}

// lock ends the streams of the hosts that a new lock is about, soon: first they are
// to hear of it.
func (s *AgentServer) lock(l *typesv1.Lock, revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, streams := range s.hosts {
		if access.FindLock([]*typesv1.Lock{l}, access.Facts{ServerID: id, JoinToken: s.JoinToken(id)}, s.cfg.Now()) == nil {
			continue
		}
		for _, a := range streams {
			down := &lockdown{revision: revision, err: access.LockError(l)}
			if a.lockdown.CompareAndSwap(nil, down) {
				time.AfterFunc(lockGrace, func() { a.cancel(down.err) })
			}
		}
	}
}

// acknowledge notes that the host enforces the locks up to the revision. It is the
// last thing heard of one that is locked.
func (a *agentStream) acknowledge(revision uint64) error {
	s := a.server
	s.mu.Lock()
	s.acknowledged[a.caller.Host().ID] = revision
	s.mu.Unlock()
	if down := a.lockdown.Load(); down != nil && revision >= down.revision {
		return down.err
	}
	return nil
}

// LockStatus returns which processes enforce the lock, of those that are connected
// or serve something. A host that is locked itself and gone is not waited for.
func (s *AgentServer) LockStatus(l *typesv1.Lock) *typesv1.LockStatus {
	revision, err := store.Revision(l)
	if err != nil {
		return nil
	}
	hosts := map[string]*typesv1.LockPending{}
	s.hub.mu.RLock()
	for key, hostname := range s.hub.facts.hostnames {
		hosts[key[1]] = &typesv1.LockPending{HostId: key[1], Hostname: hostname}
	}
	s.hub.mu.RUnlock()
	s.mu.Lock()
	for id, streams := range s.hosts {
		hosts[id] = &typesv1.LockPending{HostId: id, Hostname: streams[0].caller.Host().Name, Connected: true}
	}
	status := &typesv1.LockStatus{}
	for id := range hosts {
		if s.acknowledged[id] >= revision {
			status.Confirmed++
			delete(hosts, id)
		}
	}
	s.mu.Unlock()
	for _, p := range hosts {
		if p.GetConnected() || s.checkHost(p.GetHostId()) == nil {
			status.Pending = append(status.Pending, p)
		}
	}
	status.Expected = status.Confirmed + uint32(len(status.Pending))
	slices.SortFunc(status.Pending, func(a, b *typesv1.LockPending) int {
		return cmp.Or(cmp.Compare(a.GetHostname(), b.GetHostname()), cmp.Compare(a.GetHostId(), b.GetHostId()))
	})
	status.Pending = status.Pending[:min(len(status.Pending), maxPending)]
	return status
}

// shown returns a resource as people see it.
func (s *ResourceServer) shown(r types.Resource) types.Resource {
	r = public(r)
	if l, ok := r.(*typesv1.Lock); ok && s.cfg.LockStatus != nil {
		l.Status = s.cfg.LockStatus(l)
	}
	return r
}

// completeLock notes who made a lock and when, and refuses one that would lock the
// Auth Service out of its own cluster.
func completeLock(ctx context.Context, s *ResourceServer, _ *store.Tx, r, old types.Resource) error {
	l, ok := r.(*typesv1.Lock)
	if !ok {
		return fault.Invalid("kind lock with another kind's message")
	}
	l.Status = nil
	l.Spec.CreatedAt, l.Spec.CreatedBy = timestamppb.New(s.cfg.Now()), rpc.CallerFrom(ctx).Name()
	if before, ok := old.(*typesv1.Lock); ok {
		l.Spec.CreatedAt, l.Spec.CreatedBy = before.GetSpec().GetCreatedAt(), before.GetSpec().GetCreatedBy()
	}
	id := l.GetSpec().GetTarget().GetServerId()
	if access.FindLock([]*typesv1.Lock{l}, access.Facts{ServerID: id}, s.cfg.Now()) == nil {
		return nil
	}
	switch _, err := s.cfg.Store.Get(ctx, types.KindAuthServer, id); {
	case err == nil:
		return fault.Invalid("spec.target.server_id: host %q runs the Auth Service, which cannot be locked out of its own cluster: lock users, roles or logins", id)
	case !errors.Is(err, fault.ErrNotFound):
		return err
	}
	return nil
}

func lockFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if l, ok := r.(*typesv1.Lock); ok {
		target := map[string]any{}
		for _, f := range types.LockTargetFields(l.GetSpec().GetTarget()) {
			if f.Value != "" {
				target[f.Name] = f.Value
			}
		}
		fields["target"], fields["message"] = target, l.GetSpec().GetMessage()
	}
	if e := r.GetMetadata().GetExpires(); e != nil {
		fields["expires"] = e.AsTime()
	}
	return fields
}

// completeAlert notes when an alert was made, and who acknowledged it.
func completeAlert(ctx context.Context, s *ResourceServer, _ *store.Tx, r, old types.Resource) error {
	alert, ok := r.(*typesv1.ClusterAlert)
	if !ok {
		return fault.Invalid("kind cluster_alert with another kind's message")
	}
	alert.Spec.Created = timestamppb.New(s.cfg.Now())
	if before, ok := old.(*typesv1.ClusterAlert); ok {
		alert.Spec.Created = before.GetSpec().GetCreated()
	}
	if ack := alert.GetSpec().GetAcknowledged(); ack != nil {
		ack.User = rpc.CallerFrom(ctx).Name()
	}
	return nil
}

func alertFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if a, ok := r.(*typesv1.ClusterAlert); ok {
		fields["severity"], fields["message"] = a.GetSpec().GetSeverity(), a.GetSpec().GetMessage()
		if ack := a.GetSpec().GetAcknowledged(); ack != nil {
			fields["acknowledged_by"], fields["reason"] = ack.GetUser(), ack.GetReason()
		}
	}
	return fields
}

// removeLogged deletes a resource that nothing else belongs to.
func removeLogged(kind audit.Kind, fields func(types.Resource) map[string]any) remover {
	return func(ctx context.Context, _ Config, tx *store.Tx, r types.Resource) error {
		deleteAt(tx, r)
		tx.Emit(event(ctx, kind, fields(r)))
		return nil
	}
}

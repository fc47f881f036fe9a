package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join/method"
	"teleport/internal/store"
	"teleport/internal/types"
)

// lockClone locks a host whose identity is used twice and tells the administrators,
// once for each copy.
func (s *Server) lockClone(ctx context.Context, host *identity.Host, instance *typesv1.Instance, addr string) error {
	if !s.firstSight(host) {
		return nil
	}
	message := fmt.Sprintf("the identity of host %s (%s) is used twice: generation %d from %s, and generation %d, seen last from %s; delete the data directory of the copy, then remove the lock",
		host.Name, host.ID, host.Generation, addr, instance.GetStatus().GetGeneration(), instance.GetStatus().GetRemoteAddr())
	return s.lockHost(ctx, host.ID, addr, message, s.renewalDenied(host, addr, CodeIdentityCloned, message))
}

// lockForked locks a host whose key another machine has as well: the join method
// found that out, and says which host it is.
func (s *Server) lockForked(ctx context.Context, a *attempt) error {
	id := a.claims.Get(method.AttributeBoundHost)
	if id == "" {
		return nil
	}
	seen := "an address that is not known any more"
	instance, err := store.Get[*typesv1.Instance](ctx, s.cfg.Store, types.KindInstance, id)
	switch {
	case err == nil:
		seen = instance.GetStatus().GetRemoteAddr()
	case !errors.Is(err, fault.ErrNotFound):
		return err
	}
	return s.lockHost(ctx, id, a.addr, fmt.Sprintf("the key of token %s is used by two machines: by one at %s, and by host %s, seen last from %s; find out which is the copy, then remove the lock",
		a.token.GetMetadata().GetName(), a.addr, id, seen))
}

// lockHost locks a host and tells the administrators, unless that was done before; the
// events are recorded in any case.
func (s *Server) lockHost(ctx context.Context, id, addr, message string, events ...*auditv1.Event) error {
	now := s.cfg.Now()
	lock := types.NewLock(&typesv1.LockTarget{ServerId: id}, message, "join", now, time.Time{})
	lock.Metadata.Name = "clone-" + id
	made := audit.New(audit.LockCreate, map[string]any{
		"success": true, "name": lock.GetMetadata().GetName(), "user": "system", "target": map[string]any{"server_id": id},
		"message": message, "addr.remote": addr,
	})
	alert := types.NewAlert(types.SeverityHigh, message, now, time.Time{})
	raised := audit.New(audit.AlertCreate, map[string]any{
		"success": true, "name": alert.GetMetadata().GetName(), "user": "system", "severity": types.SeverityHigh, "message": message,
	})
	err := s.cfg.Store.Tx().Create(lock).Create(alert).Emit(append(events, made, raised)...).Commit(ctx)
	if errors.Is(err, fault.ErrExists) {
		return s.cfg.Store.Tx().Emit(events...).Commit(ctx)
	}
	if err == nil {
		s.cfg.Log.ErrorContext(ctx, "a host is locked", "host_id", id, "cause", message)
	}
	return err
}

// firstSight reports whether this copy of an identity was not refused before: it
// tries again and again, and one event is enough.
func (s *Server) firstSight(host *identity.Host) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clones[host.ID] == host.Generation {
		return false
	}
	s.clones[host.ID] = host.Generation
	return true
}

package authapi

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/authz"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// maxEmit bounds the events of one call.
	maxEmit = 100
	// Events whose time is further off than this get the time of their arrival.
	maxEventAge   = 24 * time.Hour
	maxEventAhead = 5 * time.Minute
	// maxEventTypes bounds the types of a search.
	maxEventTypes = 100
)

// AuditServer stores and finds audit events.
type AuditServer struct {
	auditv1.UnimplementedAuditServiceServer
	cfg Config
}

// NewAudit returns the handler of AuditService.
func NewAudit(cfg Config) (*AuditServer, error) {
	cfg, err := cfg.checked()
	return &AuditServer{cfg: cfg}, err
}

// EmitEvents stores events of the calling host. Sending the same ones again does
// no harm.
func (s *AuditServer) EmitEvents(ctx context.Context, req *auditv1.EmitEventsRequest) (*auditv1.EmitEventsResponse, error) {
	caller := rpc.CallerFrom(ctx)
	events := req.GetEvents()
	if len(events) > maxEmit {
		return nil, fault.Limit("%d events in one call, at most %d are taken", len(events), maxEmit)
	}
	if len(events) == 0 {
		return &auditv1.EmitEventsResponse{}, nil
	}
	for _, e := range events {
		if err := authz.MayEmit(caller, e); err != nil {
			return nil, err
		}
		if err := s.mayCarry(ctx, caller, e); err != nil {
			return nil, err
		}
		if err := s.stamp(caller, e); err != nil {
			return nil, err
		}
	}
	err := s.cfg.Store.Tx().Emit(events...).Commit(ctx)
	if !errors.Is(err, fault.ErrExists) {
		return &auditv1.EmitEventsResponse{}, err
	}
	// Some came before: the answer to an earlier call was lost on its way.
	for _, e := range events {
		if err := s.cfg.Store.Tx().Emit(e).Commit(ctx); err != nil && !errors.Is(err, fault.ErrExists) {
			return nil, err
		}
	}
	return &auditv1.EmitEventsResponse{}, nil
}

// mayCarry refuses sessions that a Proxy says it carried to a node with an agent, which
// speaks for itself. A node that is gone may have been an OpenSSH server.
func (s *AuditServer) mayCarry(ctx context.Context, caller rpc.Caller, e *auditv1.Event) error {
	kind, _ := audit.KindOf(e)
	server := e.GetFields().GetFields()["server_id"].GetStringValue()
	if server == "" || server == caller.Host().ID || !authz.Carried(kind) {
		return nil
	}
	node, err := store.Get[*typesv1.Server](ctx, s.cfg.Store, types.KindNode, server)
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return nil
	case err != nil:
		return err
	case node.GetSubKind() != types.SubKindOpenSSH:
		return fault.Denied("access denied: host %s sent an event about a session with server %s, which records its own", caller.Host().ID, server)
	}
	return nil
}

// stamp completes an event with what Auth knows better than its sender.
func (s *AuditServer) stamp(caller rpc.Caller, e *auditv1.Event) error {
	if len(e.GetUid()) > 64 || e.GetEi() < 0 {
		return fault.Invalid("event %q: uid or ei out of range", clip(e.GetEvent()))
	}
	audit.Clamp(e)
	if e.Fields == nil {
		e.Fields = &structpb.Struct{}
	}
	if e.Fields.Fields == nil {
		e.Fields.Fields = map[string]*structpb.Value{}
	}
	fields := e.Fields.Fields
	host := caller.Host()
	if id := fields["server_id"].GetStringValue(); id == "" {
		fields["server_id"] = structpb.NewStringValue(host.ID)
	} else if id != host.ID {
		fields["forwarded_by"] = structpb.NewStringValue(host.ID)
	}
	e.ClusterName = s.cfg.Cluster()
	now := s.cfg.Now()
	switch at := e.GetTime(); {
	case at == nil:
		e.Time = timestamppb.New(now)
	case !at.IsValid():
		return fault.Invalid("event %q: its time is out of range", clip(e.GetEvent()))
	case at.AsTime().Before(now.Add(-maxEventAge)), at.AsTime().After(now.Add(maxEventAhead)):
		fields["reported_time"] = structpb.NewStringValue(at.AsTime().UTC().Format(time.RFC3339))
		e.Time = timestamppb.New(now)
	}
	return nil
}

// SearchEvents returns a page of events, newest first unless asked otherwise.
func (s *AuditServer) SearchEvents(ctx context.Context, req *auditv1.SearchEventsRequest) (*auditv1.SearchEventsResponse, error) {
	q := store.EventQuery{
		Types: req.GetTypes(), Limit: int(req.GetLimit()), PageToken: req.GetPageToken(), Ascending: req.GetAscending(),
	}
	if q.Limit < 0 || q.Limit > store.MaxEvents {
		return nil, fault.Invalid("limit %d: use 1 to %d, or 0 for the default", q.Limit, store.MaxEvents)
	}
	if len(q.Types) > maxEventTypes {
		return nil, fault.Limit("%d event types, at most %d are taken", len(q.Types), maxEventTypes)
	}
	for _, bound := range []struct {
		name string
		in   *timestamppb.Timestamp
		out  *time.Time
	}{{"from", req.GetFrom(), &q.From}, {"to", req.GetTo(), &q.To}} {
		if bound.in == nil {
			continue
		}
		if !bound.in.IsValid() {
			return nil, fault.Invalid("%s: not a valid time", bound.name)
		}
		*bound.out = bound.in.AsTime()
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return nil, fault.Invalid("from %s is not before to %s", q.From.Format(time.RFC3339), q.To.Format(time.RFC3339))
	}
	events, next, err := s.cfg.Store.SearchEvents(ctx, q)
	return &auditv1.SearchEventsResponse{Events: events, NextPageToken: next}, err
}

package authapi

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
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
	// maxEmit bounds the events of one call; a transaction takes little more.
	maxEmit = 1000
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

// RegisterAudit registers the handler so that the events of EmitEvents stay encoded: they
// are many, and nearly all of them are stored as they came.
func RegisterAudit(r grpc.ServiceRegistrar, s *AuditServer) {
	desc := auditv1.AuditService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i, m := range desc.Methods {
		if m.MethodName == "EmitEvents" {
			desc.Methods[i].Handler = emitHandler
		}
	}
	r.RegisterService(&desc, s)
}

// emitHandler hands the request to emit. As a message that knows no fields it is taken
// over as it is.
func emitHandler(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // the order is gRPC's
	req := &emptypb.Empty{}
	if err := decode(req); err != nil {
		return nil, err
	}
	emit := func(ctx context.Context, _ any) (any, error) {
		s, ok := srv.(*AuditServer)
		if !ok {
			return nil, fault.Unsupported("no handler of audit events")
		}
		return &auditv1.EmitEventsResponse{}, s.emit(ctx, req.ProtoReflect().GetUnknown())
	}
	if intercept == nil {
		return emit(ctx, req)
	}
	return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: auditv1.AuditService_EmitEvents_FullMethodName}, emit)
}

// EmitEvents stores events of the calling host. Sending the same ones again does
// no harm.
func (s *AuditServer) EmitEvents(ctx context.Context, req *auditv1.EmitEventsRequest) (*auditv1.EmitEventsResponse, error) {
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, fault.Invalid("events that cannot be encoded: %w", err)
	}
	return &auditv1.EmitEventsResponse{}, s.emit(ctx, raw)
}

// emit is EmitEvents for an encoded request.
func (s *AuditServer) emit(ctx context.Context, request []byte) error {
	events, err := eventsOf(request)
	if err != nil || len(events) == 0 {
		return err
	}
	t := taker{s: s, caller: rpc.CallerFrom(ctx)}
	return t.store(ctx, events)
}

// eventsOf are the encoded events of an EmitEventsRequest.
func eventsOf(request []byte) ([][]byte, error) {
	const numEvents = 1
	var events [][]byte
	for len(request) > 0 {
		num, wire, n := protowire.ConsumeTag(request)
		if n < 0 {
			return nil, fault.Invalid("a request that cannot be read: %w", protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(num, wire, request[n:])
		if size < 0 {
			return nil, fault.Invalid("a request that cannot be read: %w", protowire.ParseError(size))
		}
		if num == numEvents && wire == protowire.BytesType {
			e, _ := protowire.ConsumeBytes(request[n:])
			if events = append(events, e); len(events) > maxEmit {
				return nil, fault.Limit("more than %d events in one call", maxEmit)
			}
		}
		request = request[n+size:]
	}
	return events, nil
}

// taker takes the events of one call.
type taker struct {
	s      *AuditServer
	caller rpc.Caller
	event  audit.Encoded
	// allowed is what was decided last: most of the time the next event claims the same.
	allowed claim
}

// claim is what decides whether a host may send an event.
type claim struct {
	kind          audit.Kind
	server, proxy string
	named         bool
}

// store checks the events and stores them together; when some came before, as the answer
// to an earlier call was lost on its way, the others.
func (t *taker) store(ctx context.Context, events [][]byte) error {
	tx := t.s.cfg.Store.Tx()
	for _, raw := range events {
		if err := t.take(ctx, raw); err != nil {
			return err
		}
		tx.EmitEncoded(&t.event)
	}
	err := tx.Commit(ctx)
	if !errors.Is(err, fault.ErrExists) {
		return err
	}
	half := len(events) / 2
	if half == 0 {
		return nil
	}
	if err := t.store(ctx, events[:half]); err != nil {
		return err
	}
	return t.store(ctx, events[half:])
}

// take makes an event the one at hand, if the caller may send it.
func (t *taker) take(ctx context.Context, raw []byte) error {
	if err := t.event.Take(raw); err != nil {
		return err
	}
	if err := t.may(ctx); err != nil {
		return err
	}
	return t.stamp()
}

// may decides whether the caller may send the event.
func (t *taker) may(ctx context.Context) error {
	server, named := t.event.Text("server_id")
	proxy, _ := t.event.Text("proxy_id")
	if a := &t.allowed; a.kind != (audit.Kind{}) && a.kind == t.event.Kind && a.named == named && a.server == string(server) && a.proxy == string(proxy) {
		return nil
	}
	c := claim{t.event.Kind, string(server), string(proxy), named}
	fields := map[string]*structpb.Value{"proxy_id": structpb.NewStringValue(c.proxy)}
	if named {
		fields["server_id"] = structpb.NewStringValue(c.server)
	}
	e := &auditv1.Event{Event: c.kind.Type, Code: c.kind.Code, Fields: &structpb.Struct{Fields: fields}}
	if err := authz.MayEmit(t.caller, e); err != nil {
		return err
	}
	if err := t.s.mayCarry(ctx, t.caller, c.kind, c.server); err != nil {
		return err
	}
	t.allowed = c
	return nil
}

// mayCarry refuses sessions that a Proxy says it carried to a node with an agent, which
// speaks for itself. A node that is gone may have been an OpenSSH server.
func (s *AuditServer) mayCarry(ctx context.Context, caller rpc.Caller, kind audit.Kind, server string) error {
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

// stamp completes the event with what Auth knows better than its sender.
func (t *taker) stamp() error {
	e := &t.event
	if len(e.UID) > 64 || e.Index < 0 {
		return fault.Invalid("event %q: uid or ei out of range", clip(e.Kind.Type))
	}
	host := t.caller.Host()
	if id, _ := e.Text("server_id"); len(id) == 0 {
		e.SetText("server_id", host.ID)
	} else if string(id) != host.ID {
		e.SetText("forwarded_by", host.ID)
	}
	e.Cluster = t.s.cfg.Cluster()
	now := t.s.cfg.Now()
	switch at := e.Time(); {
	case at == nil:
		e.SetTime(now)
	case !at.IsValid():
		return fault.Invalid("event %q: its time is out of range", clip(e.Kind.Type))
	case at.AsTime().Before(now.Add(-maxEventAge)), at.AsTime().After(now.Add(maxEventAhead)):
		e.SetText("reported_time", at.AsTime().UTC().Format(time.RFC3339))
		e.SetTime(now)
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

package authapi_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func TestEmitEvents(t *testing.T) {
	e := newEnv(t)
	node := auditv1.NewAuditServiceClient(e.dial(e.host("h1", types.RoleNode, types.RoleNode)))
	proxy := auditv1.NewAuditServiceClient(e.dial(e.host("p1", types.RoleProxy, types.RoleProxy)))
	session := func(fields map[string]any) *auditv1.Event { return audit.New(audit.SessionStart, fields) }
	stock := newNode("h8", nil)
	stock.SubKind, stock.Spec.Addr = types.SubKindOpenSSH, "192.0.2.8:22"
	e.put(newNode("h7", nil), stock)
	tests := []struct {
		name   string
		client auditv1.AuditServiceClient
		event  *auditv1.Event
		kind   error
		part   string
	}{
		{"own_session", node, session(map[string]any{"server_id": "h1"}), nil, ""},
		{"session_of_another", node, session(map[string]any{"server_id": "h2"}), fault.ErrDenied, "another server"},
		{"login_from_a_node", node, audit.New(audit.UserLogin, nil), fault.ErrDenied, "may not send"},
		{"session_from_a_proxy", proxy, session(nil), fault.ErrDenied, "names no server"},
		{"session_of_a_node_from_a_proxy", proxy, session(map[string]any{"server_id": "h7", "proxy_id": "p1"}), fault.ErrDenied, "records its own"},
		{"session_of_an_openssh_server", proxy, session(map[string]any{"server_id": "h8", "proxy_id": "p1"}), nil, ""},
		{"unknown", node, &auditv1.Event{Event: "made.up", Code: "X"}, fault.ErrInvalid, "made.up"},
		{"endless_uid", node, &auditv1.Event{Event: "session.start", Code: "T2000I", Uid: string(make([]byte, 65))}, fault.ErrInvalid, "uid"},
		{"impossible_time", node, &auditv1.Event{Event: "session.start", Code: "T2000I", Time: &timestamppb.Timestamp{Seconds: 1 << 60}}, fault.ErrInvalid, "time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.client.EmitEvents(t.Context(), &auditv1.EmitEventsRequest{Events: []*auditv1.Event{tt.event}})
			if tt.kind == nil {
				check(t, err)
				return
			}
			want(t, err, tt.kind, tt.part)
		})
	}
	many := make([]*auditv1.Event, 1001)
	for i := range many {
		many[i] = session(nil)
	}
	_, err := node.EmitEvents(t.Context(), &auditv1.EmitEventsRequest{Events: many})
	want(t, err, fault.ErrLimit, "more than 1000 events")
}

func TestEmittedEventsAreStamped(t *testing.T) {
	e := newEnv(t)
	node := auditv1.NewAuditServiceClient(e.dial(e.host("h1", types.RoleNode, types.RoleNode)))
	search := auditv1.NewAuditServiceClient(e.dial(e.user("b", "auditor")))
	old := time.Now().Add(-48 * time.Hour).UTC().Truncate(time.Second)
	sent := audit.New(audit.SessionStart, map[string]any{"user": "alice"})
	sent.ClusterName, sent.Uid, sent.Time = "forged", "uid-1", timestamppb.New(old)
	fresh := audit.New(audit.SessionEnd, map[string]any{"user": "alice"})
	fresh.Uid, fresh.Time = "uid-2", timestamppb.New(time.Now().Add(-time.Minute))
	for range 2 { // the second time as if the first answer had been lost
		_, err := node.EmitEvents(t.Context(), &auditv1.EmitEventsRequest{Events: []*auditv1.Event{proto.CloneOf(fresh)}})
		check(t, err)
	}
	_, err := node.EmitEvents(t.Context(), &auditv1.EmitEventsRequest{Events: []*auditv1.Event{sent, proto.CloneOf(fresh)}})
	check(t, err)
	resp, err := search.SearchEvents(t.Context(), &auditv1.SearchEventsRequest{Ascending: true})
	check(t, err)
	if len(resp.GetEvents()) != 2 {
		t.Fatalf("%d events, want each once: %v", len(resp.GetEvents()), resp.GetEvents())
	}
	got := resp.GetEvents()[1]
	fields := got.GetFields().GetFields()
	if got.GetUid() != "uid-1" || got.GetClusterName() != cluster || fields["server_id"].GetStringValue() != "h1" {
		t.Errorf("event = %v, want it stamped", got)
	}
	if time.Since(got.GetTime().AsTime()) > time.Minute || fields["reported_time"].GetStringValue() != old.Format(time.RFC3339) {
		t.Errorf("event = %v, want the time of its arrival and the one reported", got)
	}
}

func TestSearchEvents(t *testing.T) {
	e := newEnv(t)
	search := auditv1.NewAuditServiceClient(e.dial(e.user("b", "auditor")))
	begin := time.Now().Add(-time.Hour)
	for i := range 25 {
		kind := audit.SessionStart
		if i%5 == 0 {
			kind = audit.UserLogin
		}
		ev := audit.New(kind, map[string]any{"n": i})
		ev.Time = timestamppb.New(begin.Add(time.Duration(i) * time.Second))
		check(t, e.store.Emit(t.Context(), ev))
	}
	count := func(req *auditv1.SearchEventsRequest) (n, pages int) {
		t.Helper()
		for {
			resp, err := search.SearchEvents(t.Context(), req)
			check(t, err)
			n += len(resp.GetEvents())
			pages++
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				return n, pages
			}
		}
	}
	if n, pages := count(&auditv1.SearchEventsRequest{Limit: 10}); n != 25 || pages < 3 {
		t.Errorf("%d events on %d pages, want 25 on 3", n, pages)
	}
	if n, _ := count(&auditv1.SearchEventsRequest{Types: []string{"user.login"}, Limit: 2}); n != 5 {
		t.Errorf("%d logins, want 5", n)
	}
	at := func(i int) *timestamppb.Timestamp { return timestamppb.New(begin.Add(time.Duration(i) * time.Second)) }
	if n, _ := count(&auditv1.SearchEventsRequest{From: at(5), To: at(10)}); n != 5 {
		t.Errorf("%d events in five seconds, want 5", n)
	}
	refused := []struct {
		name string
		req  *auditv1.SearchEventsRequest
		kind error
		part string
	}{
		{"limit", &auditv1.SearchEventsRequest{Limit: 1001}, fault.ErrInvalid, "limit"},
		{"negative_limit", &auditv1.SearchEventsRequest{Limit: -1}, fault.ErrInvalid, "limit"},
		{"empty_interval", &auditv1.SearchEventsRequest{From: at(10), To: at(5)}, fault.ErrInvalid, "before"},
		{"impossible_time", &auditv1.SearchEventsRequest{From: &timestamppb.Timestamp{Seconds: 1 << 60}}, fault.ErrInvalid, "from"},
		{"many_types", &auditv1.SearchEventsRequest{Types: make([]string, 101)}, fault.ErrLimit, "types"},
		{"foreign_page_token", &auditv1.SearchEventsRequest{PageToken: "zzz"}, fault.ErrInvalid, "page token"},
	}
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			_, err := search.SearchEvents(t.Context(), tt.req)
			want(t, err, tt.kind, tt.part)
		})
	}
}

package db

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/identity"
	"teleport/internal/service/db/engine"
	"teleport/internal/state"
	"teleport/internal/types"
)

// benchRecord is the record of a session whose events go nowhere.
func benchRecord(b *testing.B, emit func(context.Context, ...*auditv1.Event) error) *record {
	b.Helper()
	d, _ := types.New(types.KindDatabase, "pg").(*typesv1.Database)
	d.Spec = &typesv1.DatabaseSpec{Protocol: "postgres", Uri: "localhost:5432"}
	m, err := newMetrics(nil)
	if err != nil {
		b.Fatal(err)
	}
	s := &Service{cfg: Config{Holder: &state.Holder{}, Hostname: "db-host", Now: time.Now, Log: slog.New(slog.DiscardHandler)}, metrics: m, recorder: newRecorder(emit)}
	h := &session{s: s, sv: &served{db: d}, id: "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f", user: &identity.Identity{User: &identity.User{Name: "alice"}}, conn: Connection{ClientAddr: "192.0.2.7:40000"}, client: &clientConn{}}
	h.audit, h.events = &record{h: h}, m.events.WithLabelValues("postgres")
	h.audit.encoded = audit.NewBase(map[string]any{
		"user": "alice", "sid": h.id, "server_id": h.id, "db_service": "pg", "db_protocol": "postgres", "db_uri": "localhost:5432", "db_user": "alice", "db_name": "postgres",
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.recorder.run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	return h.audit
}

// BenchmarkQuery is what a query costs at the agent, apart from moving its bytes: with
// and without the encoding that sends it to Auth.
func BenchmarkQuery(b *testing.B) {
	const text = "SELECT abalance FROM pgbench_accounts WHERE aid = 79432;"
	for name, emit := range map[string]func(context.Context, ...*auditv1.Event) error{
		"kept": func(context.Context, ...*auditv1.Event) error { return nil },
		"encoded": func(_ context.Context, events ...*auditv1.Event) error {
			_, err := proto.Marshal(&auditv1.EmitEventsRequest{Events: events})
			return err
		},
	} {
		for _, params := range []int{0, 3} {
			b.Run(fmt.Sprintf("%s/parameters=%d", name, params), func(b *testing.B) {
				r := benchRecord(b, emit)
				q := engine.Query{Text: text}
				for i := range params {
					q.Parameters = append(q.Parameters, fmt.Sprint("value ", i))
				}
				b.ReportAllocs()
				for b.Loop() {
					r.Query(q)
				}
			})
		}
	}
}

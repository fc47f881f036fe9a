package authapi_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/types"
)

// BenchmarkEmitEvents measures what the queries of a database cost Auth, with a store in
// memory: the requests are encoded beforehand.
func BenchmarkEmitEvents(b *testing.B) {
	e := newEnv(b)
	conn := e.dial(e.host("h1", types.RoleDB, types.RoleDB))
	const size = 100
	id := uuid.New()
	req := &auditv1.EmitEventsRequest{}
	for i := range size {
		ev := audit.New(audit.DatabaseQuery, map[string]any{
			"user": "alice", "sid": "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f", "server_id": "h1", "success": true, "db_service": "pg", "db_protocol": "postgres",
			"db_uri": "localhost:5432", "db_user": "alice", "db_name": "postgres", "db_query": fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid = %d;", i),
		})
		ev.Ei = int64(i)
		req.Events = append(req.Events, ev)
	}
	n := uint64(0)
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		for _, ev := range req.GetEvents() {
			n++
			binary.BigEndian.PutUint64(id[8:], n)
			ev.Uid, ev.Time = id.String(), timestamppb.Now()
		}
		raw, err := proto.Marshal(req)
		check(b, err)
		in := &emptypb.Empty{}
		in.ProtoReflect().SetUnknown(raw)
		before := cpuTime()
		b.StartTimer()
		check(b, conn.Invoke(b.Context(), auditv1.AuditService_EmitEvents_FullMethodName, in, &emptypb.Empty{}))
		spent += cpuTime() - before
	}
	b.ReportMetric(float64(spent.Nanoseconds())/1e3/float64(n), "cpu-us/event")
}

// cpuTime is the CPU time of this process.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

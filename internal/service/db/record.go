package db

import (
	"encoding/binary"
	"maps"
	"sync"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// record writes what happens in one session. The fields that all events of the session
// have are made once: an event costs a copy of a small map.
type record struct {
	h *session
	// uid is the beginning of the uids of the session's events.
	uid uuid.UUID

	mu sync.Mutex
	// base are the fields of every event, frame those that only its first and its last
	// event have besides: each field of each event is paid for five times over on its way
	// to the log.
	base, frame map[string]*structpb.Value
	// encoded is base for queries, of which there are many.
	encoded *audit.Base
	next    int64
}

func newRecord(h *session) *record {
	r := &record{h: h, uid: uuid.New()}
	r.setBase("", "")
	return r
}

// setBase makes the fields that all events of the session have.
func (r *record) setBase(dbUser, dbName string) {
	h := r.h
	values := func(fields map[string]any) map[string]*structpb.Value {
		return audit.New(audit.DatabaseSessionStart, fields).GetFields().GetFields()
	}
	shared := map[string]any{
		"user": h.user.User.Name, "sid": h.id, "server_id": h.s.cfg.Holder.HostID(),
		"db_service": h.sv.name(), "db_protocol": h.protocol(), "db_uri": h.sv.db.GetSpec().GetUri(), "db_user": dbUser, "db_name": dbName,
	}
	base, encoded := values(shared), audit.NewBase(shared)
	frame := values(map[string]any{"namespace": "default", "server_hostname": h.s.cfg.Hostname, "addr.remote": h.conn.ClientAddr})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.frame, r.encoded = base, frame, encoded
}

// stamp returns the session's next event, without fields.
func (r *record) stamp(k audit.Kind) *auditv1.Event {
	r.mu.Lock()
	n := r.next
	r.next++
	r.mu.Unlock()
	// A random id for the session and a number in it make the uid, as costly as neither
	// randomness nor a lock on it for every event would be.
	uid := r.uid
	binary.BigEndian.PutUint32(uid[12:], binary.BigEndian.Uint32(uid[12:])^uint32(n))
	binary.BigEndian.PutUint16(uid[10:], binary.BigEndian.Uint16(uid[10:])^uint16(n>>32))
	return &auditv1.Event{Event: k.Type, Code: k.Code, Ei: n, Uid: uid.String(), Time: timestamppb.New(r.h.s.cfg.Now())}
}

// event makes the session's next event.
func (r *record) event(k audit.Kind, more map[string]any) *auditv1.Event {
	e := r.stamp(k)
	made := audit.New(k, more).GetFields()
	if made.Fields == nil {
		made.Fields = map[string]*structpb.Value{}
	}
	r.mu.Lock()
	maps.Copy(made.Fields, r.base)
	r.mu.Unlock()
	e.Fields = made
	return e
}

// framed makes an event with all that is known of the session.
func (r *record) framed(k audit.Kind, more map[string]any) *auditv1.Event {
	e := r.event(k, more)
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(e.Fields.Fields, r.frame)
	return e
}

// lost ends the session: what happens in it can no longer be recorded.
func (r *record) lost(err error) {
	r.h.s.cfg.Log.Error("events of a database session are not in the audit log, the session is ended", "sid", r.h.id, "error", err)
	r.h.end(fault.Unreachable("what you do here can not be recorded in the audit log: ask an administrator"))
}

// eventSize is what an event weighs in the queue besides its texts.
const eventSize = 1024

func (r *record) queue(e *auditv1.Event, texts int) {
	r.h.events.Inc()
	r.h.s.recorder.add(queued{event: e, size: eventSize + texts, lost: r.lost}, false)
}

// start records that the session begins, and holds the first answer to the client back
// until that is stored.
func (r *record) start(labels map[string]string) {
	done := make(chan error, 1)
	e := r.framed(audit.DatabaseSessionStart, map[string]any{"success": true, "db_labels": labels, "session_start": r.h.began})
	r.h.s.recorder.add(queued{event: e, size: eventSize, done: done, lost: r.lost}, true)
	hold := func() error { return <-done }
	r.h.client.hold.Store(&hold)
}

// end records that the session is over.
func (r *record) end() {
	fields := map[string]any{"session_start": r.h.began, "session_stop": r.h.s.cfg.Now()}
	if reason := r.h.reason.Load(); reason != nil {
		fields["reason"] = *reason
	}
	r.queue(r.framed(audit.DatabaseSessionEnd, fields), 0)
}

const (
	// plainParameters bounds the parameters of which each is recorded as it is.
	plainParameters = 64
)

// Query records a query, or with an error one that the database refused.
func (r *record) Query(q engine.Query) {
	size := len(q.Text) + len(q.Database)
	plain := len(q.Text) <= maxQuery && utf8.ValidString(q.Text) && utf8.ValidString(q.Database) && len(q.Parameters) <= plainParameters && q.Err == nil
	for _, p := range q.Parameters {
		size += len(p)
		plain = plain && utf8.ValidString(p)
	}
	if !plain || size > maxQuery {
		r.queue(r.long(q), min(size, 4*maxQuery))
		return
	}
	r.mu.Lock()
	base := r.encoded
	r.mu.Unlock()
	// Sorted by name.
	var room [4]audit.Field
	more := room[:0]
	if q.Database != "" {
		more = append(more, audit.Text("db_name", q.Database))
	}
	more = append(more, audit.Text("db_query", q.Text))
	if len(q.Parameters) > 0 {
		more = append(more, audit.Texts("db_query_parameters", q.Parameters))
	}
	e := r.stamp(audit.DatabaseQuery)
	e.Fields = base.Fields(append(more, audit.Bool("success", true))...)
	r.queue(e, size)
}

// long makes the event of a query that failed, or that has to be cut.
func (r *record) long(q engine.Query) *auditv1.Event {
	k := audit.DatabaseQuery
	more := map[string]any{"db_query": q.Text, "success": q.Err == nil}
	if q.Err != nil {
		k = audit.DatabaseQueryFailure
		more["error"] = q.Err.Error()
	}
	if len(q.Parameters) > 0 {
		more["db_query_parameters"] = q.Parameters
	}
	e := r.event(k, more)
	if q.Database != "" {
		name := audit.New(k, map[string]any{"db_name": q.Database}).GetFields().GetFields()
		maps.Copy(e.Fields.Fields, name)
	}
	return e
}

// Event records an event of the protocol's own.
func (r *record) Event(kind audit.Kind, fields map[string]any) {
	size := 0
	for _, v := range fields {
		if s, ok := v.(string); ok {
			size += min(len(s), maxQuery)
		}
	}
	r.queue(r.event(kind, fields), size)
}

// maxMalformed is how much of a message that cannot be read is recorded.
const maxMalformed = 256

// Malformed records a message that could not be read.
func (r *record) Malformed(message []byte) {
	r.queue(r.event(audit.DatabaseMalformed, map[string]any{
		"size": len(message), "payload": message[:min(len(message), maxMalformed)],
	}), maxMalformed)
}

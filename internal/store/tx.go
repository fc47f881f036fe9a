package store

import (
	"context"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/backend"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// EventLife is how long audit events are kept.
const EventLife = 365 * 24 * time.Hour

// Tx is a set of changes that happen together or not at all. It is for one
// goroutine and one Commit; a mistake in a call comes back from Commit.
type Tx struct {
	store   *Store
	ops     []backend.Op
	titles  map[string]string // of keys
	written []types.Resource
	events  []*auditv1.Event
	err     error
}

// Tx starts a transaction.
func (s *Store) Tx() *Tx { return &Tx{store: s, titles: make(map[string]string)} }

// Create adds a resource that must not exist (fault.ErrExists).
func (t *Tx) Create(r types.Resource) *Tx { return t.write(backend.OpCreate, r, 0) }

// Update replaces a resource that must be at the revision that r carries
// (fault.ErrStale; fault.ErrNotFound if it is gone).
func (t *Tx) Update(r types.Resource) *Tx {
	if t.err != nil {
		return t
	}
	if r == nil {
		return t.fail(fault.Invalid("no resource was given"))
	}
	text := r.GetMetadata().GetRevision()
	revision, err := parseRevision(text)
	if err != nil || revision == 0 {
		return t.fail(fault.Invalid("update %s: %q is not a revision: read it again and retry", title(r.GetKind(), r.GetMetadata().GetName()), text))
	}
	return t.write(backend.OpUpdate, r, revision)
}

// Upsert writes a resource whatever was there.
func (t *Tx) Upsert(r types.Resource) *Tx { return t.write(backend.OpPut, r, 0) }

// Delete removes a resource that must exist (fault.ErrNotFound) and be at the
// revision (fault.ErrStale); "" is any revision.
func (t *Tx) Delete(kind, name, revision string) *Tx {
	return t.guard(backend.OpDelete, kind, name, revision)
}

// Check makes the commit fail with fault.ErrStale unless the resource is at the
// revision; "" means that it must not exist.
func (t *Tx) Check(kind, name, revision string) *Tx {
	return t.guard(backend.OpCheck, kind, name, revision)
}

// Emit adds audit events. Uid, time and cluster name are filled in when unset. An
// event that is in the log already (same time and uid) is fault.ErrExists.
func (t *Tx) Emit(events ...*auditv1.Event) *Tx {
	t.events = append(t.events, events...)
	return t
}

// EmitEncoded is Emit for an event that is encoded, which it does not keep.
func (t *Tx) EmitEncoded(e *audit.Encoded) *Tx {
	if t.err != nil {
		return t
	}
	op, err := t.store.encodedOp(e)
	if err != nil {
		return t.fail(err)
	}
	t.ops = append(t.ops, op)
	return t
}

func (t *Tx) fail(err error) *Tx {
	if t.err == nil {
		t.err = err
	}
	return t
}

func (t *Tx) write(op backend.OpType, r types.Resource, revision uint64) *Tx {
	if t.err != nil {
		return t
	}
	if r == nil {
		return t.fail(fault.Invalid("no resource was given"))
	}
	md := r.GetMetadata()
	key, err := resourceKey(r.GetKind(), md.GetName())
	if err != nil {
		return t.fail(err)
	}
	what := title(r.GetKind(), md.GetName())
	if md == nil {
		return t.fail(fault.Invalid("write %s: it has no metadata", what))
	}
	var expires time.Time
	if e := md.GetExpires(); e != nil {
		if !e.IsValid() {
			return t.fail(fault.Invalid("write %s: its expiry is not a valid time", what))
		}
		if expires = e.AsTime(); !expires.After(t.store.now()) {
			return t.fail(fault.Invalid("write %s: it would have expired at %s", what, expires.Format(time.RFC3339)))
		}
	}
	// The revision is the backend's to keep.
	held := md.Revision
	md.Revision = ""
	value, err := types.Encode(r)
	md.Revision = held
	if err != nil {
		return t.fail(err)
	}
	t.titles[key] = what
	t.ops = append(t.ops, backend.Op{Type: op, Item: backend.Item{Key: key, Value: value, Expires: expires, Revision: revision}})
	if info, ok := types.Kind(r.GetKind()); ok && info.Remember > 0 && !expires.IsZero() {
		t.ops = append(t.ops, backend.Op{Type: backend.OpPut, Item: backend.Item{
			Key: backend.Key(past, r.GetKind(), md.GetName()), Value: value, Expires: expires.Add(info.Remember),
		}})
	}
	t.written = append(t.written, r)
	return t
}

func (t *Tx) guard(op backend.OpType, kind, name, revision string) *Tx {
	if t.err != nil {
		return t
	}
	key, err := resourceKey(kind, name)
	if err != nil {
		return t.fail(err)
	}
	var rev uint64
	if revision != "" {
		if rev, err = parseRevision(revision); err != nil || rev == 0 {
			return t.fail(fault.Invalid("%s: %q is not a revision: read it again and retry", title(kind, name), revision))
		}
	}
	t.titles[key] = title(kind, name)
	t.ops = append(t.ops, backend.Op{Type: op, Item: backend.Item{Key: key, Revision: rev}})
	return t
}

// Commit makes the changes durable and sets the new revision in the metadata of
// the resources that were written. On an error nothing was changed.
func (t *Tx) Commit(ctx context.Context) error {
	if t.err != nil {
		return t.err
	}
	ops := t.ops
	for _, e := range t.events {
		op, err := t.store.eventOp(e)
		if err != nil {
			return err
		}
		t.titles[op.Item.Key] = title("event", e.Uid)
		ops = append(ops, op)
	}
	revision, err := t.store.backend.Batch(ctx, ops...)
	if err != nil {
		return named(err, t.titles)
	}
	for _, r := range t.written {
		r.GetMetadata().Revision = strconv.FormatUint(revision, 10)
	}
	return nil
}

// eventOp completes an event and makes the operation that stores it.
func (s *Store) eventOp(e *auditv1.Event) (backend.Op, error) {
	if e == nil || e.GetEvent() == "" {
		return backend.Op{}, fault.Invalid("an audit event without a type")
	}
	var err error
	if e.Uid, err = eventUID(e.GetEvent(), e.Uid); err != nil {
		return backend.Op{}, err
	}
	if e.Time == nil {
		e.Time = timestamppb.New(s.now())
	}
	if e.ClusterName == "" {
		e.ClusterName = s.clusterName()
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		return backend.Op{}, fault.New(fault.ErrInvalid, "encode event %q: %w", e.GetEvent(), err)
	}
	return s.createEvent(e.GetEvent(), e.Uid, e.Time, value)
}

// encodedOp is eventOp for an event that is encoded.
func (s *Store) encodedOp(e *audit.Encoded) (backend.Op, error) {
	if e.Kind.Type == "" {
		return backend.Op{}, fault.Invalid("an audit event without a type")
	}
	var err error
	if e.UID, err = eventUID(e.Kind.Type, e.UID); err != nil {
		return backend.Op{}, err
	}
	if e.Time() == nil {
		e.SetTime(s.now())
	}
	if e.Cluster == "" {
		e.Cluster = s.clusterName()
	}
	return s.createEvent(e.Kind.Type, e.UID, e.Time(), e.Append(nil))
}

func eventUID(event, uid string) (string, error) {
	if uid == "" {
		// Version 7 grows with time, so that events of one moment keep their order.
		id, err := uuid.NewV7()
		if err != nil {
			return "", fault.New(fault.ErrUnreachable, "make an event id: %w", err)
		}
		return id.String(), nil
	}
	if len(uid) > 128 {
		return "", fault.Invalid("event %q: an id of %d bytes, the most is 128", event, len(uid))
	}
	return uid, nil
}

func (s *Store) createEvent(event, uid string, at *timestamppb.Timestamp, value []byte) (backend.Op, error) {
	if !at.IsValid() {
		return backend.Op{}, fault.Invalid("event %q: its time is not valid", event)
	}
	// The backend has its own clock, and an event must not be born expired.
	from := s.now()
	if wall := time.Now(); wall.After(from) {
		from = wall
	}
	// Create: nothing that was logged may be written over.
	return backend.Op{Type: backend.OpCreate, Item: backend.Item{
		Key:     backend.Key(audits, sortable(at.AsTime()), uid),
		Value:   value,
		Expires: from.Add(EventLife),
	}}, nil
}

func parseRevision(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

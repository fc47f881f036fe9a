package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/retry"
)

const (
	emitTimeout = 5 * time.Second
	// emitBatch is how many events go into one call, and emitBytes about how much: Auth
	// accepts no more.
	emitBatch = 1000
	emitBytes = 2 << 20
	// Bounds of what is kept while Auth is away.
	maxBufferedEvents = 10_000
	maxBufferedBytes  = 16 << 20
)

// Emitter sends audit events to Auth. While Auth cannot be reached it keeps them in
// memory, up to a bound, and Run delivers them later in order. An event has its uid
// from here, so that one which is sent twice is stored once.
type Emitter struct {
	client auditv1.AuditServiceClient
	log    *slog.Logger

	mu     sync.Mutex
	buffer []*auditv1.Event
	bytes  int
	wake   chan struct{}
}

// NewEmitter returns an emitter over a connection to Auth with a host certificate.
// What it buffers is delivered while Run runs; Run of this package does that for the
// emitter in its Config.
func NewEmitter(conn grpc.ClientConnInterface, log *slog.Logger) *Emitter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Emitter{client: auditv1.NewAuditServiceClient(conn), log: log, wake: make(chan struct{}, 1)}
}

// Emit stores the events at Auth before it returns. If Auth cannot be reached it
// keeps them for later and returns nil; if there are too many of those it returns
// fault.ErrLimit, and if Auth refuses them, why. An event that has its uid and its time
// already is taken as it is and must not be changed any more; others are copied.
func (e *Emitter) Emit(ctx context.Context, events ...*auditv1.Event) error {
	stamped := make([]*auditv1.Event, len(events))
	for i, ev := range events {
		if ev.GetUid() != "" && ev.GetTime() != nil {
			stamped[i] = ev
			continue
		}
		ev = proto.CloneOf(ev)
		if ev.GetUid() == "" {
			ev.Uid = uuid.NewString()
		}
		if ev.GetTime() == nil {
			ev.Time = timestamppb.Now()
		}
		stamped[i] = ev
	}
	for len(stamped) > 0 && !e.waiting() {
		n := batch(stamped)
		err := e.send(ctx, stamped[:n])
		if refused(err) {
			return err
		}
		if err != nil {
			e.log.WarnContext(ctx, "auth cannot take audit events now, they are kept for later", "error", err)
			break
		}
		stamped = stamped[n:]
	}
	return e.keep(stamped)
}

// refused reports whether sending the same again cannot help. The events of a host
// that is locked wait until it is not.
func refused(err error) bool {
	if fault.Code(err) == access.CodeLocked {
		return false
	}
	return errors.Is(err, fault.ErrInvalid) || errors.Is(err, fault.ErrDenied) || errors.Is(err, fault.ErrUnsupported)
}

func (e *Emitter) send(ctx context.Context, events []*auditv1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, emitTimeout)
	defer cancel()
	_, err := e.client.EmitEvents(ctx, &auditv1.EmitEventsRequest{Events: events})
	return err
}

// waiting reports whether older events wait: newer ones queue behind them.
func (e *Emitter) waiting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.buffer) > 0
}

func (e *Emitter) keep(events []*auditv1.Event) error {
	if len(events) == 0 {
		return nil
	}
	size := sizeOf(events)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.buffer)+len(events) > maxBufferedEvents || e.bytes+size > maxBufferedBytes {
		return fault.Limit("audit events cannot be stored: Auth is unreachable and %d events wait already", len(e.buffer))
	}
	e.buffer = append(e.buffer, events...)
	e.bytes += size
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return nil
}

// Run delivers buffered events until ctx ends, then tries once more.
func (e *Emitter) Run(ctx context.Context) error {
	backoff := retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	for {
		select {
		case <-ctx.Done():
			e.flush(context.WithoutCancel(ctx))
			return nil
		case <-e.wake:
		}
		for e.waiting() && ctx.Err() == nil {
			if err := e.deliver(ctx); err == nil {
				backoff.Reset()
			} else if backoff.Wait(ctx) != nil {
				break
			}
		}
	}
}

// flush makes one last attempt and says how many events are lost.
func (e *Emitter) flush(ctx context.Context) {
	for e.waiting() {
		if err := e.deliver(ctx); err != nil {
			e.mu.Lock()
			lost := len(e.buffer)
			e.mu.Unlock()
			e.log.ErrorContext(ctx, "audit events are lost: auth cannot be reached", "events", lost, "error", err)
			return
		}
	}
}

// deliver sends the oldest batch. Events that Auth refuses are dropped, each alone.
func (e *Emitter) deliver(ctx context.Context) error {
	e.mu.Lock()
	oldest := e.buffer[:batch(e.buffer)]
	e.mu.Unlock()
	err := e.send(ctx, oldest)
	for refused(err) && len(oldest) > 1 {
		oldest = oldest[:len(oldest)/2]
		err = e.send(ctx, oldest)
	}
	if refused(err) {
		e.log.ErrorContext(ctx, "auth refused an audit event", "event", oldest[0].GetEvent(), "uid", oldest[0].GetUid(), "error", err)
		err = nil
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.buffer = e.buffer[len(oldest):]
	e.bytes -= sizeOf(oldest)
	if len(e.buffer) == 0 {
		e.buffer = nil
	}
	return nil
}

// batch is how many of the events go into the next call: at least one.
func batch(events []*auditv1.Event) int {
	bytes := 0
	for i, ev := range events[:min(len(events), emitBatch)] {
		if bytes += roughly(ev); bytes > emitBytes && i > 0 {
			return i
		}
	}
	return min(len(events), emitBatch)
}

// perField is what a field takes besides its text.
const perField = 64

// roughly is about the size of an event, at a tenth of the cost of its size.
func roughly(ev *auditv1.Event) int {
	n := perField + audit.Opaque(ev)
	for _, v := range ev.GetFields().GetFields() {
		n += perField
		switch k := v.GetKind().(type) {
		case *structpb.Value_StringValue:
			n += len(k.StringValue)
		case *structpb.Value_ListValue, *structpb.Value_StructValue:
			n += proto.Size(v)
		}
	}
	return n
}

func sizeOf(events []*auditv1.Event) int {
	n := 0
	for _, ev := range events {
		n += proto.Size(ev)
	}
	return n
}

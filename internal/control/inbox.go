package control

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Bounds of the ping interval that Auth may ask for.
const (
	minPing = time.Second
	maxPing = 10 * time.Minute
)

// inbox is the receiving side of one stream.
type inbox struct {
	*runner
	stream   stream
	watchdog *time.Timer
	// welcome is closed at Welcome.
	welcome  chan struct{}
	welcomed bool
	// next carries the ping interval that Auth asked for.
	next     chan time.Duration
	interval time.Duration
	// synced is set when everything that Auth had at the beginning was taken.
	synced bool
	// sessions is set if Auth takes reports about sessions.
	sessions bool
	locks    lockbox
	// err is why the stream ended, for talk.
	err error
}

// ended remembers why the receiver ended.
func (in *inbox) ended(err error) error {
	in.err = err
	return errEnded
}

// receive takes what Auth sends until the stream ends, and says why it ended.
func (in *inbox) receive(ctx context.Context) error {
	in.interval = firstPing
	for {
		m, err := in.stream.Recv()
		if errors.Is(err, io.EOF) {
			return fault.Unreachable("Auth ended the control stream")
		}
		if err != nil {
			return err
		}
		in.watchdog.Reset(in.interval + grace)
		if err := in.take(ctx, m); err != nil {
			return err
		}
	}
}

func (in *inbox) take(ctx context.Context, m *agentv1.ControlResponse) error {
	switch p := m.GetPayload().(type) {
	case *agentv1.ControlResponse_Welcome:
		return in.takeWelcome(p.Welcome)
	case *agentv1.ControlResponse_Pong:
		in.takePong(p.Pong)
		if in.synced {
			in.cfg.Cache.Heard(time.Now())
		}
		return nil
	}
	if !in.welcomed {
		return fault.Invalid("control stream: Auth sent changes before its welcome")
	}
	switch p := m.GetPayload().(type) {
	case *agentv1.ControlResponse_Change:
		in.takeChange(ctx, p.Change)
	case *agentv1.ControlResponse_Synced:
		in.cfg.Cache.Synced(p.Synced.GetRevision())
		in.synced = true
		in.cfg.Cache.Heard(time.Now())
		in.cfg.Cache.Lockout("")
		in.locks.synced(p.Synced.GetRevision())
		in.backoff.Reset()
		in.cfg.OnState(nil)
		in.reportAuthorities(ctx)
	default:
		// A newer Auth may say more than this version understands.
		in.cfg.Log.DebugContext(ctx, "message of unknown kind on the control stream")
	}
	return nil
}

func (in *inbox) takeWelcome(w *agentv1.Welcome) error {
	if in.welcomed {
		return fault.Invalid("control stream: Auth sent a second welcome")
	}
	if !w.GetSnapshot() && (w.GetEpoch() != in.epoch || in.epoch == "") {
		return fault.Invalid("control stream: Auth resumes epoch %q, this process is at %q", w.GetEpoch(), in.epoch)
	}
	if w.GetSnapshot() {
		in.cfg.Cache.Reset()
	}
	in.epoch = w.GetEpoch()
	in.locks.wanted, in.locks.dirty = w.GetAcknowledge(), true
	in.sessions = w.GetSessions()
	in.welcomed = true
	close(in.welcome)
	return nil
}

func (in *inbox) takePong(p *agentv1.Pong) {
	if p.GetNext() == nil {
		return
	}
	in.interval = min(max(p.GetNext().AsDuration(), minPing), maxPing)
	in.watchdog.Reset(in.interval + grace)
	select {
	case <-in.next: // replace a value that was not taken yet
	default:
	}
	select {
	case in.next <- in.interval:
	default:
	}
}

func (in *inbox) takeChange(ctx context.Context, c *agentv1.Change) {
	ch := types.Change{Revision: c.GetRevision(), Kind: c.GetKind(), Name: c.GetName()}
	if c.GetResource() != nil {
		r, err := types.FromAny(c.GetResource())
		if err != nil {
			in.cfg.Log.WarnContext(ctx, "change that this version cannot read", "kind", ch.Kind, "name", ch.Name, "error", err)
			return
		}
		ch.Resource = r
	}
	in.cfg.Cache.Apply(ch)
	if ch.Kind == types.KindLock {
		in.locks.applied(ch.Revision)
	}
}

// reportAuthorities calls OnAuthorities if they are not those it was last told.
func (in *inbox) reportAuthorities(ctx context.Context) {
	if in.cfg.OnAuthorities == nil {
		return
	}
	now := in.cfg.Cache.Authorities()
	same := slices.EqualFunc(in.authorities, now, func(a, b *typesv1.CertAuthority) bool { return proto.Equal(a, b) })
	if same || len(now) == 0 {
		return
	}
	if err := in.cfg.OnAuthorities(now); err != nil {
		in.cfg.Log.ErrorContext(ctx, "new certificate authorities could not be taken over", "error", err)
		return
	}
	in.authorities = now
}

// Package control is the agent's end of the control stream: one stream to the Auth
// Service that brings what the process decides with into its cache and reports the
// servers that it runs. It also delivers audit events (Emitter). It opens no
// connection itself and decides nothing; Auth's end is package authapi.
//
//	agent -> Hello(revision, epoch)        Auth -> Welcome(snapshot?)
//	agent -> Announce(server) ...          Auth -> Change ... Synced(revision)
//	agent -> Acknowledge(revision)
//	agent -> Sessions(changed, gone) ...
//	agent -> Ping                          Auth -> Pong(next), Change ... Synced
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/retry"
	"teleport/internal/types"
	"teleport/internal/version"
)

const (
	// firstPing is the interval of pings until Auth says another.
	firstPing = 30 * time.Second
	// grace is how much longer than the ping interval silence may last.
	grace = 30 * time.Second
	// farewell is how long withdrawing the servers may take at the end.
	farewell = 3 * time.Second
)

// Config is what Run needs.
type Config struct {
	// Conn is a connection to Auth with the process-level certificate; see rpc.Conn
	// for one that survives the renewal of that certificate.
	Conn grpc.ClientConnInterface
	// Cache is fed.
	Cache *cache.Cache
	// Servers returns the servers to announce, several of a kind if a service serves
	// several resources. What it returned must not be changed afterwards. Nil announces
	// none.
	Servers func() []types.Resource
	// ServersChanged says that Servers changed; one value may stand for many changes.
	ServersChanged <-chan struct{}
	// Sessions returns the sessions of the process that others may see or join, and
	// SessionsChanged says that it returns something else now. Nil reports none.
	Sessions        func() []*typesv1.SessionTracker
	SessionsChanged <-chan struct{}
	// Restart asks for a new stream at once, because Conn has a new certificate.
	Restart <-chan struct{}
	// Emitter, if set, delivers what it buffered while the stream runs.
	Emitter *Emitter
	// OnAuthorities is called with the new public authorities when they changed, and
	// again at the next occasion if it returned an error.
	OnAuthorities func([]*typesv1.CertAuthority) error
	// Enforce ends what the locks in the cache forbid and returns when it has ended;
	// Auth is then told. It is called when locks changed, and once for each stream.
	// Nil has nothing to end.
	Enforce func(ctx context.Context) error
	// Keep, if it returns true at the end, leaves the servers announced: another process
	// of the host serves on.
	Keep func() bool
	// OnState is called when the stream is up (nil) and when it broke (why).
	OnState func(err error)
	Log     *slog.Logger
}

// Run keeps the stream up until ctx ends: it reconnects with backoff and resumes
// from the revision of the cache. At the end it withdraws the servers and returns nil.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Conn == nil || cfg.Cache == nil {
		return fault.Invalid("control stream: no connection or no cache")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnState == nil {
		cfg.OnState = func(error) {}
	}
	r := &runner{cfg: cfg, backoff: retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}}
	if cfg.Emitter == nil {
		return r.run(ctx)
	}
	var g errgroup.Group
	g.Go(func() error { return cfg.Emitter.Run(ctx) })
	g.Go(func() error { return r.run(ctx) })
	return g.Wait()
}

func (r *runner) run(ctx context.Context) error {
	for {
		err := r.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRestart) {
			continue
		}
		if fault.Code(err) == access.CodeLocked {
			r.cfg.Cache.Lockout(err.Error())
		}
		r.cfg.OnState(err)
		wait := r.backoff.Next()
		r.cfg.Log.WarnContext(ctx, "control stream to auth broke", "error", err, "retry_in", wait.Round(time.Millisecond))
		if retry.Sleep(ctx, wait) != nil {
			break
		}
	}
	return nil
}

// runner is what outlives one stream.
type runner struct {
	cfg     Config
	backoff retry.Backoff
	// epoch is the cluster that the cache's revision belongs to.
	epoch string
	// authorities are those last reported.
	authorities []*typesv1.CertAuthority
}

type stream = grpc.BidiStreamingClient[agentv1.ControlRequest, agentv1.ControlResponse]

var errSilent = fault.Unreachable("nothing was heard from Auth for too long")

// session runs one stream until it breaks or ctx ends.
func (r *runner) session(ctx context.Context) error {
	// The stream outlives ctx by the time it takes to withdraw the servers.
	sctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	connecting := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	watchdog := time.AfterFunc(firstPing+grace, func() { cancel(errSilent) })
	defer watchdog.Stop()

	st, err := agentv1.NewAgentServiceClient(r.cfg.Conn).Control(sctx)
	if !connecting() {
		return context.Cause(ctx)
	}
	defer context.AfterFunc(ctx, func() {
		if retry.Sleep(sctx, farewell) == nil {
			cancel(context.Cause(ctx))
		}
	})()
	if err == nil {
		err = r.converse(ctx, st, cancel, watchdog)
	}
	if err != nil && errors.Is(context.Cause(sctx), errSilent) {
		return errSilent
	}
	return err
}

// converse says hello, then sends announcements and pings while receive reads.
func (r *runner) converse(ctx context.Context, st stream, cancel context.CancelCauseFunc, watchdog *time.Timer) error {
	hello := &agentv1.Hello{SoftwareVersion: version.Version, Epoch: r.epoch}
	if r.epoch != "" {
		hello.Revision = r.cfg.Cache.Revision()
	}
	if err := send(st, &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	in := &inbox{
		runner: r, stream: st, watchdog: watchdog, welcome: make(chan struct{}), next: make(chan time.Duration, 1),
		locks: lockbox{changed: make(chan uint64, 1), enforced: make(chan uint64)},
	}
	done := make(chan error, 1)
	go func() { done <- in.receive(ctx) }()
	var enforcing sync.WaitGroup
	defer enforcing.Wait()
	ectx, stop := context.WithCancel(ctx)
	defer stop()
	enforcing.Go(func() { in.enforceLocks(ectx) })
	err := r.talk(ctx, st, in, done)
	if err == nil { // an orderly end: Auth closes its side
		return <-done
	}
	cancel(err)
	if errors.Is(err, errEnded) {
		return in.err
	}
	if rerr := <-done; rerr != nil {
		r.cfg.Log.DebugContext(ctx, "the stream ended after an error", "error", rerr)
	}
	return err
}

// errRestart: the stream was given up for one with a new certificate.
var errRestart = errors.New("stream begins anew")

// errEnded: the receiving side ended, inbox.err says why.
var errEnded = errors.New("stream ended")

// talk sends until the stream breaks, or ctx ends and everything was withdrawn (nil).
func (r *runner) talk(ctx context.Context, st stream, in *inbox, done <-chan error) error {
	select {
	case <-in.welcome:
	case err := <-done:
		return in.ended(err)
	case <-ctx.Done():
		return st.CloseSend()
	}
	sent := announced{}
	if err := sent.update(st, r.servers()); err != nil {
		return err
	}
	sessions := newReport()
	sessionsChanged := r.cfg.SessionsChanged
	if !in.sessions || r.cfg.Sessions == nil {
		sessionsChanged = nil
	} else {
		sessions.later()
	}
	changed := r.cfg.ServersChanged
	interval := firstPing
	ping := time.NewTimer(interval/2 + retry.Jitter(interval/2))
	defer ping.Stop()
	var sequence uint64
	for {
		select {
		case <-ctx.Done():
			// The sessions end with the process, whoever serves on.
			if err := sessions.send(st, nil); err != nil {
				return err
			}
			if r.cfg.Keep != nil && r.cfg.Keep() {
				return st.CloseSend()
			}
			if err := sent.update(st, nil); err != nil {
				return err
			}
			return st.CloseSend()
		case err := <-done:
			return in.ended(err)
		case _, ok := <-changed:
			if !ok {
				changed = nil
			}
			if err := sent.update(st, r.servers()); err != nil {
				return err
			}
		case <-sessionsChanged:
			sessions.later()
		case <-sessions.due:
			if err := sessions.send(st, r.cfg.Sessions()); err != nil {
				return err
			}
		case <-r.cfg.Restart:
			return errRestart
		case revision := <-in.locks.enforced:
			if err := send(st, &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Acknowledge{Acknowledge: &agentv1.Acknowledge{Revision: revision}}}); err != nil {
				return err
			}
		case interval = <-in.next:
			ping.Reset(interval)
		case <-ping.C:
			sequence++
			if err := send(st, &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Ping{Ping: &agentv1.Ping{Sequence: sequence}}}); err != nil {
				return err
			}
			ping.Reset(interval + grace)
		}
	}
}

func (r *runner) servers() []types.Resource {
	if r.cfg.Servers == nil {
		return nil
	}
	return r.cfg.Servers()
}

// send sends m. A broken stream says io.EOF here and the reason to the receiver.
func send(st stream, m *agentv1.ControlRequest) error {
	if err := st.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// announced is what Auth was told on this stream.
type announced map[served]types.Resource

// served names a server.
type served struct{ kind, name string }

// update tells Auth the difference to servers.
func (a announced) update(st stream, servers []types.Resource) error {
	now := make(map[served]bool, len(servers))
	for _, s := range servers {
		key := served{s.GetKind(), s.GetMetadata().GetName()}
		now[key] = true
		if proto.Equal(a[key], s) {
			continue
		}
		if err := announce(st, s, false); err != nil {
			return err
		}
		a[key] = s
	}
	for key, s := range a {
		if now[key] {
			continue
		}
		if err := announce(st, s, true); err != nil {
			return err
		}
		delete(a, key)
	}
	return nil
}

func announce(st stream, s types.Resource, gone bool) error {
	packed, err := types.ToAny(s)
	if err != nil {
		return fmt.Errorf("announce %s: %w", s.GetKind(), err)
	}
	return send(st, &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{
		Announce: &agentv1.Announce{Server: packed, Gone: gone},
	}})
}

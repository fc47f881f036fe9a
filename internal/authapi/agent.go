package authapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
	"teleport/internal/version"
)

const (
	// helloTimeout is how long an agent may take to say hello.
	helloTimeout = 10 * time.Second
	// pingInterval is how often agents are told to ping.
	pingInterval = time.Minute
	// streamsPerHost bounds the control streams of one host; a new one takes the
	// place of the oldest, which is a connection that nobody closed.
	streamsPerHost = 4
	// Requests an agent may send: many at first, then few.
	requestBurst = 40
	requestRate  = 2
	// Announcements are as many as the agent serves resources. Who sends more waits.
	announceBurst = 2 * maxServers
	announceRate  = 50
	// maxAnnounce bounds one, announceBatch how many wait to be taken at once.
	maxAnnounce   = 128 << 10
	announceBatch = 32
	// maxSnapshots bounds the streams that are being filled at once.
	maxSnapshots = 256
	// sendBatch messages have sendTimeout to get out.
	sendBatch   = 256
	sendTimeout = 30 * time.Second
)

// AgentConfig is what an AgentServer needs.
type AgentConfig struct {
	Config
	// SeenGeneration notes that a host uses the certificate; an error means that it
	// must not any longer.
	SeenGeneration func(ctx context.Context, host identity.Host) error
}

// AgentServer is Auth's end of the control streams.
type AgentServer struct {
	agentv1.UnimplementedAgentServiceServer
	cfg       AgentConfig
	hub       *hub
	snapshots chan struct{}
	connected atomic.Int64

	mu    sync.Mutex
	hosts map[string][]*agentStream // oldest first
	// acknowledged is the revision up to which each host enforces the locks, as it
	// said last.
	acknowledged map[string]uint64
}

// NewAgent returns the handler of AgentService; it works while Run runs.
func NewAgent(cfg AgentConfig) (*AgentServer, error) {
	checked, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	if cfg.Config = checked; cfg.SeenGeneration == nil {
		return nil, errors.New("authapi: SeenGeneration is required")
	}
	s := &AgentServer{cfg: cfg, snapshots: make(chan struct{}, maxSnapshots), hosts: map[string][]*agentStream{}, acknowledged: map[string]uint64{}}
	s.hub, err = newHub(cfg.Store, cfg.Log, s.removed, s.lock)
	return s, err
}

// Run feeds the streams from the store until ctx ends.
func (s *AgentServer) Run(ctx context.Context) error { return s.hub.run(ctx) }

// Ready returns a channel that is closed when streams can be served.
func (s *AgentServer) Ready() <-chan struct{} { return s.hub.ready }

// Connected returns how many control streams are open.
func (s *AgentServer) Connected() int { return int(s.connected.Load()) }

type controlStream = grpc.BidiStreamingServer[agentv1.ControlRequest, agentv1.ControlResponse]

// Control serves one agent until it or Auth goes, or its certificate expires.
func (s *AgentServer) Control(st controlStream) error {
	caller := rpc.CallerFrom(st.Context())
	host := caller.Host()
	if host == nil {
		return fault.Denied("only joined processes have a control stream")
	}
	if err := s.cfg.SeenGeneration(st.Context(), *host); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(st.Context())
	defer cancel(nil)
	expiry := time.AfterFunc(caller.Identity.Expires.Sub(s.cfg.Now()), func() { cancel(errExpired(caller.Identity.Expires)) })
	defer expiry.Stop()

	a := &agentStream{
		server: s, stream: st, caller: caller, cancel: cancel,
		limit: rate.NewLimiter(requestRate, requestBurst), announcing: rate.NewLimiter(announceRate, announceBurst),
		requests: make(chan *agentv1.ControlRequest, announceBatch), broken: make(chan error, 1),
		announced: map[serverName]types.Resource{}, sessions: map[string]*typesv1.SessionTracker{},
	}
	s.enter(host.ID, a)
	defer s.leave(host.ID, a)
	// It ends when the handler returns: that ends the stream, and with it Recv.
	go a.receive(ctx)
	err := a.serve(ctx)
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func errExpired(at time.Time) error {
	return fault.New(fault.ErrUnauthenticated, "the host certificate expired at %s: connect with the renewed one", at.UTC().Format(time.RFC3339)).
		WithCode("certificate_expired")
}

// enter notes a stream of the host.
func (s *AgentServer) enter(hostID string, a *agentStream) {
	s.connected.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if streams := s.hosts[hostID]; len(streams) >= streamsPerHost {
		streams[0].cancel(fault.Limit("host %s opened more than %d control streams", hostID, streamsPerHost))
	}
	s.hosts[hostID] = append(s.hosts[hostID], a)
}

func (s *AgentServer) leave(hostID string, a *agentStream) {
	s.connected.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(s.hosts[hostID], func(other *agentStream) bool { return other == a })
	if len(left) == 0 {
		delete(s.hosts, hostID)
		return
	}
	s.hosts[hostID] = left
}

// removed ends the streams of a host that was taken out of the cluster.
func (s *AgentServer) removed(hostID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.acknowledged, hostID)
	for _, a := range s.hosts[hostID] {
		a.cancel(fault.New(fault.ErrDenied, "host %s was removed from the cluster: delete its data directory and join afresh", hostID).
			WithCode("host_removed")) // as package join says it
	}
}

// agentStream is one control stream.
type agentStream struct {
	server *AgentServer
	stream controlStream
	caller rpc.Caller
	cancel context.CancelCauseFunc
	// limit is for requests but announcements, which have announcing.
	limit, announcing *rate.Limiter
	requests          chan *agentv1.ControlRequest
	// broken gets why receive ended.
	broken chan error
	// lockdown is set when a lock ends the stream.
	lockdown atomic.Pointer[lockdown]
	// announced are the servers that this stream keeps alive.
	announced map[serverName]types.Resource
	// sessions are those of the host that it reported on this stream, by id. Only the
	// stream itself changes them, under the mutex: other streams of the host look.
	sessionsMu sync.Mutex
	sessions   map[string]*typesv1.SessionTracker
}

// receive passes requests on until the stream ends.
func (a *agentStream) receive(ctx context.Context) {
	for {
		m, err := a.stream.Recv()
		if err == nil {
			err = a.admit(ctx, m)
		}
		if err != nil {
			a.broken <- err
			return
		}
		select {
		case a.requests <- m:
		case <-ctx.Done():
			return
		}
	}
}

// admit bounds what comes in.
func (a *agentStream) admit(ctx context.Context, m *agentv1.ControlRequest) error {
	if m.GetAnnounce() == nil {
		if !a.limit.Allow() {
			return fault.Limit("more than %d requests a second on the control stream", requestRate)
		}
		return nil
	}
	if size := proto.Size(m); size > maxAnnounce {
		return fault.Limit("an announcement of %d bytes on the control stream, the most is %d", size, maxAnnounce)
	}
	return a.announcing.Wait(ctx)
}

// next waits for a request.
func (a *agentStream) next(ctx context.Context) (*agentv1.ControlRequest, error) {
	select {
	case m := <-a.requests:
		return m, nil
	case err := <-a.broken:
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *agentStream) serve(ctx context.Context) error {
	helloCtx, cancel := context.WithTimeoutCause(ctx, helloTimeout, fault.Invalid("no hello on the control stream within %s", helloTimeout))
	first, err := a.next(helloCtx)
	if err == nil {
		select {
		case <-a.server.hub.ready:
		case <-helloCtx.Done():
			err = fault.Unreachable("the Auth Service is still starting, try again soon")
		}
	}
	cancel()
	if err != nil {
		return err
	}
	// What Auth knew when it authorized the call, it may have known before it was ready.
	if err := a.server.checkHost(a.caller.Host().ID); err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return fault.Invalid("a control stream begins with hello")
	}
	f := a.feed()
	next, err := a.begin(ctx, f, hello)
	if err != nil {
		return err
	}
	return a.loop(ctx, f, next)
}

// feed returns the feed with what the caller decides with.
func (a *agentStream) feed() *feed {
	host := a.caller.Host()
	is := func(r types.SystemRole) bool { return host.Serves(r) || host.Service == "" && host.Has(r) }
	return a.server.hub.feeds[audience{proxy: is(types.RoleProxy), app: is(types.RoleApp), database: is(types.RoleDB)}]
}

// begin welcomes the agent, and sends a snapshot unless it resumes.
func (a *agentStream) begin(ctx context.Context, f *feed, hello *agentv1.Hello) (uint64, error) {
	select { // many agents that come back at once take turns
	case a.server.snapshots <- struct{}{}:
		defer func() { <-a.server.snapshots }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	h := a.server.hub
	snapshot, next, at, resumed := h.start(f, hello.GetEpoch(), hello.GetRevision())
	err := a.send(ctx, &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Welcome{Welcome: &agentv1.Welcome{
		SoftwareVersion: version.Version, Epoch: f.epoch, Snapshot: !resumed, Acknowledge: true, Sessions: true,
	}}})
	if err != nil {
		return 0, err
	}
	changes := snapshot
	if resumed {
		if changes, next, at, _, err = h.after(f, next); err != nil {
			return 0, err
		}
	}
	return next, a.sendChanges(ctx, changes, at)
}

// send sends a few messages. An agent that does not take them in time is cut: the
// handler returns, which ends the stream and with it the blocked Send.
func (a *agentStream) send(ctx context.Context, messages ...*agentv1.ControlResponse) error {
	done := make(chan error, 1)
	go func() {
		for _, m := range messages {
			if err := a.stream.Send(m); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	timeout := time.NewTimer(sendTimeout)
	defer timeout.Stop()
	select {
	case err := <-done:
		return err
	case <-timeout.C:
		return fault.Unreachable("this control stream does not take what it is sent: connect again")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sendChanges sends changes and marks their end.
func (a *agentStream) sendChanges(ctx context.Context, changes []*entry, at uint64) error {
	batch := make([]*agentv1.ControlResponse, 0, min(len(changes), sendBatch)+1)
	for _, e := range changes {
		if batch = append(batch, e.message); len(batch) == sendBatch {
			if err := a.send(ctx, batch...); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	batch = append(batch, &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Synced{Synced: &agentv1.Synced{Revision: at}}})
	return a.send(ctx, batch...)
}

// loop sends changes as they come, takes requests, and keeps what was announced
// alive.
func (a *agentStream) loop(ctx context.Context, f *feed, next uint64) error {
	refresh := time.NewTimer(refreshAfter())
	defer refresh.Stop()
	for {
		changes, then, at, more, err := a.server.hub.after(f, next)
		if err != nil {
			return err
		}
		if next = then; len(changes) > 0 {
			if err := a.sendChanges(ctx, changes, at); err != nil {
				return err
			}
		}
		select {
		case <-more:
		case m := <-a.requests:
			if err := a.takeAll(ctx, m); err != nil {
				return err
			}
		case <-refresh.C:
			if err := a.refresh(ctx); err != nil {
				return err
			}
			refresh.Reset(refreshAfter())
		case err := <-a.broken:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// takeAll takes a request. Announcements that have come by then are taken together.
func (a *agentStream) takeAll(ctx context.Context, m *agentv1.ControlRequest) error {
	var batch []*agentv1.Announce
	for m.GetAnnounce() != nil {
		batch = append(batch, m.GetAnnounce())
		m = nil
		if len(batch) < announceBatch {
			select {
			case m = <-a.requests:
			default:
			}
		}
	}
	if len(batch) > 0 {
		if err := a.announce(ctx, batch); err != nil {
			return err
		}
	}
	if m == nil {
		return nil
	}
	return a.take(ctx, m)
}

func (a *agentStream) take(ctx context.Context, m *agentv1.ControlRequest) error {
	switch p := m.GetPayload().(type) {
	case *agentv1.ControlRequest_Ping:
		return a.send(ctx, &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Pong{
			Pong: &agentv1.Pong{Sequence: p.Ping.GetSequence(), Next: durationpb.New(pingInterval)},
		}})
	case *agentv1.ControlRequest_Acknowledge:
		return a.acknowledge(p.Acknowledge.GetRevision())
	case *agentv1.ControlRequest_Sessions:
		return a.report(ctx, p.Sessions)
	case *agentv1.ControlRequest_Hello:
		return fault.Invalid("a control stream has one hello")
	}
	return fault.Unsupported("the Auth Service v%s does not know this request of the control stream: %s", version.Version, fmt.Sprintf("%T", m.GetPayload()))
}

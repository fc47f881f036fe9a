package db

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	auditv1 "teleport/api/audit/v1"
	databasev1 "teleport/api/database/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/refusal"
	"teleport/internal/service/db/engine"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Config says how the Database Service runs. Registerer, Now, Drain, Labels, Databases
// and Matchers may be left out.
type Config struct {
	// Holder has the certificate for the role Db and the trust in users' certificates.
	Holder *state.Holder
	// Cache has the roles, the locks, the authorities and the dynamic databases.
	Cache *cache.Cache
	// Emit stores audit events or keeps them for later; an error means that they are
	// lost, and the sessions that they are about are ended.
	Emit     func(ctx context.Context, events ...*auditv1.Event) error
	Hostname string
	// Labels are those that the join token gives the host: they are added to those of
	// every database.
	Labels map[string]string
	// Databases are static. Those that Auth has are served if one of the Matchers
	// matches their labels.
	Databases []*typesv1.Database
	Matchers  []map[string]*typesv1.Strings
	// Announce and Withdraw are told which databases this host serves.
	Announce func(types.Resource)
	Withdraw func(kind, name string)
	// Auth is the connection that certificates for databases come by.
	Auth    func() databasev1.DatabaseServiceClient
	Engines []engine.Engine
	// Drain is how long sessions that are in the middle of something may go on when the
	// service stops; 0 is a few seconds.
	Drain      time.Duration
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// defaultDrain leaves a stop time for the rest within the supervisor's patience.
const defaultDrain = 5 * time.Second

// Service is the Database Service.
type Service struct {
	cfg      Config
	engines  map[string]engine.Engine
	table    *table
	signer   *signer
	users    *users
	live     *registry
	refusals *refusal.Book
	metrics  *metrics
	recorder *recorder

	mu       sync.Mutex
	stopped  bool
	sessions sync.WaitGroup
}

// New checks the configuration and returns a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Holder == nil || cfg.Cache == nil || cfg.Emit == nil || cfg.Announce == nil || cfg.Withdraw == nil || cfg.Auth == nil || cfg.Log == nil {
		return nil, fault.Invalid("database service: Holder, Cache, Emit, Announce, Withdraw, Auth and Log are required")
	}
	if err := types.ValidHostname(cfg.Hostname); err != nil {
		return nil, fmt.Errorf("database service: host name: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Drain <= 0 {
		cfg.Drain = defaultDrain
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, engines: map[string]engine.Engine{}, live: newRegistry(), refusals: refusal.NewBook(cfg.Now), metrics: m,
		signer: newSigner(cfg.Auth, cfg.Now, cfg.Log), users: newUsers(), recorder: newRecorder(cfg.Emit),
	}
	for _, e := range cfg.Engines {
		for _, p := range e.Protocols() {
			if s.engines[p] != nil {
				return nil, fault.Invalid("database service: two engines speak %q", p)
			}
			s.engines[p] = e
		}
	}
	s.table = newTable(s)
	if err := s.table.SetStatic(cfg.Databases); err != nil {
		return nil, err
	}
	return s, nil
}

// Name returns "db".
func (s *Service) Name() string { return "db" }

// Run announces the databases and serves until ctx ends. Sessions then end when they are
// in the middle of nothing, after Config.Drain at the latest.
func (s *Service) Run(ctx context.Context, ready func()) error {
	if err := s.cfg.Cache.WaitSynced(ctx); err != nil {
		s.drain(ctx)
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("wait for the state of the cluster: %w", err)
	}
	// The recorder outlives the sessions, and they outlive ctx by a while.
	recording, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRecording()
	var last sync.WaitGroup
	last.Go(func() { s.recorder.run(recording) })
	s.table.Begin(ctx)
	var work sync.WaitGroup
	work.Go(func() { s.refusals.Run(ctx, s.emitLate) })
	work.Go(func() { s.followLocks(ctx) })
	work.Go(func() { s.enforceLimits(ctx) })
	work.Go(func() { s.table.Run(ctx) })
	s.table.WaitReady(ctx)
	ready()
	<-ctx.Done()
	s.drain(ctx)
	work.Wait()
	stopRecording()
	last.Wait()
	return nil
}

// Update replaces the static databases while the service runs. Sessions with a database
// that is gone end.
func (s *Service) Update(static []*typesv1.Database) error { return s.table.SetStatic(static) }

// Open returns how many sessions there are.
func (s *Service) Open() int { return s.live.count() }

// enter counts a connection; false when the service has stopped.
func (s *Service) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.sessions.Add(1)
	return true
}

// drainLook is the pause between two looks for sessions that may end.
const drainLook = 20 * time.Millisecond

// errStopping is the reason that users see when the service stops.
var errStopping = fault.Unreachable("the Database Service on this host stops: connect again")

// drain takes no more connections and ends those that there are: idle ones at once, the
// others when they are idle or their time is over. It returns when all have ended.
func (s *Service) drain(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
	defer cancel()
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for s.live.count() > 0 {
		for _, c := range s.live.list() {
			if c.idle() || ctx.Err() != nil {
				c.end(errStopping)
			}
		}
		if ctx.Err() != nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	s.sessions.Wait()
}

// emitTimeout bounds the wait for events that belong to no open session.
const emitTimeout = 10 * time.Second

// emitLate stores events even if ctx has ended.
func (s *Service) emitLate(ctx context.Context, events ...*auditv1.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emitTimeout)
	defer cancel()
	if err := s.cfg.Emit(ctx, events...); err != nil {
		s.cfg.Log.ErrorContext(ctx, "events are not in the audit log", "error", err, "count", len(events), "first", events[0].GetEvent())
	}
}

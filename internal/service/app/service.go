package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	appv1 "teleport/api/app/v1"
	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/refusal"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Config says how the Application Service runs. Labels, Apps, Matchers, Drain, Registerer
// and Now may be left out.
type Config struct {
	// Holder has the certificate for the role App and the trust in users' certificates.
	Holder *state.Holder
	// Cache has the roles, the locks and the dynamic applications.
	Cache *cache.Cache
	// Emit stores audit events or keeps them for later; an error means that they are
	// lost, and the sessions that they are about are ended.
	Emit     func(ctx context.Context, events ...*auditv1.Event) error
	Hostname string
	// Labels are those that the join token gives the host: every application here has
	// them, and nothing replaces them.
	Labels map[string]string
	// Apps are static. Those that Auth has are served if one of the Matchers matches
	// their labels.
	Apps     []*typesv1.App
	Matchers []map[string]*typesv1.Strings
	// Announce and Withdraw are told which applications this host serves.
	Announce func(types.Resource)
	Withdraw func(kind, name string)
	// Auth is where tokens for applications come from.
	Auth func() appv1.AppServiceClient
	// Drain is how long requests may go on when the service stops; 0 is a few seconds.
	Drain      time.Duration
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// defaultDrain leaves a stop time for the rest within the supervisor's patience.
const defaultDrain = 5 * time.Second

// Service is the Application Service.
type Service struct {
	cfg      Config
	table    *table
	live     *registry
	sessions *sessions
	refusals *refusal.Book
	metrics  *metrics
	h1, h2   *web
	// dialer reaches applications.
	dialer *dialer

	mu      sync.Mutex
	stopped bool
	all     map[*connection]bool
	conns   sync.WaitGroup
}

// Connection says what is known of a connection from outside of it.
type Connection struct {
	// ClientAddr is the address of the client that the Proxy saw.
	ClientAddr string
	// Resource is the name of the application.
	Resource string
	// Native is for other services: applications have no such connections.
	Native bool
}

// New checks the configuration and returns a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Holder == nil || cfg.Cache == nil || cfg.Emit == nil || cfg.Announce == nil || cfg.Withdraw == nil || cfg.Auth == nil || cfg.Log == nil {
		return nil, fault.Invalid("application service: Holder, Cache, Emit, Announce, Withdraw, Auth and Log are required")
	}
	if err := types.ValidHostname(cfg.Hostname); err != nil {
		return nil, fmt.Errorf("application service: host name: %w", err)
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
	s := &Service{cfg: cfg, live: newRegistry(), refusals: refusal.NewBook(cfg.Now), metrics: m, dialer: newDialer(), all: map[*connection]bool{}}
	s.sessions = newSessions(s)
	s.h1, s.h2 = newWeb(s, false), newWeb(s, true)
	s.table = newTable(s)
	if err := s.setStatic(cfg.Apps); err != nil {
		return nil, err
	}
	return s, nil
}

// Name returns "app".
func (s *Service) Name() string { return "app" }

// Run announces the applications and serves until ctx ends. Requests that are under way
// may then finish, for Config.Drain at most.
func (s *Service) Run(ctx context.Context, ready func()) error {
	if err := s.cfg.Cache.WaitSynced(ctx); err != nil {
		s.stop(ctx)
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("wait for the state of the cluster: %w", err)
	}
	s.table.Begin(ctx)
	var work sync.WaitGroup
	work.Go(s.h1.run)
	work.Go(s.h2.run)
	work.Go(func() { s.refusals.Run(ctx, s.emitLate) })
	work.Go(func() { s.followChanges(ctx) })
	work.Go(func() { s.table.Run(ctx) })
	work.Go(func() { s.sessions.run(ctx) })
	s.table.WaitReady(ctx)
	ready()
	<-ctx.Done()
	s.stop(ctx)
	work.Wait()
	s.sessions.endAll(ctx)
	return nil
}

// Update replaces the static applications while the service runs. Connections to an
// application that is gone, or is now somewhere else, end.
func (s *Service) Update(static []*typesv1.App) error { return s.setStatic(static) }

// Open returns how many connections of users there are.
func (s *Service) Open() int { return s.live.count() }

// enter counts a connection, and returns what takes it off again; false when the service
// has stopped.
func (s *Service) enter(c *connection) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, false
	}
	s.conns.Add(1)
	s.all[c] = true
	return func() {
		s.mu.Lock()
		delete(s.all, c)
		s.mu.Unlock()
		s.conns.Done()
	}, true
}

// stop takes no more connections, lets requests finish, and ends what goes on after that.
func (s *Service) stop(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() { s.h1.shutdown(ctx) })
	both.Go(func() { s.h2.shutdown(ctx) })
	both.Wait()
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, c := range left {
		c.end("the Application Service on this host stops: connect again")
	}
	s.conns.Wait()
}

// emitTimeout bounds the wait for events that are written when something has ended.
const emitTimeout = 10 * time.Second

// emitLate stores events even if ctx has ended.
func (s *Service) emitLate(ctx context.Context, events ...*auditv1.Event) {
	if err := s.emitNow(ctx, events...); err != nil {
		s.cfg.Log.ErrorContext(ctx, "events are not in the audit log", "error", err, "count", len(events), "first", events[0].GetEvent())
	}
}

func (s *Service) emitNow(ctx context.Context, events ...*auditv1.Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emitTimeout)
	defer cancel()
	return s.cfg.Emit(ctx, events...)
}

// parseAddr returns an address as the Proxy wrote it, or nil.
func parseAddr(s string) net.Addr {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
}

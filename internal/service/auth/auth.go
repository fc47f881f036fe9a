// Package auth is the Auth Service: it opens the cluster's state (and makes it at
// the first start), holds the certificate authorities, and serves the API to
// agents, users and the local administrator. What the calls do is in packages
// authapi, join and login; this package brings them together and keeps them running.
package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	agentv1 "teleport/api/agent/v1"
	appv1 "teleport/api/app/v1"
	databasev1 "teleport/api/database/v1"
	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	opensshv1 "teleport/api/openssh/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/authapi"
	"teleport/internal/authz"
	"teleport/internal/backend"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/login"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// Config is what Open needs.
type Config struct {
	// ClusterName names a new cluster; empty takes the host name. The name of a
	// cluster does not change: with an existing one it must be the same or empty.
	ClusterName string
	// DataDir is the folder of the process.
	DataDir string
	// HostID and Hostname are those of the process.
	HostID, Hostname string
	// Backend keeps the state. The service closes it when Run ends.
	Backend backend.Backend
	// Listener takes the connections of agents, users and Proxies.
	Listener net.Listener
	// LocalSocket is the path of the unix socket for local administration; empty
	// serves none.
	LocalSocket string
	// PublicAddrs are the addresses that Auth is reached at directly, host:port.
	PublicAddrs  []string
	StaticTokens []StaticToken
	// JoinMethods are the join methods that tokens may have.
	JoinMethods []method.Method
	Log         *slog.Logger
	Now         func() time.Time
	// Registerer takes the metrics; nil keeps none.
	Registerer prometheus.Registerer
}

// StaticToken is a join token of the configuration file.
type StaticToken struct {
	Roles []types.SystemRole
	Value keys.Secret
}

// Service is an Auth Service.
type Service struct {
	cfg     Config
	store   *store.Store
	cluster *typesv1.ClusterName

	authorities atomic.Pointer[authorities]
	certificate atomic.Pointer[tls.Certificate]

	authorizer *authz.Authorizer
	agents     *authapi.AgentServer
	join       *join.Server
	server     *rpc.Server
	metrics    *metrics
}

// authorities is the state of the certificate authorities at one moment.
type authorities struct {
	signer *ca.Signer
	trust  *ca.Trust
}

// Open opens the state of the cluster, which it makes if there is none: of several
// processes that do so at once one wins, and all work with its cluster.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	switch {
	case cfg.Backend == nil:
		return nil, errors.New("auth service: Backend is required")
	case cfg.Listener == nil:
		return nil, errors.New("auth service: Listener is required")
	case cfg.DataDir == "" || cfg.HostID == "" || cfg.Hostname == "":
		return nil, errors.New("auth service: DataDir, HostID and Hostname are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{cfg: cfg, store: store.New(store.Config{Backend: cfg.Backend, Now: cfg.Now, Log: cfg.Log})}
	var err error
	if s.cluster, err = s.openCluster(ctx); err != nil {
		return nil, err
	}
	s.store.SetCluster(s.ClusterName())
	if err := s.loadAuthorities(ctx); err != nil {
		return nil, err
	}
	if err := s.mirrorTokens(ctx); err != nil {
		return nil, err
	}
	if err := s.renewCertificate(); err != nil {
		return nil, err
	}
	if err := s.makeServer(); err != nil {
		return nil, err
	}
	return s, s.agents.Load(ctx)
}

// Name returns "auth".
func (s *Service) Name() string { return "auth" }

// ClusterName returns the name of the cluster.
func (s *Service) ClusterName() string { return s.cluster.GetSpec().GetClusterName() }

// HostID returns the id under which this Auth Service is known and keeps its audit
// log; a process that has no identity yet should take it.
func (s *Service) HostID() string { return s.cfg.HostID }

// Store returns the cluster's state.
func (s *Service) Store() *store.Store { return s.store }

// Join returns what issues identities to machines.
func (s *Service) Join() *join.Server { return s.join }

// Trust returns the present authorities.
func (s *Service) Trust() *ca.Trust { return s.authorities.Load().trust }

func (s *Service) signer() *ca.Signer { return s.authorities.Load().signer }

// loadAuthorities reads the authorities from the store.
func (s *Service) loadAuthorities(ctx context.Context) error {
	cas, err := store.All[*typesv1.CertAuthority](ctx, s.store, types.KindCertAuthority)
	if err != nil {
		return fmt.Errorf("load certificate authorities: %w", err)
	}
	signer, err := ca.NewSigner(keystore.Software(), cas, s.cfg.Now)
	if err != nil {
		return err
	}
	trust, err := ca.NewTrust(cas)
	if err != nil {
		return err
	}
	s.authorities.Store(&authorities{signer: signer, trust: trust})
	return nil
}

// mirrorTokens makes the static tokens of the configuration file those of the store.
func (s *Service) mirrorTokens(ctx context.Context) error {
	tokens := make(map[keys.Secret][]types.SystemRole, len(s.cfg.StaticTokens))
	for i, t := range s.cfg.StaticTokens {
		if len(t.Value.Reveal()) < shortToken {
			s.cfg.Log.WarnContext(ctx, "a static token is easy to guess: use 16 random characters or more", "index", i)
		}
		tokens[t.Value] = append(tokens[t.Value], t.Roles...)
	}
	if err := authapi.MirrorStatic(ctx, s.store, tokens, s.cfg.Now()); err != nil {
		return fmt.Errorf("auth_service.tokens: %w", err)
	}
	return nil
}

const shortToken = 16

// makeServer brings the handlers together.
func (s *Service) makeServer() error {
	var err error
	if s.metrics, err = newMetrics(s.cfg.Registerer, func() float64 { return float64(s.agents.Connected()) }); err != nil {
		return err
	}
	s.authorizer = authz.New(s.roles).WithUsers(s.user).WithLocks(lockView{s}).WithLog(s.cfg.Log)
	s.join = join.NewServer(join.ServerConfig{
		Store: s.store, Signer: s.signer, Trust: s.Trust, Cluster: s.ClusterName, Methods: s.cfg.JoinMethods, Now: s.cfg.Now, Log: s.cfg.Log,
	})
	people, err := login.New(login.Config{
		Store: s.store, Signer: s.signer, Trust: s.Trust, Authorizer: s.authorizer, Cluster: s.ClusterName, ProxyAddr: s.proxyAddr,
		Now: s.cfg.Now, Log: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	api := authapi.Config{
		Store: s.store, Authorizer: s.authorizer, Trust: s.Trust, Cluster: s.ClusterName, Now: s.cfg.Now, Log: s.cfg.Log,
		LockStatus: func(l *typesv1.Lock) *typesv1.LockStatus { return s.agents.LockStatus(l) },
	}
	resources, err := authapi.NewResource(api)
	if err != nil {
		return err
	}
	tokens, err := authapi.NewToken(api)
	if err != nil {
		return err
	}
	status, err := authapi.NewStatus(api)
	if err != nil {
		return err
	}
	events, err := authapi.NewAudit(api)
	if err != nil {
		return err
	}
	signing := authapi.SigningConfig{Config: api, Signer: s.signer}
	servers, err := authapi.NewOpenSSH(signing)
	if err != nil {
		return err
	}
	apps, err := authapi.NewApp(signing)
	if err != nil {
		return err
	}
	databases, err := authapi.NewDatabase(signing)
	if err != nil {
		return err
	}
	if s.agents, err = authapi.NewAgent(authapi.AgentConfig{Config: api, SeenGeneration: s.join.SeenGeneration}); err != nil {
		return err
	}
	s.server = rpc.NewServer(rpc.ServerConfig{
		TLS: s.serverTLS(), Identify: s.identify, Authorize: s.authorizer.Authorize, Log: s.cfg.Log, Now: s.cfg.Now,
	})
	r := s.server.Registrar()
	resourcev1.RegisterResourceServiceServer(r, resources)
	tokenv1.RegisterTokenServiceServer(r, tokens)
	statusv1.RegisterStatusServiceServer(r, status)
	authapi.RegisterAudit(r, events)
	agentv1.RegisterAgentServiceServer(r, s.agents)
	opensshv1.RegisterOpenSSHServiceServer(r, servers)
	appv1.RegisterAppServiceServer(r, apps)
	databasev1.RegisterDatabaseServiceServer(r, databases)
	joinv1.RegisterJoinServiceServer(r, s.join)
	loginv1.RegisterLoginServiceServer(r, people)
	userv1.RegisterUserServiceServer(r, people)
	return nil
}

// roles returns the roles of the names that exist.
func (s *Service) roles(ctx context.Context, names []string) ([]*typesv1.Role, error) {
	out := make([]*typesv1.Role, 0, len(names))
	for _, name := range names {
		r, err := store.Get[*typesv1.Role](ctx, s.store, types.KindRole, name)
		if errors.Is(err, fault.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// user fails if there is no such user.
func (s *Service) user(ctx context.Context, name string) error {
	_, err := s.store.Get(ctx, types.KindUser, name)
	return err
}

// proxyAddr returns the public address of a Proxy, or "".
func (s *Service) proxyAddr() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	proxies, err := store.All[*typesv1.Server](ctx, s.store, types.KindProxy)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "cannot look up a proxy for an invitation", "error", err)
	}
	for _, p := range proxies {
		for _, addr := range p.GetSpec().GetPublicAddrs() {
			return addr
		}
	}
	return ""
}

// auditDir is where the JSON lines go.
func (s *Service) auditDir() string { return filepath.Join(s.cfg.DataDir, "log", s.cfg.HostID) }

// Package proxy is the Proxy Service: the cluster's one public port. It tells what a
// connection wants by its ALPN name and passes it on: users' connections to nodes,
// agents' tunnels, joins and logins to the Auth Service, and TLS connections that are
// for Auth itself. It copies the bytes of a session and reads none of them; whether a
// user may do something on a node is the node's decision. Nodes that run only OpenSSH
// are the exception: there the Proxy ends the user's SSH connection, decides, and
// carries what is allowed over one of its own.
//
//	ALPN                       who                    goes to
//	h2, http/1.1, none         browsers, scripts      web pages, /webapi/ping, /webapi/find
//	teleport-proxy-grpc        anybody                Join and Login, relayed to Auth
//	teleport-auth@<cluster>    agents, tsh, tctl      Auth, TLS end to end
//	teleport-reversetunnel     agents                 the tunnels
//	teleport-proxy-ssh         users (certificate)    a node, or an agent of an application or database
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/budget"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/route"
	"teleport/internal/state"
	"teleport/internal/tunnel"
	"teleport/internal/types"
	"teleport/internal/webapp"
)

const (
	// handshakeTimeout bounds TLS and the first frame of a user's connection.
	handshakeTimeout = 15 * time.Second
	// DefaultDrain is how long open connections may go on when the service stops.
	DefaultDrain = 5 * time.Second
	// maxSources is how many sources the budgets remember.
	maxSources = 10_000
)

// Keypair names the files of a web certificate and its key, both PEM.
type Keypair struct {
	CertFile, KeyFile string
}

// Config is what New needs.
type Config struct {
	// Listener is the public port; Run closes it.
	Listener net.Listener
	Holder   *state.Holder
	// Cache has nodes, roles and the name of the cluster.
	Cache *cache.Cache
	// AuthAddr is where the Auth Service is reached.
	AuthAddr string
	// AuthConn calls the Auth Service with the Proxy's certificate.
	AuthConn grpc.ClientConnInterface
	// Emit stores audit events.
	Emit func(ctx context.Context, events ...*auditv1.Event) error
	// Keypairs are the web certificates; without any, the Proxy's own certificate
	// is shown, which the cluster's host CA signed.
	Keypairs []Keypair
	// KeypairsReloadInterval is how often the files are read again; 0 is never.
	KeypairsReloadInterval time.Duration
	// PublicAddr is the host:port that users and agents know this Proxy by.
	PublicAddr string
	Log        *slog.Logger
	// Registerer takes the metrics; nil keeps none.
	Registerer prometheus.Registerer
	// Local are the services of the same process that users are to reach, without a tunnel;
	// nil is none.
	Local Local
	// OpenSSHSources are addresses that servers which run only OpenSSH see this Proxy come
	// from, besides the one that it knows itself: those of address translation.
	OpenSSHSources []netip.Addr
	// Drain is how long open connections may go on when the service stops: 0 means
	// DefaultDrain, less than 0 not at all.
	Drain time.Duration
}

// Service is a Proxy Service.
type Service struct {
	cfg     Config
	port    *mux.Mux
	tunnels *tunnel.Server
	router  *route.Router
	web     *webCertificate
	metrics *metrics
	// What one source may ask of Auth before anybody knows who it is, and how many
	// refusals of one user are recorded.
	joins, logins, refusals *budget.Sources

	passages *passages
	apps     *webapp.Handler
	servers  *servers
	conns    sync.WaitGroup
}

// New returns a Service. It reads the key pairs, so that a bad one is an error at
// the start and not at the first visitor.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Listener == nil:
		return nil, errors.New("proxy service: Listener is required")
	case cfg.Holder == nil || cfg.Cache == nil || cfg.AuthConn == nil || cfg.Emit == nil:
		return nil, errors.New("proxy service: Holder, Cache, AuthConn and Emit are required")
	case cfg.Holder.Certificate(types.RoleProxy) == nil:
		return nil, fault.Denied("proxy service: this process did not join with the role Proxy: use a token that has it")
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg:      cfg,
		passages: newPassages(),
		port:     mux.New(mux.Config{Listener: cfg.Listener, Log: cfg.Log}),
		joins:    budget.NewSources(joinRate, joinBurst, maxSources),
		logins:   budget.NewSources(loginRate, loginBurst, maxSources),
		refusals: budget.NewSources(refusalRate, refusalBurst, maxSources),
	}
	var err error
	if s.web, err = newWebCertificate(cfg.Keypairs, s.certificate); err != nil {
		return nil, err
	}
	s.tunnels = tunnel.NewServer(tunnel.ServerConfig{
		Trust: cfg.Holder.Trust, Signer: func() ssh.Signer { return cfg.Holder.SSHSigner(types.RoleProxy) }, Admit: s.admit,
		Log: cfg.Log, Drain: cfg.Drain,
	})
	s.router = route.New(route.Config{Cache: cfg.Cache, Tunnels: s.ways(), Certificate: s.certificate, Loopback: s.loopback, Usable: s.lockedHost})
	if s.metrics, err = newMetrics(cfg.Registerer, s.port.Stats, s.tunnels.Count); err != nil {
		return nil, fmt.Errorf("proxy service: register metrics: %w", err)
	}
	if s.servers, err = newServers(s); err != nil {
		return nil, err
	}
	if s.apps, err = s.newApps(); err != nil {
		return nil, err
	}
	return s, nil
}

// Name returns "proxy".
func (s *Service) Name() string { return "proxy" }

// certificate is the Proxy's own, signed by the host CA.
func (s *Service) certificate() *tls.Certificate { return s.cfg.Holder.Certificate(types.RoleProxy) }

// loopback reports whether a node may be dialled at a loopback address: that of this
// process, and any in a cluster that lives on one machine.
func (s *Service) loopback(hostID string) bool {
	if hostID == s.cfg.Holder.HostID() {
		return true
	}
	addr, ok := s.cfg.Listener.Addr().(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}

// Run serves until ctx ends. Then it accepts nothing any more, sends the agents to
// another Proxy, lets open connections go on for a moment, and closes what is left.
func (s *Service) Run(ctx context.Context, ready func()) error {
	port := s.port
	offers := func(name string) func([]string, string) bool {
		return func(protos []string, _ string) bool { return slices.Contains(protos, name) }
	}
	userPort := port.Route(offers(mux.ALPNProxySSH))
	tunnelPort := port.Route(offers(mux.ALPNTunnel))
	authPort := port.Route(func(protos []string, _ string) bool {
		return slices.ContainsFunc(protos, func(p string) bool { return strings.HasPrefix(p, mux.ALPNAuthPrefix) })
	})
	relayPort := port.Route(offers(mux.ALPNProxyGRPC))
	webPort := port.Default()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return port.Serve(ctx) })
	g.Go(func() error { return s.serveUsers(ctx, userPort) })
	g.Go(func() error { return s.serveAuth(ctx, authPort) })
	g.Go(func() error { return s.serveRelay(ctx, relayPort) })
	g.Go(func() error { return s.serveWeb(ctx, webPort) })
	g.Go(func() error {
		return s.tunnels.Serve(ctx, tls.NewListener(tunnelPort, s.serverTLS(tls.NoClientCert, mux.ALPNTunnel)))
	})
	g.Go(func() error { return s.closeRemoved(ctx) })
	g.Go(func() error { return s.followLocks(ctx) })
	g.Go(func() error { return s.servers.watch(ctx) })
	g.Go(func() error { return s.web.reload(ctx, s.cfg.KeypairsReloadInterval, s.cfg.Log) })
	s.cfg.Log.InfoContext(ctx, "proxy service is ready", "addr", s.cfg.Listener.Addr().String(), "public_addr", s.cfg.PublicAddr)
	ready()
	err := g.Wait()
	s.conns.Wait()
	return err
}

// serverTLS is for those who know the cluster: it shows the Proxy's own certificate.
func (s *Service) serverTLS(auth tls.ClientAuthType, proto string) *tls.Config {
	c := ca.ServerTLS(s.certificate, s.cfg.Holder.Trust, auth, proto)
	// A stream that pauses is not to begin anew with small records.
	c.DynamicRecordSizingDisabled = true
	return c
}

// cluster is the name of the cluster.
func (s *Service) cluster() string { return s.cfg.Holder.Trust().Cluster() }

// track runs handle for a connection, closes the connection when it returns or at
// most grace after ctx ends, and keeps a panic from ending more than this one
// connection.
func (s *Service) track(ctx context.Context, conn net.Conn, grace time.Duration, handle func(context.Context)) {
	s.conns.Go(func() {
		defer conn.Close()
		defer func() {
			if p := recover(); p != nil {
				s.cfg.Log.ErrorContext(ctx, "a connection was ended by a panic", "panic", fmt.Sprint(p),
					"remote_addr", conn.RemoteAddr().String(), "stack", string(debug.Stack()))
			}
		}()
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stop := context.AfterFunc(ctx, func() {
			timer := time.NewTimer(max(grace, 0))
			defer timer.Stop()
			select {
			case <-timer.C:
				cancel()
				_ = conn.Close()
			case <-own.Done():
			}
		})
		defer stop()
		handle(own)
	})
}

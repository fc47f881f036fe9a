// Package proxy is the Proxy Service: the cluster's one public port. It tells what a
// connection wants by its ALPN name and passes it on: users' connections to nodes,
// agents' tunnels, joins and logins to the Auth Service, and TLS connections that are
// for Auth itself. It copies the bytes of a session and reads none of them; whether a
// user may do something on a node is the node's decision.
//
//	ALPN                       who                    goes to
//	h2, http/1.1, none         browsers, scripts      web pages, /webapi/ping, /webapi/find
//	teleport-proxy-grpc        anybody                Join and Login, relayed to Auth
//	teleport-auth@<cluster>    agents, tsh, tctl      Auth, TLS end to end
//	teleport-reversetunnel     agents                 the tunnels
//	teleport-proxy-ssh         users (certificate)    a node
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
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
	"teleport/internal/mux"
	"teleport/internal/route"
	"teleport/internal/state"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

const (
	// handshakeTimeout bounds TLS and the first frame of a user's connection.
	handshakeTimeout = 15 * time.Second
	// drainTime is how long open connections may go on when the service stops.
	drainTime = 3 * time.Second
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
}

// Service is a Proxy Service.
type Service struct {
	cfg     Config
	tunnels *tunnel.Server
	router  *route.Router
	web     *webCertificate
	metrics *metrics
	relayed *budget.Sources

	conns sync.WaitGroup
}

// New returns a Service. It reads the key pairs, so that a bad one is an error at
// the start and not at the first visitor.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Listener == nil:
		return nil, errors.New("proxy service: Listener is required")
	case cfg.Holder == nil || cfg.Cache == nil || cfg.AuthConn == nil || cfg.Emit == nil:
		return nil, errors.New("proxy service: Holder, Cache, AuthConn and Emit are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg, relayed: budget.NewSources(relayRate, relayBurst, maxSources)}
	var err error
	if s.web, err = newWebCertificate(cfg.Keypairs, s.certificate); err != nil {
		return nil, err
	}
	s.tunnels = tunnel.NewServer(tunnel.ServerConfig{
		Trust: cfg.Holder.Trust, Signer: func() ssh.Signer { return cfg.Holder.SSHSigner(types.RoleProxy) }, Log: cfg.Log,
	})
	s.router = route.New(route.Config{Cache: cfg.Cache, Tunnels: s.tunnels, Certificate: s.certificate})
	s.metrics = newMetrics(cfg.Registerer, s.tunnels.Count)
	return s, nil
}

// Name returns "proxy".
func (s *Service) Name() string { return "proxy" }

// certificate is the Proxy's own, signed by the host CA.
func (s *Service) certificate() *tls.Certificate { return s.cfg.Holder.Certificate(types.RoleProxy) }

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context, ready func()) error {
	port := mux.New(mux.Config{Listener: s.cfg.Listener, Log: s.cfg.Log})
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
	s.metrics.watch(port)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return port.Serve(ctx) })
	g.Go(func() error { return s.serveUsers(ctx, userPort) })
	g.Go(func() error { return s.serveAuth(ctx, authPort) })
	g.Go(func() error { return s.serveRelay(ctx, relayPort) })
	g.Go(func() error { return s.serveWeb(ctx, webPort) })
	g.Go(func() error {
		config := ca.ServerTLS(s.certificate, s.cfg.Holder.Trust, tls.NoClientCert, mux.ALPNTunnel)
		return s.tunnels.Serve(ctx, tls.NewListener(tunnelPort, config))
	})
	g.Go(func() error { return s.web.reload(ctx, s.cfg.KeypairsReloadInterval, s.cfg.Log) })
	ready()
	err := g.Wait()
	s.conns.Wait()
	return err
}

// cluster is the name of the cluster.
func (s *Service) cluster() string { return s.cfg.Cache.ClusterName().GetSpec().GetClusterName() }

// track runs handle for a connection, closes the connection when it returns or soon
// after ctx ends, and keeps a panic from ending more than this one connection.
func (s *Service) track(ctx context.Context, conn net.Conn, handle func(context.Context)) {
	s.conns.Go(func() {
		defer conn.Close()
		defer func() {
			if p := recover(); p != nil {
				s.cfg.Log.ErrorContext(ctx, "a connection was ended by a panic", "panic", p, "remote_addr", conn.RemoteAddr().String())
			}
		}()
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stop := context.AfterFunc(ctx, func() {
			timer := time.NewTimer(drainTime)
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

package ssh

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Config says how the SSH Service runs. Holder, Cache, Emit, Hostname, Announce and
// Log are required.
type Config struct {
	// Holder has the host certificate and the trust in users' certificates.
	Holder *state.Holder
	// Cache has the roles.
	Cache *cache.Cache
	// Emit stores audit events or keeps them for later; an error means that they are
	// lost, and what they are about must not happen.
	Emit func(ctx context.Context, events ...*auditv1.Event) error
	// Listener takes direct connections; nil behind a tunnel.
	Listener net.Listener
	Hostname string
	// Labels are static; Commands make the others.
	Labels   map[string]string
	Commands []Command
	// AdvertiseAddr is where others reach the Listener; empty means its address.
	AdvertiseAddr string
	// UseTunnel says that the host is reached through a reverse tunnel.
	UseTunnel bool
	// NoPortForwarding and NoFileCopy refuse to everybody what roles allow. X11 is
	// refused unless it is enabled.
	NoPortForwarding, NoFileCopy bool
	X11                          X11Config
	// NoHostUsers makes no local users, whatever roles say.
	NoHostUsers bool
	PAM         PAMConfig
	// SessionsChanged is called when Sessions has something else to say; it may be nil.
	SessionsChanged func()
	// Announce is told what this host is, when that is known and when it changes.
	Announce func(*typesv1.Server)
	// Siblings is a directory where the processes of this host find each other after an
	// upgrade, and nobody else comes; empty is nowhere.
	Siblings   string
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Service is the SSH Service.
type Service struct {
	cfg      Config
	server   *sshd.Server
	labels   *labels
	hosts    hostFiles
	book     *loginBook
	metrics  *metrics
	guard    *sshaccess.Guard
	live     *sshaccess.Registry[*connection]
	arrivals *arrivals
	draining atomic.Bool
	parties  parties
	users    *hostUsers

	mu      sync.Mutex
	stopped bool
	cancels map[int]context.CancelFunc
	next    int
	conns   sync.WaitGroup
}

// New checks the configuration and returns a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Holder == nil || cfg.Cache == nil || cfg.Emit == nil || cfg.Announce == nil || cfg.Log == nil {
		return nil, fault.Invalid("ssh service: Holder, Cache, Emit, Announce and Log are required")
	}
	if err := types.ValidHostname(cfg.Hostname); err != nil {
		return nil, fmt.Errorf("ssh service: host name: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l, err := newLabels(cfg.Labels, cfg.Commands, cfg.Log)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, labels: l, hosts: systemFiles(), book: systemBook(), metrics: m, cancels: map[int]context.CancelFunc{}, users: newHostUsers(systemFiles(), cfg.Log)}
	s.guard = sshaccess.New(sshaccess.Config{
		Trust: cfg.Holder.Trust, Cache: cfg.Cache, Emit: cfg.Emit, Log: cfg.Log, Now: cfg.Now,
		Here: "this host", LockedOut: cfg.Cache.LockedOut, Refused: m.rejected.Inc,
	})
	s.live = sshaccess.NewRegistry[*connection](s.guard)
	if s.server, err = sshd.New(s.sshdConfig()); err != nil {
		return nil, err
	}
	if s.arrivals, err = newArrivals(s.siblings); err != nil {
		return nil, err
	}
	return s, nil
}

// sshdConfig is how SSH is served.
func (s *Service) sshdConfig() sshd.Config {
	return sshd.Config{
		HostSigners:  s.hostSigners,
		Authenticate: s.guard.Authenticate,
		Authorize:    s.authorize,
		Connected:    s.connected,
		Session:      s.session,
		Forwarding:   s.forwarding(),
		Subsystems:   []string{sshaccess.SubsystemSFTP, subsystemJoin},
		AcceptEnv:    acceptEnv,
		Version:      software,
		KillAfter:    killAfter,
		Log:          s.cfg.Log,
	}
}

// Name returns "ssh".
func (s *Service) Name() string { return "ssh" }

// Run announces the host and serves until ctx ends. Sessions are then hung up and
// waited for.
func (s *Service) Run(ctx context.Context, ready func()) error {
	defer s.stop()
	if err := s.cfg.Cache.WaitSynced(ctx); err != nil {
		return stopOr(ctx, fmt.Errorf("wait for the state of the cluster: %w", err))
	}
	s.labels.runAll(ctx)
	if ctx.Err() != nil {
		return nil
	}
	s.cfg.Announce(s.self())
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { s.labels.run(ctx, func() { s.cfg.Announce(s.self()) }) })
	work.Go(func() { s.guard.ReportRefusals(ctx) })
	work.Go(func() { s.live.FollowLocks(ctx) })
	work.Go(func() { s.live.EnforceLimits(ctx, (*connection).Due) })
	if s.cfg.Siblings != "" {
		work.Go(func() { s.serveSiblings(ctx) })
	}
	if !s.cfg.NoHostUsers && os.Geteuid() == 0 {
		work.Go(func() { s.users.sweep(ctx) })
	}
	ready()
	if s.cfg.Listener == nil {
		<-ctx.Done()
		return nil
	}
	//nolint:contextcheck // the listener ends when it is closed, and Serve closes it when ctx ends
	ln := mux.RelayedListener(sshd.QuickAck(s.cfg.Listener), mux.PurposeNode, s.verifyProxy, s.cfg.Now)
	defer func() { _ = ln.Close() }()
	err := s.serve(ctx, ln)
	if s.draining.Load() {
		<-ctx.Done()
		return nil
	}
	return err
}

// stopOr returns err unless ctx has ended: to be stopped is no failure.
func stopOr(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// HandleConn serves one connection that came through a tunnel and returns when it
// is over. clientAddr is the address of the client behind it.
func (s *Service) HandleConn(ctx context.Context, conn net.Conn, clientAddr string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		_ = conn.Close()
		return
	}
	n := s.next
	s.next++
	s.cancels[n] = cancel
	s.conns.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.cancels, n)
		s.mu.Unlock()
		s.conns.Done()
	}()
	s.serveConn(ctx, fromClient(conn, clientAddr))
}

// stop ends the connections that came through tunnels: the last that are open.
func (s *Service) stop() {
	s.mu.Lock()
	s.stopped = true
	for _, cancel := range s.cancels {
		cancel()
	}
	s.mu.Unlock()
	s.conns.Wait()
	if s.cfg.PAM.Helper != nil {
		_ = s.cfg.PAM.Helper.Close()
	}
}

// verifyProxy says whether a certificate is that of a Proxy of the cluster.
func (s *Service) verifyProxy(cert *x509.Certificate) error {
	id, err := s.cfg.Holder.Trust().VerifyTLS([]*x509.Certificate{cert}, s.cfg.Now())
	if err != nil {
		return err
	}
	if !id.Host.Serves(types.RoleProxy) {
		return fault.Denied("%q is no Proxy", id.Name())
	}
	return nil
}

func (s *Service) hostSigners() []gossh.Signer {
	if signer := s.cfg.Holder.SSHSigner(types.RoleNode); signer != nil {
		return []gossh.Signer{signer}
	}
	return nil
}

// clientConn is a connection whose other end is not who dialled it.
type clientConn struct {
	net.Conn
	remote net.Addr
}

// RemoteAddr is the client's address.
func (c clientConn) RemoteAddr() net.Addr { return c.remote }

// fromClient makes the address the connection's. One that is no IP address and
// port satisfies no rule about addresses.
func fromClient(conn net.Conn, addr string) net.Conn {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return clientConn{conn, textAddr(addr)}
	}
	return clientConn{conn, net.TCPAddrFromAddrPort(ap)}
}

type textAddr string

// Network returns "tcp".
func (textAddr) Network() string { return "tcp" }

// String returns the text.
func (a textAddr) String() string { return string(a) }

package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/types"
)

// Defaults of a ServerConfig whose fields are zero.
const (
	DefaultMaxTunnels    = 20_000
	DefaultMaxHandshakes = 256
	DefaultDrain         = 5 * time.Second
)

const (
	// maxPerHost bounds the tunnels of one host id: the newest, and old ones that
	// still carry something.
	maxPerHost = 8
	// attemptTimeout bounds the opening of a channel where another tunnel is left
	// to try; dialTimeout bounds it in any case.
	attemptTimeout = 5 * time.Second
	dialTimeout    = 15 * time.Second
	// handshakeGrace is how long a handshake may take before it has to make room
	// for others.
	handshakeGrace = 3 * time.Second
	// handshakeCost is what a new tunnel costs the Proxy: agents that are sent away
	// spread their return accordingly.
	handshakeCost = 5 * time.Millisecond
	// renewBefore is how long before its certificate ends a tunnel is replaced.
	renewBefore = 5 * time.Minute
	// expiredCheck is how often a tunnel whose certificate ended is looked at.
	expiredCheck = time.Minute
)

// ServerConfig is what the Proxy's end needs.
type ServerConfig struct {
	// Trust says whose host certificates are good.
	Trust func() *ca.Trust
	// Signer signs as the Proxy, with a host certificate.
	Signer func() ssh.Signer
	// Admit, if set, refuses a host a tunnel by an error. It has to be quick; when
	// its answers change, call Recheck.
	Admit func(hostID string) error
	Log   *slog.Logger
	Now   func() time.Time

	// MaxTunnels bounds the tunnels, MaxHandshakes those being authenticated.
	MaxTunnels, MaxHandshakes int
	// Drain is how long Serve waits for open channels when it ends; negative is
	// not at all.
	Drain time.Duration
	// PingInterval and PingTimeout say how a dead agent is noticed.
	PingInterval, PingTimeout time.Duration
}

// Server is the Proxy's end: it accepts tunnels and dials through them.
type Server struct {
	cfg  ServerConfig
	gate *mux.Gate
	work sync.WaitGroup

	mu      sync.RWMutex
	tunnels map[string][]*agentLink // by host id, newest last
	count   int
	closed  bool
}

// agentLink is the tunnel of an authenticated agent.
type agentLink struct {
	*link
	host    *identity.Host
	expires time.Time
}

// identityKey finds the identity in the Permissions of the authentication that
// succeeded. What was only offered never gets there.
type identityKey struct{}

// NewServer returns a server without tunnels.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	setDefault(&cfg.MaxTunnels, DefaultMaxTunnels)
	setDefault(&cfg.MaxHandshakes, DefaultMaxHandshakes)
	setDefault(&cfg.PingInterval, pingInterval)
	setDefault(&cfg.PingTimeout, pingTimeout)
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	return &Server{
		cfg:     cfg,
		gate:    mux.NewGate(cfg.MaxHandshakes, max(cfg.MaxHandshakes/4, 1), handshakeGrace),
		tunnels: make(map[string][]*agentLink),
	}
}

func setDefault[T int | time.Duration](v *T, fallback T) {
	if *v <= 0 {
		*v = fallback
	}
}

// Serve accepts tunnels from ln, whose connections are TLS ones, until ctx ends.
// It then tells the agents to go elsewhere, waits a moment for what is open, and
// closes everything.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	// Tunnels outlive ctx by the time they are given to drain.
	links, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	err := mux.Accept(ctx, ln, s.cfg.Log, func(conn net.Conn) {
		s.work.Go(func() { s.handshake(ctx, links, conn) })
	})
	s.drain(links)
	cut()
	s.work.Wait()
	return err
}

// handshake authenticates an agent, in its turn, and starts its tunnel.
func (s *Server) handshake(ctx, links context.Context, conn net.Conn) {
	slot, err := s.gate.Enter(ctx, conn)
	if err != nil {
		s.cfg.Log.DebugContext(ctx, "tunnel refused", "remote_addr", conn.RemoteAddr().String(), "error", err)
		_ = conn.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	l, chans, reqs, err := s.authenticate(ctx, conn)
	slot.Leave()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = s.register(ctx, l)
	}
	if err != nil {
		_ = conn.Close()
		s.cfg.Log.InfoContext(ctx, "tunnel refused", "remote_addr", conn.RemoteAddr().String(), "error", err)
		return
	}
	// A goroutine of its own: the stack of the handshake is not kept.
	s.work.Go(func() { s.run(links, l, chans, reqs) })
}

func (s *Server) authenticate(ctx context.Context, conn net.Conn) (l *agentLink, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.cfg.Log.ErrorContext(ctx, "tunnel handshake panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic in tunnel handshake")
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, nil, nil, fmt.Errorf("set deadline: %w", err)
	}
	if t, ok := conn.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, nil, fmt.Errorf("tls handshake: %w", err)
		}
	}
	signer := s.cfg.Signer()
	if signer == nil {
		return nil, nil, nil, fault.Unsupported("this Proxy has no host certificate for tunnels")
	}
	config := &ssh.ServerConfig{
		Config:                  algorithms(),
		PublicKeyAuthAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256},
		MaxAuthTries:            2,
		ServerVersion:           sshVersion,
		PublicKeyCallback:       s.checkKey,
	}
	config.AddHostKey(signer)
	w := newWire(conn)
	sc, chans, reqs, err := ssh.NewServerConn(w, config)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ssh handshake: %w", err)
	}
	id, ok := sc.Permissions.ExtraData[identityKey{}].(*identity.Identity)
	if !ok || id.Host == nil {
		_ = sc.Close()
		return nil, nil, nil, fault.Unauthenticated("the agent proved no identity")
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = sc.Close()
		return nil, nil, nil, fmt.Errorf("clear deadline: %w", err)
	}
	log := s.cfg.Log.With("host_id", id.Host.ID)
	p := pulse{s.cfg.PingInterval, s.cfg.PingTimeout}
	return &agentLink{link: newLink(sc.Conn, w, p, log), host: id.Host, expires: id.Expires}, chans, reqs, nil
}

// checkKey says whose key is offered; that the peer holds it is proven later, by
// its signature.
func (s *Server) checkKey(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	trust := s.cfg.Trust()
	if trust == nil {
		return nil, fault.Unsupported("this Proxy knows no certificate authorities yet")
	}
	id, err := trust.VerifySSHHost(key, meta.User(), s.cfg.Now())
	if err != nil {
		return nil, err
	}
	switch {
	case id.Host == nil || id.Host.ID != meta.User():
		return nil, fault.Denied("certificate of host %q used as %q", id.Name(), meta.User())
	case id.Host.Service != "":
		return nil, fault.Denied("certificate of service %s used for a tunnel: expected that of the process", id.Host.Service)
	}
	return &ssh.Permissions{ExtraData: map[any]any{identityKey{}: id}}, nil
}

// register makes l the tunnel that its host is dialled through.
func (s *Server) register(ctx context.Context, l *agentLink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.Unreachable("the Proxy is stopping")
	}
	if s.count >= s.cfg.MaxTunnels {
		return fault.Limit("this Proxy has %d tunnels, no more fit", s.count)
	}
	// With the lock held, so that Recheck sees either this tunnel or came before.
	if err := s.admits(l.host.ID); err != nil {
		return err
	}
	links := s.tunnels[l.host.ID]
	if len(links) >= maxPerHost {
		s.cfg.Log.WarnContext(ctx, "too many tunnels of one host, closing the oldest", "host_id", l.host.ID)
		links[0].close()
	}
	s.tunnels[l.host.ID] = append(links, l)
	s.count++
	return nil
}

func (s *Server) unregister(l *agentLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := slices.DeleteFunc(s.tunnels[l.host.ID], func(o *agentLink) bool { return o == l })
	s.count--
	if len(links) == 0 {
		delete(s.tunnels, l.host.ID)
		return
	}
	s.tunnels[l.host.ID] = links
}

// run keeps a registered tunnel until it ends.
func (s *Server) run(ctx context.Context, l *agentLink, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	defer s.unregister(l)
	l.log.InfoContext(ctx, "tunnel opened", "remote_addr", l.ssh.RemoteAddr().String())
	if !l.expires.IsZero() {
		life := l.expires.Sub(s.cfg.Now())
		// By then the agent has a newer certificate; it comes back with that one.
		renew := time.AfterFunc(life-renewBefore, func() { l.sendLeaving(0) })
		defer renew.Stop()
		defer l.closeAfter(life).Stop()
	}
	l.watch(ctx, chans, reqs, nil)
	l.log.InfoContext(ctx, "tunnel closed")
}

// closeAfter closes the tunnel after d, or later when nothing goes through it.
func (l *agentLink) closeAfter(d time.Duration) *time.Timer {
	var self atomic.Pointer[time.Timer]
	t := time.AfterFunc(d, func() {
		if t := self.Load(); t != nil && l.channels.Load() > 0 {
			t.Reset(expiredCheck)
			return
		}
		l.close()
	})
	self.Store(t)
	return t
}

// drain sends the agents away and waits until nothing is open, but not for long.
func (s *Server) drain(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	links := s.allLocked()
	s.mu.Unlock()
	spread := time.Duration(len(links)) * handshakeCost
	var told sync.WaitGroup
	for _, l := range links {
		told.Go(func() { l.sendLeaving(spread) })
	}
	deadline := time.NewTimer(max(s.cfg.Drain, 0))
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for busy(links) {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
	// Let the news get out before the connections close.
	sent := make(chan struct{})
	go func() {
		told.Wait()
		close(sent)
	}()
	select {
	case <-sent:
	case <-deadline.C:
	}
}

func busy(links []*agentLink) bool {
	return slices.ContainsFunc(links, func(l *agentLink) bool { return l.channels.Load() > 0 })
}

func (s *Server) allLocked() []*agentLink {
	all := make([]*agentLink, 0, s.count)
	for _, links := range s.tunnels {
		all = append(all, links...)
	}
	return all
}

// Dial opens a connection to a service of the host. It tries the newest tunnel first
// and then the others.
func (s *Server) Dial(ctx context.Context, hostID string, req Request) (net.Conn, error) {
	extra, err := req.marshal()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	links := s.usable(hostID)
	err = fault.Unreachable("host %q has no tunnel to this Proxy: is its agent running, and can it reach the Proxy?", hostID)
	for i, l := range links {
		if !l.host.Has(req.Service) {
			err = fault.Unreachable("its agent does not run the %s service", req.Service)
			continue
		}
		var conn net.Conn
		if conn, err = l.attempt(ctx, extra, i < len(links)-1); err == nil {
			return conn, nil
		}
		l.log.WarnContext(ctx, "cannot dial through a tunnel", "error", err)
	}
	return nil, fmt.Errorf("dial host %q: %w", hostID, err)
}

func (l *agentLink) attempt(ctx context.Context, extra []byte, others bool) (net.Conn, error) {
	if others {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
	}
	return l.open(ctx, extra)
}

// usable returns the tunnels of a host, newest first, without those whose
// certificate has expired.
func (s *Server) usable(hostID string) []*agentLink {
	now := s.cfg.Now()
	s.mu.RLock()
	links := slices.Clone(s.tunnels[hostID])
	s.mu.RUnlock()
	slices.Reverse(links)
	return slices.DeleteFunc(links, func(l *agentLink) bool { return !l.expires.IsZero() && now.After(l.expires) })
}

// Connected reports whether the host has a tunnel.
func (s *Server) Connected(hostID string) bool { return len(s.usable(hostID)) > 0 }

// Serves reports whether the host has a tunnel that connects to the service.
func (s *Server) Serves(hostID string, service types.SystemRole) bool {
	return slices.ContainsFunc(s.usable(hostID), func(l *agentLink) bool { return l.host.Has(service) })
}

// Count returns the number of tunnels.
func (s *Server) Count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.count
}

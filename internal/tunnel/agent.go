package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/retry"
)

const (
	// stableAfter is how long a tunnel has to live for the next failure to count
	// as the first.
	stableAfter = 10 * time.Second
	dialerLimit = 10 * time.Second
)

// AgentConfig is what the agent's end needs.
type AgentConfig struct {
	// Addr is the Proxy's host:port.
	Addr string
	// TLS checks the Proxy (ca.ClientTLS for its role); the ALPN name is set here.
	TLS *tls.Config
	// Signer signs with the process-level host certificate.
	Signer func() ssh.Signer
	// HostKey checks the Proxy's SSH host certificate.
	HostKey func() ssh.HostKeyCallback
	// Handle serves a connection to one of the agent's services. The connection is
	// closed when Handle returns. What the request says of the client is the Proxy's word.
	Handle func(ctx context.Context, conn net.Conn, req Request)
	// Again, if set, asks for another tunnel, because Signer has a certificate with more
	// to it. What goes through the one before goes on.
	Again <-chan struct{}
	Log   *slog.Logger

	// Dial replaces the dialling of Addr.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Reconnect paces the attempts; zero means from half a second to half a minute.
	Reconnect retry.Backoff
	// PingInterval and PingTimeout say how a dead Proxy is noticed.
	PingInterval, PingTimeout time.Duration
}

// agent is a running RunAgent.
type agent struct {
	cfg     AgentConfig
	onState func(connected bool)
	work    sync.WaitGroup

	mu sync.Mutex
	up int // live tunnels
}

// RunAgent keeps a tunnel to the Proxy until ctx ends, and then returns nil.
// onState is called when the first tunnel is up and when none is left; it may be
// nil and must not block.
func RunAgent(ctx context.Context, cfg AgentConfig, onState func(connected bool)) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialerLimit}).DialContext
	}
	if cfg.Reconnect == (retry.Backoff{}) {
		cfg.Reconnect = retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	}
	setDefault(&cfg.PingInterval, pingInterval)
	setDefault(&cfg.PingTimeout, pingTimeout)
	if onState == nil {
		onState = func(bool) {}
	}
	if cfg.TLS == nil || cfg.Signer == nil || cfg.HostKey == nil || cfg.Handle == nil {
		return fault.Invalid("tunnel agent: TLS, Signer, HostKey and Handle are required")
	}
	a := &agent{cfg: cfg, onState: onState}
	defer a.work.Wait()
	pace := cfg.Reconnect
	var before *link // it is to go as soon as there is another one
	for ctx.Err() == nil {
		l, err := a.connect(ctx)
		if err != nil {
			wait := pace.Next()
			if ctx.Err() == nil {
				cfg.Log.WarnContext(ctx, "cannot open the tunnel to the Proxy, trying again",
					"proxy", cfg.Addr, "retry_in", wait.Round(time.Millisecond), "error", err)
			}
			_ = retry.Sleep(ctx, wait)
			continue
		}
		if before != nil {
			old := before
			before = nil
			a.work.Go(func() { old.retire(ctx) })
		}
		since := time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-l.left:
		case <-l.gone:
		case <-cfg.Again:
			before = l
			pace.Reset()
			continue
		}
		select {
		case <-l.left:
			// The Proxy says by when to be back; what is open goes on meanwhile.
			cfg.Log.InfoContext(ctx, "the Proxy asks for a new tunnel", "proxy", cfg.Addr, "within", l.spread)
			pace.Reset()
			_ = retry.Sleep(ctx, retry.Jitter(l.spread))
			continue
		default:
		}
		if time.Since(since) >= stableAfter {
			pace.Reset()
		}
		wait := pace.Next()
		if ctx.Err() == nil {
			cfg.Log.WarnContext(ctx, "lost the tunnel to the Proxy", "proxy", cfg.Addr, "retry_in", wait.Round(time.Millisecond))
		}
		_ = retry.Sleep(ctx, wait)
	}
	return nil
}

// connect opens a tunnel and starts to serve it.
func (a *agent) connect(ctx context.Context) (*link, error) {
	l, chans, reqs, err := a.handshake(ctx)
	if err != nil {
		return nil, err
	}
	a.count(1)
	a.cfg.Log.InfoContext(ctx, "tunnel to the Proxy opened", "proxy", a.cfg.Addr)
	a.work.Go(func() {
		defer a.count(-1)
		l.watch(ctx, chans, reqs, func(nc ssh.NewChannel) { a.accept(ctx, l, nc) })
	})
	return l, nil
}

// count keeps the number of live tunnels and tells the owner of its edges.
func (a *agent) count(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.up > 0
	a.up += n
	if is := a.up > 0; is != was {
		a.onState(is)
	}
}

func (a *agent) handshake(ctx context.Context) (*link, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	signer, user, err := a.identity()
	if err != nil {
		return nil, nil, nil, err
	}
	raw, err := a.cfg.Dial(ctx, "tcp", a.cfg.Addr)
	if err != nil {
		return nil, nil, nil, fault.Unreachable("dial the Proxy at %s: %w", a.cfg.Addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	l, chans, reqs, err := a.secure(ctx, raw, signer, user)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		return nil, nil, nil, err
	}
	return l, chans, reqs, nil
}

// identity returns the signer and the host id of its certificate.
func (a *agent) identity() (ssh.Signer, string, error) {
	signer := a.cfg.Signer()
	if signer == nil {
		return nil, "", fault.Unauthenticated("this process has no host certificate yet")
	}
	cert, ok := signer.PublicKey().(*ssh.Certificate)
	if !ok {
		return nil, "", fault.Invalid("tunnel agent: the signer has no certificate")
	}
	id, err := identity.FromSSH(cert)
	if err != nil {
		return nil, "", fmt.Errorf("own host certificate: %w", err)
	}
	if id.Host == nil {
		return nil, "", fault.Invalid("own certificate is of user %q: expected a host's", id.Name())
	}
	return signer, id.Host.ID, nil
}

// secure does the TLS and the SSH handshake.
func (a *agent) secure(ctx context.Context, raw net.Conn, signer ssh.Signer, user string) (*link, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	config := a.cfg.TLS.Clone()
	config.NextProtos = []string{mux.ALPNTunnel}
	config.DynamicRecordSizingDisabled = true
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("tls with the Proxy at %s: %w", a.cfg.Addr, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != mux.ALPNTunnel {
		return nil, nil, nil, fault.Unsupported("the server at %s speaks TLS but is no Proxy: it did not agree on %s; is there an HTTP load balancer in between?", a.cfg.Addr, mux.ALPNTunnel)
	}
	w := newWire(conn)
	sc, chans, reqs, err := ssh.NewClientConn(w, a.cfg.Addr, &ssh.ClientConfig{
		Config:            algorithms(),
		User:              user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   a.cfg.HostKey(),
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01},
		ClientVersion:     sshVersion,
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ssh with the Proxy at %s: %w", a.cfg.Addr, err)
	}
	// The Proxy answers once it has the tunnel in its books: from now on users get
	// through.
	if _, _, err := sc.SendRequest(requestPing, true, nil); err != nil {
		return nil, nil, nil, fault.Unreachable("the Proxy at %s does not take the tunnel: %w", a.cfg.Addr, err)
	}
	p := pulse{a.cfg.PingInterval, a.cfg.PingTimeout}
	return newLink(sc, w, p, a.cfg.Log), chans, reqs, nil
}

// accept serves one channel that the Proxy opens.
func (a *agent) accept(ctx context.Context, l *link, nc ssh.NewChannel) {
	if nc.ChannelType() != channelType {
		_ = nc.Reject(ssh.UnknownChannelType, "expected "+channelType)
		return
	}
	req, client, err := parseTransport(nc.ExtraData())
	if err != nil {
		a.cfg.Log.WarnContext(ctx, "refused a channel of the Proxy", "error", err)
		_ = nc.Reject(ssh.ConnectionFailed, "bad transport request")
		return
	}
	if l.channels.Add(1) > maxChannels {
		l.channels.Add(-1)
		_ = nc.Reject(ssh.ResourceShortage, "too many connections through the tunnel")
		return
	}
	a.work.Go(func() {
		ch, reqs, err := nc.Accept()
		if err != nil {
			l.channels.Add(-1)
			return
		}
		a.work.Go(func() {
			defer l.channels.Add(-1)
			ssh.DiscardRequests(reqs)
		})
		conn := newConn(ch, l.ssh.LocalAddr(), client)
		defer func() { _ = conn.Close() }()
		defer func() {
			if v := recover(); v != nil {
				a.cfg.Log.ErrorContext(ctx, "connection handler panicked", "service", req.Service,
					"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
		}()
		a.cfg.Handle(ctx, conn, req)
	})
}

package sshd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/mux"
)

// Defaults of Config.
const (
	DefaultHandshakeTimeout = 30 * time.Second
	DefaultKeepAlive        = 5 * time.Minute
	DefaultKeepAliveMax     = 3
	DefaultMaxPending       = 256
	DefaultMaxSessions      = 32
	DefaultKillAfter        = 5 * time.Second
	DefaultDrain            = 5 * time.Second
	DefaultMaxForwards      = 512
	DefaultMaxListeners     = 64
)

// pendingGrace is how long a connection may take to log in before it has to make
// room for another one, when there are too many.
const pendingGrace = 5 * time.Second

// maxAuthTries is how many keys a client may offer.
const maxAuthTries = 6

// Login is what an accepted key stands for. It reaches the connection only
// through the permissions of the authentication that succeeded.
type Login struct {
	// Value belongs to the caller: the identity behind the key.
	Value any
	// CriticalOptions are those of the certificate behind it. source-address is
	// enforced here; a login with any other is refused.
	CriticalOptions map[string]string
	// Extensions are those of the certificate behind the key. They are for the caller:
	// nothing is made of them here.
	Extensions map[string]string
	// NoTerminal refuses pseudo terminals.
	NoTerminal bool
	// MaxSessions bounds the session channels of the connection further than the
	// Config does; 0 does not.
	MaxSessions int
	// TooMany, if not nil, is called when there are MaxSessions and the client asks for
	// one more. It returns what the client is told, or "".
	TooMany func(ctx context.Context) string
	// Banner, if Authorize sets it, is shown to the user who is let in.
	Banner string
	// Ended, if not nil, is called once when the connection is over. Authorize sets
	// it when it allows and has something to give back.
	Ended func()
}

// Config says how a Server behaves. HostSigners, Authenticate, Session and Log
// are required.
type Config struct {
	// HostSigners returns the host keys of the next connection.
	HostSigners func() []ssh.Signer
	// Authenticate says what a key that was only offered would stand for. The
	// peer has proved nothing yet: it must have no side effect. The text of a
	// *Refusal is shown to the user.
	Authenticate func(ctx context.Context, meta ssh.ConnMetadata, key ssh.PublicKey) (*Login, error)
	// Authorize is asked after the peer proved that it holds the key. The text of a
	// *Refusal is shown to the user. Nil allows.
	Authorize func(ctx context.Context, meta ssh.ConnMetadata, login *Login) error
	// Connected is told of each connection that has logged in before anything is
	// opened on it; ctx ends with it. What it returns is called when all of it is
	// over. It may be nil.
	Connected func(ctx context.Context, c *Conn) (ended func())
	// Session runs what the client asked for on a session channel and returns how
	// it ended. ctx ends when the channel or the connection does.
	Session func(ctx context.Context, s *Session) Exit
	// Carrier, if not nil, has everything carried to another server; then Session,
	// Subsystems, AcceptEnv and Forwarding are not used.
	Carrier *Carrier
	// Subsystems are the names a client may ask for; one that ends in a colon stands for
	// all that begin with it.
	Subsystems []string
	// AcceptEnv says which variables a client may set. Nil accepts none.
	AcceptEnv func(name string) bool
	Log       *slog.Logger
	// Version is the software named in the identification string.
	Version string

	// HandshakeTimeout bounds everything up to successful authentication.
	HandshakeTimeout time.Duration
	// KeepAlive is the pause between keepalive requests; after KeepAliveMax of them
	// without an answer the connection is closed.
	KeepAlive    time.Duration
	KeepAliveMax int
	// MaxPending bounds the connections that are not authenticated yet; one source
	// address may have a quarter of them.
	MaxPending int
	// Pending, if not nil, takes the place of MaxPending: Servers may share one.
	Pending *mux.Gate
	// MaxSessions bounds the session channels of one connection.
	MaxSessions int
	// Forwarding is what clients may do beyond sessions.
	Forwarding Forwarding
	// MaxForwards bounds the forwarded connections of one connection that are open at
	// the same time, MaxListeners its listeners.
	MaxForwards  int
	MaxListeners int
	// KillAfter is how long a process may live on after the hang-up signal.
	KillAfter time.Duration
	// Drain is how long output may pause, after the command itself has ended,
	// before background children that hold its pipes are no longer listened to.
	Drain time.Duration
}

// Refusal is an error of Authenticate or Authorize whose text the user is shown.
type Refusal struct {
	// Text is one line for the user.
	Text string
}

// Error returns the text.
func (r *Refusal) Error() string { return r.Text }

// Server serves SSH connections.
type Server struct {
	cfg     Config
	pending *mux.Gate
}

// New checks the configuration, fills in the defaults and returns a Server. From
// then on no descriptor of this process gets into the processes it starts.
func New(cfg Config) (*Server, error) {
	if cfg.HostSigners == nil || cfg.Authenticate == nil || cfg.Session == nil && cfg.Carrier == nil || cfg.Log == nil {
		return nil, fault.Invalid("sshd: HostSigners, Authenticate, Session or Carrier, and Log are required")
	}
	if cfg.Carrier == nil { // which starts no processes
		if err := sealDescriptors(); err != nil {
			return nil, err
		}
	}
	setDefault(&cfg.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&cfg.KeepAlive, DefaultKeepAlive)
	setDefault(&cfg.KeepAliveMax, DefaultKeepAliveMax)
	setDefault(&cfg.MaxPending, DefaultMaxPending)
	setDefault(&cfg.MaxSessions, DefaultMaxSessions)
	setDefault(&cfg.MaxForwards, DefaultMaxForwards)
	setDefault(&cfg.MaxListeners, DefaultMaxListeners)
	setDefault(&cfg.KillAfter, DefaultKillAfter)
	setDefault(&cfg.Drain, DefaultDrain)
	setDefault(&cfg.Version, "Teleport")
	if cfg.Pending == nil {
		cfg.Pending = NewPending(cfg.MaxPending)
	}
	return &Server{cfg: cfg, pending: cfg.Pending}, nil
}

// NewPending returns a bound for the connections that are not authenticated yet, of
// which one source address may have a quarter.
func NewPending(limit int) *mux.Gate {
	return mux.NewGate(limit, limit/4, pendingGrace)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Serve accepts connections until ctx ends, then closes the listener and every
// connection and waits for their sessions to end.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	return mux.Accept(ctx, ln, s.cfg.Log, func(nc net.Conn) {
		conns.Go(func() { s.ServeConn(ctx, nc) })
	})
}

// ServeConn serves one connection and returns when it and all its sessions are
// over. It owns nc. A panic inside ends this connection only.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.ErrorContext(ctx, "panic while serving ssh connection", "panic", r, "stack", string(debug.Stack()))
		}
		_ = nc.Close()
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	remote := nc.RemoteAddr()
	slot, err := s.pending.Enter(ctx, nc)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "ssh connection refused", "remote", addrText(remote), "error", err)
		return
	}
	var granted *Login
	defer func() {
		if granted != nil && granted.Ended != nil {
			granted.Ended()
		}
	}()
	conn, chans, reqs, err := s.handshake(ctx, newBuffered(nc), &granted)
	if slot.Leave() && err != nil {
		err = fmt.Errorf("closed to make room for other connections: %w", err)
	}
	if err != nil {
		s.cfg.Log.InfoContext(ctx, "ssh handshake failed", "remote", addrText(remote), "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.ssh.Close() })
	defer stop()
	s.serve(ctx, conn, chans, reqs)
}

// handshake does version exchange, key exchange and authentication inside the
// deadline. It closes the connection when it fails. granted is set to the login that
// Authorize allowed, which the rest of the handshake may still fail after.
func (s *Server) handshake(ctx context.Context, nc *buffered, granted **Login) (*Conn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = nc.abort() })
	cfg := s.serverConfig(ctx, granted)
	for _, k := range s.cfg.HostSigners() {
		cfg.AddHostKey(k)
	}
	if err := preferGCM(nc, cfg.ServerVersion, &cfg.Config); err != nil {
		stop()
		_ = nc.abort()
		return nil, nil, nil, fmt.Errorf("send the identification: %w", err)
	}
	nc.first = &firstOffer{ciphers: cfg.Ciphers}
	sc, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err == nil && !stop() {
		_ = sc.Close()
		err = context.Cause(ctx)
	}
	stop()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no login within %s: %w", s.cfg.HandshakeTimeout, err)
		}
		return nil, nil, nil, err
	}
	login, ok := sc.Permissions.ExtraData[loginKey{}].(*Login)
	if !ok {
		_ = sc.Close()
		return nil, nil, nil, errors.New("authenticated without a login")
	}
	return &Conn{ssh: sc, net: nc.Conn, login: login, began: time.Now()}, chans, reqs, nil
}

// loginKey is the key of the Login in the permissions.
type loginKey struct{}

// serverConfig is made for each connection: host keys change, and the callbacks
// need the connection's context.
func (s *Server) serverConfig(ctx context.Context, granted **Login) *ssh.ServerConfig {
	var banner func(string) error
	return &ssh.ServerConfig{
		PreAuthConnCallback:     func(c ssh.ServerPreAuthConn) { banner = c.SendAuthBanner },
		Config:                  algorithms(),
		PublicKeyAuthAlgorithms: publicKeyAlgorithms(),
		MaxAuthTries:            maxAuthTries,
		ServerVersion:           "SSH-2.0-" + s.cfg.Version,
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			login, err := s.cfg.Authenticate(ctx, meta, key)
			if err != nil {
				return nil, shown(err)
			}
			for name := range login.CriticalOptions {
				if name != "source-address" {
					return nil, fault.Unsupported("the certificate has the critical option %q", name)
				}
			}
			return &ssh.Permissions{CriticalOptions: login.CriticalOptions, ExtraData: map[any]any{loginKey{}: login}}, nil
		},
		VerifiedPublicKeyCallback: func(meta ssh.ConnMetadata, _ ssh.PublicKey, perms *ssh.Permissions, _ string) (*ssh.Permissions, error) {
			login, ok := perms.ExtraData[loginKey{}].(*Login)
			if !ok {
				return nil, errors.New("authenticated without a login")
			}
			if s.cfg.Authorize == nil {
				return perms, nil
			}
			if err := s.cfg.Authorize(ctx, meta, login); err != nil {
				return nil, shown(err)
			}
			*granted = login
			if login.Banner != "" && banner != nil {
				return perms, banner(printableLines(login.Banner))
			}
			return perms, nil
		},
	}
}

// shown makes the library send the text of a Refusal to the client as a banner.
func shown(err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		return &ssh.BannerError{Err: err, Message: printable(r.Text) + "\r\n"}
	}
	return err
}

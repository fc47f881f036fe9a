// Package process turns a configuration into a running process: it takes the data
// directory, gets the identity (from the Auth Service in the same process, from
// the state file, or by joining), starts the services that the configuration
// enables and supervises them. It is the only place that knows every plug; it
// makes no decision of its own about access.
package process

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/config"
	"teleport/internal/control"
	"teleport/internal/diag"
	"teleport/internal/join/all"
	"teleport/internal/join/method"
	"teleport/internal/service/app"
	"teleport/internal/service/auth"
	"teleport/internal/service/db"
	"teleport/internal/service/ssh"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Exit codes of the daemon; docs/reference/exit-codes.md explains them.
const (
	ExitError       = 1
	ExitUsage       = 2
	ExitJoinRefused = 3
	ExitDataDir     = 4
)

// Error is an error with the exit code that it ends the daemon with.
type Error struct {
	Code int
	Err  error
}

// Error returns the message.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error underneath.
func (e *Error) Unwrap() error { return e.Err }

// Options is what Run needs.
type Options struct {
	Config *config.Config
	// Insecure gives up the verification of the server that is joined.
	Insecure bool
	Log      *slog.Logger
	// OnReady, if set, is told when every service serves.
	OnReady func(Addrs)
	// Reload, if set, brings configurations to change over to while running.
	Reload <-chan *config.Config
}

// Addrs are the addresses that a process serves on; empty for what it does not run.
type Addrs struct {
	Auth, Proxy, SSH, Diag string
}

// stopGrace is how long a service may take to stop.
const stopGrace = 10 * time.Second

// process is one run of the daemon.
type process struct {
	// cfg changes with Reload.
	cfg      atomic.Pointer[config.Config]
	opts     Options
	log      *slog.Logger
	health   *diag.Health
	registry *prometheus.Registry

	dir    *state.Dir
	holder *state.Holder
	cache  *cache.Cache
	conn   *connection
	// proxyConn is the Proxy Service's own connection to Auth, nil without one.
	proxyConn *connection
	emit      *control.Emitter
	// program is what this process runs, handed what an older process handed to it.
	program *program
	handed  *handed
	// draining is true from the moment a newer process takes over: the state file is its,
	// and handedOver once it serves.
	draining, handedOver atomic.Bool
	// runID tells this run of the process from a copy that has the same identity.
	runID string
	// viaProxy is true if this process reaches the cluster through a Proxy.
	viaProxy bool

	auth *auth.Service
	// hostID is the id of an Auth process; others get theirs by joining.
	hostID  string
	ssh     atomic.Pointer[ssh.Service]
	app     atomic.Pointer[app.Service]
	db      atomic.Pointer[db.Service]
	servers *servers
	// agentConns are the connections to Auth of the services that have their own.
	agentConns agentConns
	// debugApp is the application that app_service.debug_app asks for.
	debugApp debugApp
	// sessionsChanged has a value when sessions returns something else.
	sessionsChanged chan struct{}
	// enforcers end what locks forbid.
	enforcers enforcers
	// renewNow asks for a renewal ahead of its time, newStream for a control stream
	// with the identity of now.
	renewNow, newStream chan struct{}
	// newTunnel asks for a tunnel with the identity of now.
	newTunnel chan struct{}
	// changing is held while the identity is made anew: what it is for follows from the
	// configuration, which changes too.
	changing sync.Mutex

	// methods are the join methods, for Auth to verify and for this machine to prove by.
	methods []method.Method

	listeners map[string]net.Listener
	addrs     Addrs

	// saving is held while the state changes on disk and in the holder: neither
	// may get ahead of the other.
	saving sync.Mutex
}

// Run runs the process until ctx ends, then stops it in an orderly way.
func Run(ctx context.Context, opts Options) error { return newProcess(opts).run(ctx) }

func newProcess(opts Options) *process {
	p := &process{
		opts:     opts,
		runID:    uuid.NewString(),
		program:  thisProgram(),
		log:      opts.Log,
		health:   diag.NewHealth(),
		registry: prometheus.NewRegistry(),
		cache:    cache.New(),
		servers:  newServers(),

		sessionsChanged: make(chan struct{}, 1),
		methods:         all.Methods(),
		listeners:       map[string]net.Listener{},
		renewNow:        make(chan struct{}, 1),
		newStream:       make(chan struct{}, 1),
		newTunnel:       make(chan struct{}, 1),
	}
	p.cfg.Store(opts.Config)
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), p.health)
	return p
}

func (p *process) run(ctx context.Context) (err error) {
	defer p.closeListeners()
	handed, err := takeHanded()
	if err == nil && handed != nil {
		err = p.takeOver(handed)
	}
	if err != nil {
		return &Error{ExitError, err}
	}
	if err := p.checkPAM(ctx, p.config()); err != nil {
		return err
	}
	if err := p.listen(ctx); err != nil {
		return &Error{ExitError, err}
	}
	if p.dir, err = p.openDir(); err != nil {
		return &Error{ExitDataDir, err}
	}
	defer func() {
		if cerr := p.dir.Close(); err == nil {
			err = cerr
		}
	}()
	remove, err := writePID(p.config().PIDFile)
	if err != nil {
		return &Error{ExitError, err}
	}
	defer remove()
	sup := &supervisor{
		log: p.log, grace: stopGrace, onReady: p.health.Ready, onDone: p.health.Gone,
		reload: p.opts.Reload, onReload: p.change,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		p.waitDrained(ctx)
		cancel()
	}()
	err = sup.run(ctx, p.steps()...)
	if p.proxyConn != nil {
		_ = p.proxyConn.Close()
	}
	p.agentConns.close()
	return err
}

// config returns the configuration that is in force.
func (p *process) config() *config.Config { return p.cfg.Load() }

// steps lists what the process does to start, in order.
func (p *process) steps() []step {
	var steps []step
	add := func(enabled bool, name string, make func(ctx context.Context) (Service, error)) {
		if enabled {
			p.health.Starting(name)
			steps = append(steps, step{name, make})
		}
	}
	add(p.config().DiagAddr != "", "diag", p.makeDiag)
	add(p.config().Auth.Enabled, "auth", p.makeAuth)
	add(true, "identity", p.makeIdentity)
	add(true, "control", p.makeControl)
	add(p.config().Proxy.Enabled, "proxy", p.makeProxy)
	add(p.config().SSH.Enabled, stepSSH, p.makeSSH)
	add(p.config().App.Enabled, stepApp, p.makeApp)
	add(p.config().DB.Enabled, stepDB, p.makeDB)
	add(true, "tunnel", p.makeTunnel)
	add(true, "renewal", p.makeRenewal)
	add(true, "ready", func(ctx context.Context) (Service, error) {
		p.awaitListed(ctx)
		p.log.InfoContext(ctx, "process is ready", "cluster", p.holder.State().Cluster, "host_id", p.holder.HostID(), "data_dir", p.config().DataDir)
		if p.opts.OnReady != nil {
			p.opts.OnReady(p.addrs)
		}
		return nil, p.tookOver()
	})
	return steps
}

// roles returns the system roles that the configuration enables, sorted.
func (p *process) roles() []types.SystemRole { return p.config().Roles() }

// listen opens every port before anything else happens, so that an address in use
// is the first thing said and changes nothing on disk. Only an agent that is given
// the address of an Auth Service opens its port later (makeSSH): the address may turn
// out to be a Proxy's, and then it needs none.
func (p *process) listen(ctx context.Context) error {
	for _, l := range []struct {
		wanted    bool
		key, addr string
		at        *string
	}{
		{p.config().DiagAddr != "", keyDiag, p.config().DiagAddr, &p.addrs.Diag},
		{p.config().Auth.Enabled, keyAuth, p.config().Auth.ListenAddr, &p.addrs.Auth},
		{p.config().Proxy.Enabled, keyProxy, p.config().Proxy.WebListenAddr, &p.addrs.Proxy},
		{p.config().SSH.Enabled && p.config().Auth.Enabled, keySSH, p.config().SSH.ListenAddr, &p.addrs.SSH},
	} {
		if l.wanted {
			var err error
			if *l.at, err = p.open(ctx, l.key, l.addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// Keys of the configuration that name the ports of a process.
const (
	keyDiag  = "teleport.diag_addr"
	keyAuth  = "auth_service.listen_addr"
	keyProxy = "proxy_service.web_listen_addr"
	keySSH   = "ssh_service.listen_addr"
)

// open opens a port and returns its address.
func (p *process) open(ctx context.Context, key, addr string) (string, error) {
	if ln := p.listeners[key]; ln != nil { // it was handed over
		return ln.Addr().String(), nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("%s: cannot listen on %s: %w", key, addr, err)
	}
	p.listeners[key] = ln
	return ln.Addr().String(), nil
}

func (p *process) closeListeners() {
	for _, ln := range p.listeners {
		_ = ln.Close()
	}
}

func (p *process) makeDiag(context.Context) (Service, error) {
	ln := p.listeners[keyDiag]
	return serviceFunc{"diag", func(ctx context.Context, ready func()) error {
		ready()
		return diag.Serve(ctx, ln, diag.Handler(p.health, p.registry))
	}}, nil
}

// writePID writes the pid file, if one is wanted, and returns what removes it.
func writePID(path string) (func(), error) {
	if path == "" {
		return func() {}, nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil { //nolint:gosec // a pid is for everybody to read
		return nil, fmt.Errorf("teleport.pid_file: %w", err)
	}
	return func() {
		// A process that took over has written its own.
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
			_ = os.Remove(path)
		}
	}, nil
}

// sessions are those of the SSH Service that others may see or join; nil without one.
func (p *process) sessions() []*typesv1.SessionTracker {
	if s := p.ssh.Load(); s != nil {
		return s.Sessions()
	}
	return nil
}

func (p *process) noteSessions() {
	select {
	case p.sessionsChanged <- struct{}{}:
	default:
	}
}

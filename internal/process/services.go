package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/google/uuid"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/sqlite"
	"teleport/internal/control"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/keys"
	"teleport/internal/retry"
	"teleport/internal/service/auth"
	"teleport/internal/service/proxy"
	"teleport/internal/service/ssh"
	"teleport/internal/state"
	"teleport/internal/types"
	"teleport/internal/version"
)

func (p *process) makeAuth(ctx context.Context) (Service, error) {
	// The id of before, so that the host stays the same one to its cluster.
	switch st, err := p.dir.Load(); {
	case err == nil:
		p.hostID = st.HostID
	case errors.Is(err, fault.ErrNotFound):
		p.hostID = uuid.NewString()
	default:
		return nil, &Error{ExitDataDir, err}
	}
	store, err := sqlite.Open(ctx, sqlite.Config{
		Path: p.config().DatabaseFile(), Log: p.log,
		OnHealth: func(err error) { p.health.Impaired("auth", err) },
	})
	if err != nil {
		return nil, &Error{ExitDataDir, err}
	}
	tokens := make([]auth.StaticToken, 0, len(p.config().Auth.Tokens))
	for _, t := range p.config().Auth.Tokens {
		tokens = append(tokens, auth.StaticToken{Roles: t.Roles, Value: keys.Secret(t.Value)})
	}
	publicAddrs := p.config().Auth.PublicAddrs
	if len(publicAddrs) == 0 {
		publicAddrs = []string{p.advertised(p.addrs.Auth)}
	}
	p.auth, err = auth.Open(ctx, auth.Config{
		ClusterName:  p.config().Auth.ClusterName,
		DataDir:      p.config().DataDir,
		HostID:       p.hostID,
		Hostname:     p.config().Nodename,
		Backend:      store,
		Listener:     p.listeners[keyAuth],
		LocalSocket:  p.config().LocalSocket(),
		PublicAddrs:  publicAddrs,
		StaticTokens: tokens,
		JoinMethods:  p.methods,
		Log:          p.log.With("service", "auth"),
		Registerer:   p.registry,
	})
	if err != nil {
		return nil, fmt.Errorf("auth service: %w", err)
	}
	return p.auth, nil
}

// makeControl connects to Auth and waits until the process knows what it decides
// with: no service starts before that.
func (p *process) makeControl(ctx context.Context) (Service, error) {
	addr := p.authAddr()
	if p.config().AuthServer != "" && !p.config().Auth.Enabled {
		p.viaProxy = p.findProxy(ctx, addr)
	}
	var err error
	if p.conn, err = newConnection(p.holder, addr, "", p.runID); err != nil {
		return nil, err
	}
	p.emit = control.NewEmitter(p.conn, p.log)
	return serviceFunc{"control", p.runControl}, nil
}

// runControl keeps the control stream. It ends when the cluster wants nothing to do
// with this process any more.
func (p *process) runControl(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer p.conn.Close()
	synced := make(chan struct{})
	go func() {
		if p.cache.WaitSynced(ctx) == nil {
			close(synced)
			ready()
		}
	}()
	err := control.Run(ctx, control.Config{
		Conn:           p.conn,
		Cache:          p.cache,
		Servers:        p.servers.list,
		ServersChanged: p.servers.changed,

		Sessions:        p.sessions,
		SessionsChanged: p.sessionsChanged,

		Restart:       p.newStream,
		Keep:          p.draining.Load,
		OnAuthorities: p.adoptAuthorities,
		Enforce:       p.enforcers.enforce,
		Emitter:       p.emit,
		Log:           p.log.With("service", "control"),
		OnState: func(err error) {
			if err == nil {
				p.health.Ready("control")
				return
			}
			p.health.Degraded("control", err)
			heard := false
			select {
			case <-synced:
				heard = true
			default:
			}
			if fault.Code(err) == join.CodeReplaced && p.draining.Load() {
				if err := p.follow(); err != nil {
					p.log.WarnContext(ctx, "the identity of the process that took over cannot be used", "error", err)
				}
				return
			}
			if fault.Code(err) == join.CodeHostRemoved {
				back, other := p.comeBack(ctx)
				if other != nil {
					cancel(other)
				}
				if back || other != nil {
					return
				}
			}
			if p.expelled(err, heard) {
				cancel(&Error{ExitJoinRefused, err})
			}
		},
	})
	var refused *Error
	if errors.As(context.Cause(ctx), &refused) {
		return refused
	}
	return err
}

// comeBack joins again after the host was removed, which works if the token says that
// it may; the control stream then connects as before. A host that comes back under
// another id serves as that one when it is started again: the error ends the process.
func (p *process) comeBack(ctx context.Context) (back bool, other error) {
	if p.auth != nil || p.config().Join.TokenName == "" {
		return false, nil
	}
	id := p.holder.HostID()
	p.changing.Lock()
	defer p.changing.Unlock()
	st, err := p.askAgain(ctx)
	if err != nil {
		p.log.InfoContext(ctx, "this host was removed, and its token does not bring it back", "error", err)
		return false, nil
	}
	if st.HostID != id {
		p.saving.Lock()
		defer p.saving.Unlock()
		if err := p.dir.Save(st); err != nil {
			return false, &Error{ExitDataDir, err}
		}
		return false, &Error{ExitError, fault.Stale("host %s was removed, and this machine joined again as host %s: start the process again", id, st.HostID)}
	}
	if err := p.adopt(st); err != nil {
		return false, &Error{ExitDataDir, err}
	}
	p.log.InfoContext(ctx, "joined again after the host was removed", "host_id", id)
	return p.showIdentity() == nil, nil
}

// expelled reports whether the error of a control stream ends the process: it was
// taken out of the cluster, or is a copy of another one. Until it has heard from its
// cluster once, somebody else's at the address ends it too; later that may pass by
// itself. The process of Auth belongs to its cluster in any case.
func (p *process) expelled(err error, heard bool) bool {
	if p.auth != nil {
		return false
	}
	switch fault.Code(err) {
	case join.CodeHostRemoved, join.CodeIdentityCloned:
		return true
	case join.CodeWrongCluster:
		return !heard
	}
	return false
}

// authAddr is where this process reaches Auth: itself, directly or by a Proxy.
func (p *process) authAddr() string {
	switch {
	case p.config().Auth.Enabled:
		return reachable(p.addrs.Auth)
	case p.config().AuthServer != "":
		return p.config().AuthServer
	}
	p.viaProxy = true
	return p.config().ProxyServer
}

// adoptAuthorities keeps what Auth says about trust, also across a restart.
func (p *process) adoptAuthorities(cas []*typesv1.CertAuthority) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	if err := p.holder.SetAuthorities(cas); err != nil || p.draining.Load() {
		return err
	}
	return p.dir.Save(p.holder.State())
}

func (p *process) makeProxy(context.Context) (Service, error) {
	if p.viaProxy {
		return nil, &Error{ExitUsage, fault.Unsupported("a Proxy Service reaches the Auth Service directly, not through another Proxy: set teleport.auth_server to the Auth Service's host:3025 instead of proxy_server")}
	}
	conn, err := newConnection(p.holder, p.authAddr(), types.RoleProxy, p.runID)
	if err != nil {
		return nil, err
	}
	p.proxyConn = conn
	publicAddrs := p.config().Proxy.PublicAddrs
	if len(publicAddrs) == 0 {
		publicAddrs = []string{p.advertised(p.addrs.Proxy)}
	}
	keypairs := make([]proxy.Keypair, 0, len(p.config().Proxy.HTTPSKeypairs))
	for _, k := range p.config().Proxy.HTTPSKeypairs {
		keypairs = append(keypairs, proxy.Keypair{CertFile: k.CertFile, KeyFile: k.KeyFile})
	}
	srv := types.New(types.KindProxy, p.holder.HostID()).(*typesv1.Server)
	srv.Spec = &typesv1.ServerSpec{Hostname: p.config().Nodename, PublicAddrs: publicAddrs, Version: version.Version}
	p.servers.announce(srv)
	service, err := proxy.New(proxy.Config{
		Listener:               p.listeners[keyProxy],
		Holder:                 p.holder,
		Cache:                  p.cache,
		AuthAddr:               p.authAddr(),
		AuthConn:               conn,
		Emit:                   p.emit.Emit,
		Keypairs:               keypairs,
		KeypairsReloadInterval: p.config().Proxy.HTTPSKeypairsReloadInterval,
		OpenSSHSources:         p.config().Proxy.OpenSSHSources,
		Local:                  localServices{p},
		PublicAddr:             publicAddrs[0],
		Log:                    p.log.With("service", "proxy"),
		Registerer:             p.registry,
	})
	if err != nil {
		return nil, err
	}
	p.enforcers.set(service.Name(), service.EnforceLocks)
	return service, nil
}

// awaitListed waits until Auth, if it runs here, has the Proxy of this process: who is
// told that the process is ready makes links with its address.
func (p *process) awaitListed(ctx context.Context) {
	if p.auth == nil || !p.config().Proxy.Enabled {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, listedTimeout)
	defer cancel()
	backoff := retry.Backoff{Min: time.Millisecond, Max: 100 * time.Millisecond}
	for {
		if _, err := p.auth.Store().Get(ctx, types.KindProxy, p.holder.HostID()); err == nil || backoff.Wait(ctx) != nil {
			return
		}
	}
}

// listedTimeout is how long a start waits for its own announcement; it is not worth more.
const listedTimeout = 5 * time.Second

func (p *process) makeSSH(ctx context.Context) (Service, error) {
	if !p.viaProxy {
		var err error
		if p.addrs.SSH, err = p.open(ctx, keySSH, p.config().SSH.ListenAddr); err != nil {
			return nil, err
		}
	}
	ln := p.listeners[keySSH]
	commands := make([]ssh.Command, 0, len(p.config().SSH.Commands))
	for _, c := range p.config().SSH.Commands {
		commands = append(commands, ssh.Command{Name: c.Name, Command: c.Command, Period: c.Period})
	}
	var advertise string
	if ln != nil {
		advertise = p.advertised(p.addrs.SSH)
	}
	if len(p.config().SSH.PublicAddrs) > 0 {
		advertise = p.config().SSH.PublicAddrs[0]
	}
	// What the token enforces, the process's own labels do not override.
	labels := map[string]string{}
	maps.Copy(labels, p.config().SSH.Labels)
	maps.Copy(labels, p.holder.Labels())
	pam, err := p.openPAM(ctx, p.config())
	if err != nil {
		return nil, err
	}
	service, err := ssh.New(ssh.Config{
		Holder:        p.holder,
		Cache:         p.cache,
		Emit:          p.emit.Emit,
		Listener:      ln,
		Hostname:      p.config().Nodename,
		Labels:        labels,
		Commands:      commands,
		AdvertiseAddr: advertise,
		UseTunnel:     p.viaProxy,
		Siblings:      p.config().DataDir,
		Announce:      func(srv *typesv1.Server) { p.servers.announce(srv) },

		SessionsChanged: p.noteSessions,

		NoPortForwarding: !p.config().SSH.PortForwarding,
		NoFileCopy:       !p.config().SSH.FileCopy,
		NoHostUsers:      !p.config().SSH.CreateHostUsers,
		X11:              ssh.X11Config(p.config().SSH.X11),
		PAM:              pam,

		Log:        p.log.With("service", "ssh"),
		Registerer: p.registry,
	})
	if err != nil {
		return nil, err
	}
	p.ssh.Store(service)
	p.noteSessions()
	p.enforcers.set(service.Name(), service.EnforceLocks)
	return service, nil
}

// advertised is the address that others reach a listener of this process at.
func (p *process) advertised(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	switch ip := net.ParseIP(host); {
	case p.config().AdvertiseIP != "":
		host = p.config().AdvertiseIP
	case host != "" && (ip == nil || !ip.IsUnspecified()):
	case p.config().Auth.Enabled && p.config().Proxy.Enabled && listen == p.addrs.SSH:
		// Only the Proxy in this process dials the SSH Service.
		host = "127.0.0.1"
	default:
		host = p.config().Nodename
	}
	return net.JoinHostPort(host, port)
}

// makeRenewal renews the identity at a third of its life, and drops the roles that
// the configuration does not enable any more.
func (p *process) makeRenewal(context.Context) (Service, error) {
	return serviceFunc{"renewal", func(ctx context.Context, ready func()) error {
		ready()
		return p.renewLoop(ctx)
	}}, nil
}

func (p *process) renewOnce(ctx context.Context) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	if p.auth != nil {
		if err := p.issueLocal(ctx); err != nil {
			return err
		}
	} else if p.holder.Attests() {
		// Proves by the join method, as at first, that this machine still is what it was.
		if err := p.joinAgain(ctx); err != nil {
			return err
		}
	} else {
		held := p.holder.State()
		keep := slices.DeleteFunc(slices.Clone(held.Roles), func(r types.SystemRole) bool { return !slices.Contains(p.roles(), r) })
		st, err := join.Renew(ctx, joinv1.NewJoinServiceClient(p.conn), held, keep)
		if err != nil {
			return err
		}
		if err := p.adopt(st); err != nil {
			return err
		}
	}
	p.log.InfoContext(ctx, "identity renewed", "expires", p.holder.Expires(), "generation", p.holder.State().Generation)
	return p.showIdentity()
}

// showIdentity lets Auth see the new identity: it counts a generation as used once it
// was seen.
func (p *process) showIdentity() error {
	if p.proxyConn != nil {
		if err := p.proxyConn.Renew(); err != nil {
			return err
		}
	}
	if err := p.agentConns.renew(); err != nil {
		return err
	}
	if err := p.conn.Renew(); err != nil {
		return err
	}
	nudge(p.newStream)
	return nil
}

// nudge puts a value into a channel with room for one, unless there is one.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// joinAgain joins with the identity that the process has, and goes on with the new one.
func (p *process) joinAgain(ctx context.Context) error {
	st, err := p.askAgain(ctx)
	if err != nil {
		return err
	}
	return p.adopt(st)
}

// askAgain joins with the identity that the process has, and does not wait for a better
// time. Auth may note something about this host at the same moment.
func (p *process) askAgain(ctx context.Context) (*state.State, error) {
	if err := p.dir.Room(); err != nil {
		return nil, err
	}
	params, err := p.joinParams(p.holder)
	if err != nil {
		return nil, err
	}
	var st *state.State
	for range 3 {
		if st, err = join.Join(ctx, params); !errors.Is(err, fault.ErrStale) {
			break
		}
	}
	return st, err
}

// renewRetry is how long a failed renewal waits.
const renewRetry = 5 * time.Minute

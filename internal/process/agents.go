package process

import (
	"context"
	"errors"
	"slices"
	"sync"

	appv1 "teleport/api/app/v1"
	databasev1 "teleport/api/database/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/service/app"
	"teleport/internal/service/db"
	"teleport/internal/service/db/all"
	"teleport/internal/types"
)

// makeApp makes the Application Service.
func (p *process) makeApp(ctx context.Context) (Service, error) {
	if err := p.needsProxy("app_service", p.config()); err != nil {
		return nil, err
	}
	conn, err := p.agentConns.open(p, types.RoleApp)
	if err != nil {
		return nil, err
	}
	apps, err := p.appsOf(ctx, p.config())
	if err != nil {
		return nil, err
	}
	service, err := app.New(app.Config{
		Holder:     p.holder,
		Cache:      p.cache,
		Emit:       p.emit.Emit,
		Hostname:   p.config().Nodename,
		Labels:     p.holder.Labels(),
		Apps:       apps,
		Matchers:   p.config().App.Matchers,
		Announce:   p.servers.announce,
		Withdraw:   p.servers.withdraw,
		Auth:       func() appv1.AppServiceClient { return appv1.NewAppServiceClient(conn) },
		Log:        p.log.With("service", stepApp),
		Registerer: p.registry,
	})
	if err != nil {
		return nil, err
	}
	p.app.Store(service)
	p.enforcers.set(service.Name(), service.EnforceLocks)
	return serviceFunc{service.Name(), func(ctx context.Context, ready func()) error {
		defer p.debugApp.stop()
		defer p.servers.withdrawAll(types.KindAppServer)
		return service.Run(ctx, ready)
	}}, nil
}

// makeDB makes the Database Service.
func (p *process) makeDB(context.Context) (Service, error) {
	if err := p.needsProxy("db_service", p.config()); err != nil {
		return nil, err
	}
	conn, err := p.agentConns.open(p, types.RoleDB)
	if err != nil {
		return nil, err
	}
	service, err := db.New(db.Config{
		Holder:     p.holder,
		Cache:      p.cache,
		Emit:       p.emit.Emit,
		Hostname:   p.config().Nodename,
		Labels:     p.holder.Labels(),
		Databases:  p.config().DB.Databases,
		Matchers:   p.config().DB.Matchers,
		Announce:   p.servers.announce,
		Withdraw:   p.servers.withdraw,
		Auth:       func() databasev1.DatabaseServiceClient { return databasev1.NewDatabaseServiceClient(conn) },
		Engines:    all.Engines(),
		Log:        p.log.With("service", stepDB),
		Registerer: p.registry,
	})
	if err != nil {
		return nil, err
	}
	p.db.Store(service)
	p.enforcers.set(service.Name(), service.EnforceLocks)
	return serviceFunc{service.Name(), func(ctx context.Context, ready func()) error {
		defer p.servers.withdrawAll(types.KindDatabaseServer)
		return service.Run(ctx, ready)
	}}, nil
}

// needsProxy refuses a service that users would have no way to.
func (p *process) needsProxy(section string, cfg *config.Config) error {
	if p.viaProxy || cfg.Proxy.Enabled {
		return nil
	}
	return &Error{ExitUsage, fault.Unsupported("%s: it is reached through a Proxy only, and %s is an Auth Service: set teleport.proxy_server to the Proxy's host:port, in place of auth_server",
		section, p.authAddr())}
}

// appsOf returns the static applications of a configuration, and has the one for debugging
// run if it is asked for.
func (p *process) appsOf(ctx context.Context, cfg *config.Config) ([]*typesv1.App, error) {
	if !cfg.App.Debug {
		p.debugApp.stop()
		return cfg.App.Apps, nil
	}
	uri, err := p.debugApp.start(ctx)
	if err != nil {
		return nil, err
	}
	debug, ok := types.New(types.KindApp, config.DebugApp).(*typesv1.App)
	if !ok {
		return nil, errors.New("the kind of applications is another one")
	}
	debug.Metadata.Description = "Shows the requests that reach it"
	debug.Spec = &typesv1.AppSpec{Uri: uri}
	return append(slices.Clone(cfg.App.Apps), debug), nil
}

// updateServed has the services that run serve what the configuration says. One that
// cannot goes on as it is.
func (p *process) updateServed(ctx context.Context, cfg *config.Config) {
	if s := p.app.Load(); s != nil {
		apps, err := p.appsOf(ctx, cfg)
		if err == nil {
			err = s.Update(apps)
		}
		if err != nil {
			p.log.ErrorContext(ctx, "the applications of the configuration were not changed over to", "error", err)
		} else {
			s.Match(cfg.App.Matchers)
		}
	}
	if s := p.db.Load(); s != nil {
		if err := s.Update(cfg.DB.Databases); err != nil {
			p.log.ErrorContext(ctx, "the databases of the configuration were not changed over to", "error", err)
		} else {
			s.Match(cfg.DB.Matchers)
		}
	}
}

// agentConns are connections to Auth with the certificate of a service.
type agentConns struct {
	mu     sync.Mutex
	byRole map[types.SystemRole]*connection
}

// open makes the connection of a service, in place of the one that it had before.
func (a *agentConns) open(p *process, role types.SystemRole) (*connection, error) {
	if p.holder.Certificate(role) == nil {
		return nil, fault.Denied("this process did not join with the role %s: use a token that has it", role)
	}
	conn, err := newConnection(p.holder, p.authAddr(), role, p.runID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	old := a.byRole[role]
	if a.byRole == nil {
		a.byRole = map[types.SystemRole]*connection{}
	}
	a.byRole[role] = conn
	a.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	return conn, nil
}

// renew has the connections made anew, with the certificates of now.
func (a *agentConns) renew() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var problems []error
	for _, conn := range a.byRole {
		problems = append(problems, conn.Renew())
	}
	return errors.Join(problems...)
}

// close closes the connections.
func (a *agentConns) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, conn := range a.byRole {
		_ = conn.Close()
	}
	clear(a.byRole)
}

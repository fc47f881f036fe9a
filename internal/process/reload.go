package process

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"teleport/internal/config"
	"teleport/internal/types"
)

// Names of the steps that come and go while the process runs.
const (
	stepSSH = "ssh"
	stepApp = "app"
	stepDB  = "db"
)

// change goes over to another configuration while the process runs: services that it
// adds join and start, services that it drops stop, all others go on with their
// sessions. If a service cannot be added nothing changes.
func (p *process) change(ctx context.Context, cfg *config.Config) (stop []string, start []step) {
	if p.draining.Load() {
		return nil, nil // there is a newer process, and the signal is for that one
	}
	old := p.config()
	refuse := func(err error) ([]string, []step) {
		p.log.ErrorContext(ctx, "the configuration was not changed over to", "error", err)
		return nil, nil
	}
	if old.Auth.Enabled != cfg.Auth.Enabled || old.Proxy.Enabled != cfg.Proxy.Enabled {
		return refuse(errors.New("the Auth and Proxy Services come and go with a restart only"))
	}
	if p.program.replaced() {
		if stop := p.handOver(ctx, cfg); stop != nil {
			p.handedOver.Store(true)
			return stop, nil
		}
	}
	if err := p.checkPAM(ctx, cfg); err != nil {
		return refuse(err)
	}
	if key := fixed(old, cfg); key != "" {
		p.log.WarnContext(ctx, "a change in the configuration takes effect at the next start", "section", key)
	}
	// What stays as it was started with is kept; the rest is what this is about.
	next := *old
	next.Join, next.CAPins, next.SSH, next.App, next.DB = cfg.Join, cfg.CAPins, cfg.SSH, cfg.App, cfg.DB
	if next.App.Enabled || next.DB.Enabled {
		if err := p.needsProxy("app_service, db_service", &next); err != nil {
			return refuse(err)
		}
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	p.cfg.Store(&next)
	added := slices.DeleteFunc(next.Roles(), func(r types.SystemRole) bool { return slices.Contains(p.holder.State().Roles, r) })
	if len(added) > 0 && p.auth == nil {
		if err := p.joinAgain(ctx); err != nil {
			p.cfg.Store(old)
			return refuse(err)
		}
	} else if p.auth != nil {
		if err := p.issueLocal(ctx); err != nil {
			p.cfg.Store(old)
			return refuse(err)
		}
	}
	if len(added) > 0 {
		if err := p.showIdentity(); err != nil {
			p.log.WarnContext(ctx, "the connection to Auth could not be made anew", "error", err)
		}
		nudge(p.newTunnel)
	}
	// What cannot be made is found out before anything is stopped.
	for _, s := range p.comers(old, &next) {
		service, err := s.make(ctx)
		if err != nil {
			p.cfg.Store(old)
			for _, made := range start {
				if ln := p.listeners[keySSH]; made.name == stepSSH && ln != nil {
					_ = ln.Close() // it never got to be the service's
				}
				p.forget(made.name)
			}
			nudge(p.renewNow)
			return refuse(err)
		}
		start = append(start, step{s.name, func(context.Context) (Service, error) { return service, nil }})
	}
	for _, s := range start {
		p.health.Starting(s.name)
	}
	for _, s := range p.comers(&next, old) {
		p.forget(s.name)
		stop = append(stop, s.name)
		nudge(p.renewNow)
	}
	p.updateServed(ctx, &next)
	p.log.InfoContext(ctx, "changed over to the configuration", "services", next.Roles())
	return stop, start
}

// comers are the services that the second configuration has and the first has not.
func (p *process) comers(before, after *config.Config) []step {
	var out []step
	for _, s := range []struct {
		was, is bool
		step    step
	}{
		{before.SSH.Enabled, after.SSH.Enabled, step{stepSSH, p.makeSSH}},
		{before.App.Enabled, after.App.Enabled, step{stepApp, p.makeApp}},
		{before.DB.Enabled, after.DB.Enabled, step{stepDB, p.makeDB}},
	} {
		if s.is && !s.was {
			out = append(out, s.step)
		}
	}
	return out
}

// forget takes a service that stops, or that never started, out of the books.
func (p *process) forget(name string) {
	switch name {
	case stepSSH:
		p.ssh.Store(nil)
		p.servers.withdrawAll(types.KindNode)
		delete(p.listeners, keySSH) // the service closes it
	case stepApp:
		p.app.Store(nil)
		p.servers.withdrawAll(types.KindAppServer)
		p.debugApp.stop()
	case stepDB:
		p.db.Store(nil)
		p.servers.withdrawAll(types.KindDatabaseServer)
	}
}

// fixed names the first section that differs and is only read at the start.
func fixed(a, b *config.Config) string {
	for _, s := range []struct {
		name string
		a, b any
	}{
		{"auth_service", a.Auth, b.Auth},
		{"proxy_service", a.Proxy, b.Proxy},
		{"teleport.nodename", a.Nodename, b.Nodename},
		{"teleport.data_dir", a.DataDir, b.DataDir},
		{"teleport.auth_server", a.AuthServer, b.AuthServer},
		{"teleport.proxy_server", a.ProxyServer, b.ProxyServer},
		{"teleport.advertise_ip", a.AdvertiseIP, b.AdvertiseIP},
		{"teleport.diag_addr", a.DiagAddr, b.DiagAddr},
		{"teleport.pid_file", a.PIDFile, b.PIDFile},
		{"teleport.log", a.Log, b.Log},
		{"teleport.storage", a.Storage, b.Storage},
	} {
		if !reflect.DeepEqual(s.a, s.b) {
			return s.name
		}
	}
	if a.SSH.Enabled && b.SSH.Enabled && !reflect.DeepEqual(a.SSH, b.SSH) {
		return "ssh_service"
	}
	return ""
}

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
const stepSSH = "ssh"

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
	next.Join, next.CAPins, next.SSH = cfg.Join, cfg.CAPins, cfg.SSH
	p.changing.Lock()
	defer p.changing.Unlock()
	p.cfg.Store(&next)
	added := slices.DeleteFunc(rolesOf(&next), func(r types.SystemRole) bool { return slices.Contains(p.holder.State().Roles, r) })
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
	}
	switch {
	case next.SSH.Enabled && !old.SSH.Enabled:
		start = append(start, step{stepSSH, p.makeSSH})
		p.health.Starting(stepSSH)
	case !next.SSH.Enabled && old.SSH.Enabled:
		p.ssh.Store(nil)
		p.servers.withdraw(types.KindNode)
		delete(p.listeners, keySSH) // the service closes it
		stop = append(stop, stepSSH)
		nudge(p.renewNow)
	}
	p.log.InfoContext(ctx, "changed over to the configuration", "services", rolesOf(&next))
	return stop, start
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

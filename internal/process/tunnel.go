package process

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/service/app"
	"teleport/internal/service/db"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// tunnelSigner is the certificate that the agent's end of a tunnel shows.
func (p *process) tunnelSigner() ssh.Signer { return p.holder.SSHSigner("") }

// tunnelHostKey checks that the other end is a Proxy of this cluster, whichever of
// them answered: behind one address there may be several.
func (p *process) tunnelHostKey() ssh.HostKeyCallback {
	return p.holder.Trust().AnyHostKeyCallback(types.RoleProxy)
}

// makeTunnel keeps the reverse tunnel, if this process is behind a Proxy.
func (p *process) makeTunnel(context.Context) (Service, error) {
	if !p.viaProxy {
		return nil, nil
	}
	return serviceFunc{"tunnel", func(ctx context.Context, ready func()) error {
		return tunnel.RunAgent(ctx, tunnel.AgentConfig{
			Addr:    p.authAddr(),
			TLS:     ca.ClientTLS(nil, p.holder.Trust, types.RoleProxy),
			Signer:  p.tunnelSigner,
			HostKey: p.tunnelHostKey,
			Handle:  p.handleTunnel,
			Again:   p.newTunnel,
			Dial:    p.dialTunnel,
			Log:     p.log.With("service", "tunnel"),
		}, func(connected bool) {
			if connected {
				p.health.Ready("tunnel")
				ready()
				return
			}
			p.health.Degraded("tunnel", fmt.Errorf("no tunnel to %s", p.authAddr()))
		})
	}}, nil
}

// dialTunnel reaches the Proxy. A process that has handed over keeps its tunnel for what
// is open, and opens no other one.
func (p *process) dialTunnel(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.draining.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return (&net.Dialer{Timeout: tunnelDialTimeout}).DialContext(ctx, network, addr)
}

const tunnelDialTimeout = 10 * time.Second

// handleTunnel serves a connection that came through the tunnel.
func (p *process) handleTunnel(ctx context.Context, conn net.Conn, req tunnel.Request) {
	switch req.Service {
	case types.RoleNode:
		if s := p.ssh.Load(); s != nil {
			s.HandleConn(ctx, conn, req.ClientAddr)
			return
		}
	case types.RoleApp:
		if s := p.app.Load(); s != nil {
			s.HandleConn(ctx, conn, app.Connection{ClientAddr: req.ClientAddr, Resource: req.Resource, Native: req.Native})
			return
		}
	case types.RoleDB:
		if s := p.db.Load(); s != nil {
			s.HandleConn(ctx, conn, db.Connection{ClientAddr: req.ClientAddr, Resource: req.Resource, Native: req.Native})
			return
		}
	}
	p.log.WarnContext(ctx, "refused a connection for a service that does not run here", "wanted", req.Service)
	_ = conn.Close()
}

// localServices are those that the Proxy of the same process reaches without a tunnel. The
// SSH Service is not among them: it listens.
type localServices struct{ p *process }

// Serves reports whether the service runs here.
func (l localServices) Serves(service types.SystemRole) bool {
	switch service {
	case types.RoleApp:
		return l.p.app.Load() != nil
	case types.RoleDB:
		return l.p.db.Load() != nil
	}
	return false
}

// Handle serves a connection.
func (l localServices) Handle(ctx context.Context, conn net.Conn, req tunnel.Request) {
	l.p.handleTunnel(ctx, conn, req)
}

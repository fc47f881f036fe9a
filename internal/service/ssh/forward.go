package ssh

import (
	"context"
	"fmt"
	"net"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/sshd"
)

// maxTargets bounds the different ends that one connection forwards to.
const maxTargets = 10000

// forwarding is what clients may do beyond sessions.
func (s *Service) forwarding() sshd.Forwarding {
	return sshd.Forwarding{Dial: s.dialFor, Listen: s.listenFor, Agent: s.agentFor, X11: s.displayFor, Closed: s.forwarded}
}

// dialFor connects to where a client wants to go from here.
func (s *Service) dialFor(ctx context.Context, c *sshd.Conn, to sshd.Target, origin string) (net.Conn, error) {
	about := map[string]any{"addr": to.String(), "direction": "local"}
	g, err := s.permit(ctx, c, localPorts(), about)
	if err != nil {
		return nil, err
	}
	if origin != "" {
		about["origin"] = origin
	}
	if err := s.noteUse(ctx, c, g, use{"local", to.String()}, about); err != nil {
		return nil, err
	}
	return dialTarget(ctx, g.cred, to)
}

// listenFor opens a listener that leads to the client.
func (s *Service) listenFor(ctx context.Context, c *sshd.Conn, at sshd.Target) (net.Listener, error) {
	about := map[string]any{"addr": at.String(), "direction": "remote"}
	g, err := s.permit(ctx, c, remotePorts(), about)
	if err != nil {
		return nil, err
	}
	ln, err := listenTarget(g.cred, at)
	if err != nil {
		about["success"], about["error"] = false, err.Error()
		return nil, s.refuse(ctx, audit.New(audit.PortForwardFailure, s.fields(c, g.id, about)), g.id, err.Error(), err.Error())
	}
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
		at.Port = uint16(tcp.Port)
		about["addr"] = at.String()
	}
	if err := s.noteUse(ctx, c, g, use{"remote", at.String()}, about); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// use is one way in which a connection forwards.
type use struct{ direction, addr string }

// traffic is what went that way.
type traffic struct{ connections, received, sent int64 }

// noteUse records the first use of a way. Further ones are counted, and the count is
// recorded when the connection ends: a browser behind ssh -D must not fill the log.
func (s *Service) noteUse(ctx context.Context, c *sshd.Conn, g *guest, u use, about map[string]any) error {
	conn := s.live.find(c)
	if conn == nil {
		return fault.Unreachable("the connection is closing")
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.uses[u] != nil {
		return nil
	}
	if len(conn.uses) >= maxTargets {
		return fault.Limit("this connection has forwarded to %d different places: connect again", maxTargets)
	}
	about["success"] = true
	if err := s.cfg.Emit(ctx, audit.New(audit.PortForward, s.fields(c, g.id, about))); err != nil {
		s.cfg.Log.ErrorContext(ctx, "forward refused: it cannot be recorded", "error", err, "user", g.id.User.Name)
		return errUnrecorded()
	}
	if conn.uses == nil {
		conn.uses = map[use]*traffic{}
	}
	conn.uses[u] = &traffic{}
	return nil
}

// forwarded counts a forwarded connection that is over.
func (s *Service) forwarded(c *sshd.Conn, f sshd.Forwarded) {
	conn := s.live.find(c)
	if conn == nil {
		return
	}
	direction := "remote"
	if f.Channel == "direct-tcpip" || f.Channel == "direct-streamlocal@openssh.com" {
		direction = "local"
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if t := conn.uses[use{direction, f.To.String()}]; t != nil {
		t.connections++
		t.received += f.Received
		t.sent += f.Sent
	}
}

// stops returns an event for each way, with what went there.
func (c *connection) stops() []*auditv1.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*auditv1.Event, 0, len(c.uses))
	for u, t := range c.uses {
		out = append(out, audit.New(audit.PortForwardStop, c.s.fields(c.ssh, c.id, map[string]any{
			"addr": u.addr, "direction": u.direction, "connections": t.connections, "rx": t.received, "tx": t.sent,
		})))
	}
	return out
}

// agentFor opens the socket to the client's agent.
func (s *Service) agentFor(ctx context.Context, se *sshd.Session) (net.Listener, []string, error) {
	c := se.Conn()
	about := map[string]any{"sid": se.ID()}
	g, err := s.permit(ctx, c, agents(), about)
	if err != nil {
		return nil, nil, err
	}
	ln, err := listenPrivate(g.cred, "agent")
	if err != nil {
		return nil, nil, fmt.Errorf("open a socket for the agent: %w", err)
	}
	about["success"] = true
	if err := s.cfg.Emit(ctx, audit.New(audit.AgentForward, s.fields(c, g.id, about))); err != nil {
		_ = ln.Close()
		return nil, nil, errUnrecorded()
	}
	return ln, []string{"SSH_AUTH_SOCK=" + ln.path}, nil
}

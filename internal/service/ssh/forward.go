package ssh

import (
	"context"
	"fmt"
	"net"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// forwarding is what clients may do beyond sessions.
func (s *Service) forwarding() sshd.Forwarding {
	return sshd.Forwarding{Dial: s.dialFor, Listen: s.listenFor, Agent: s.agentFor, X11: s.displayFor, Closed: s.forwarded}
}

// dialFor connects to where a client wants to go from here.
func (s *Service) dialFor(ctx context.Context, c *sshd.Conn, to sshd.Target, origin string) (net.Conn, error) {
	about := map[string]any{"addr": to.String(), "direction": sshaccess.DirectionLocal}
	g, err := s.permit(ctx, c, sshaccess.LocalPorts(), about)
	if err != nil {
		return nil, err
	}
	if origin != "" {
		about["origin"] = origin
	}
	if err := s.noteUse(ctx, c, sshaccess.DirectionLocal, to.String(), about); err != nil {
		return nil, err
	}
	return dialTarget(ctx, g.cred, to)
}

// listenFor opens a listener that leads to the client.
func (s *Service) listenFor(ctx context.Context, c *sshd.Conn, at sshd.Target) (net.Listener, error) {
	about := map[string]any{"addr": at.String(), "direction": sshaccess.DirectionRemote}
	g, err := s.permit(ctx, c, sshaccess.RemotePorts(), about)
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
	if err := s.noteUse(ctx, c, sshaccess.DirectionRemote, at.String(), about); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// noteUse records the first use of a way to forward.
func (s *Service) noteUse(ctx context.Context, c *sshd.Conn, direction, addr string, about map[string]any) error {
	own, ok := s.live.Find(c)
	if !ok {
		return fault.Unreachable("the connection is closing")
	}
	return own.NoteUse(ctx, direction, addr, about)
}

// forwarded counts a forwarded connection that is over.
func (s *Service) forwarded(c *sshd.Conn, f sshd.Forwarded) {
	if own, ok := s.live.Find(c); ok {
		own.Forwarded(f)
	}
}

// agentFor opens the socket to the client's agent.
func (s *Service) agentFor(ctx context.Context, se *sshd.Session) (net.Listener, []string, error) {
	c := se.Conn()
	about := map[string]any{"sid": se.ID()}
	g, err := s.permit(ctx, c, sshaccess.Agents(), about)
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
		return nil, nil, sshaccess.ErrUnrecorded()
	}
	return ln, []string{"SSH_AUTH_SOCK=" + ln.path}, nil
}

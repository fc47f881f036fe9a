package sshd

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

const (
	maxCookie = 256
	maxScreen = 1 << 16
)

// X11 is a client's request for a display (RFC 4254 section 6.3.1).
type X11 struct {
	// Single asks for one connection only.
	Single bool
	// Protocol and Cookie are what programs must show; the client knows the cookie
	// again and puts the true one in its place.
	Protocol string
	Cookie   string
	Screen   uint32
}

func parseX11(payload []byte) (X11, error) {
	var m struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return X11{}, fmt.Errorf("parse x11-req: %w", err)
	}
	if m.Protocol != "MIT-MAGIC-COOKIE-1" {
		return X11{}, fault.Unsupported("x11-req: authentication protocol %q, only MIT-MAGIC-COOKIE-1 is known", m.Protocol)
	}
	if _, err := hex.DecodeString(m.Cookie); err != nil || len(m.Cookie) == 0 || len(m.Cookie) > maxCookie || m.Screen > maxScreen {
		return X11{}, fault.Invalid("x11-req: cookie of %d bytes, screen %d", len(m.Cookie), m.Screen)
	}
	return X11{Single: m.Single, Protocol: m.Protocol, Cookie: m.Cookie, Screen: m.Screen}, nil
}

// agent serves auth-agent-req: the socket lives as long as the session.
func (s *Server) agent(ctx context.Context, se *Session) bool {
	if s.cfg.Forwarding.Agent == nil || se.agent {
		return false
	}
	ln, env, err := s.cfg.Forwarding.Agent(ctx, se)
	if err != nil {
		s.refuseExtra(ctx, se, agentRequest, err)
		return false
	}
	se.agent = true
	se.serveExtra(ctx, s, ln, env, func(net.Conn) (string, []byte) { return agentChannel, nil }, Target{Path: "agent"})
	return true
}

// display serves x11-req: the display lives as long as the session, or for one
// connection if the client wants that.
func (s *Server) display(ctx context.Context, se *Session, payload []byte) bool {
	req, err := parseX11(payload)
	if err != nil || s.cfg.Forwarding.X11 == nil || se.x11 {
		return false
	}
	ln, env, err := s.cfg.Forwarding.X11(ctx, se, req)
	if err != nil {
		s.refuseExtra(ctx, se, x11Request, err)
		return false
	}
	se.x11 = true
	se.serveExtra(ctx, s, ln, env, func(peer net.Conn) (string, []byte) {
		if req.Single {
			_ = ln.Close()
		}
		host, port := originOf(peer.RemoteAddr())
		return x11Channel, ssh.Marshal(struct {
			Host string
			Port uint32
		}{host, port})
	}, Target{Path: "x11"})
	return true
}

// refuseExtra keeps the text of a refusal for the user, who is told when there is
// somewhere to tell it.
func (s *Server) refuseExtra(ctx context.Context, se *Session, what string, err error) {
	s.cfg.Log.InfoContext(ctx, "request refused", "request", what, "error", err)
	_, text := s.whyNot(ctx, what, err)
	se.notes = append(se.notes, text)
}

func (s *Session) serveExtra(ctx context.Context, srv *Server, ln net.Listener, env []string, channel func(net.Conn) (string, []byte), at Target) {
	s.extraEnv = append(s.extraEnv, env...)
	s.listeners = append(s.listeners, ln)
	s.extras.Go(func() { srv.acceptAll(ctx, s.conn, ln, channel, at) })
}

// closeListeners ends agent and display: what runs over them goes on.
func (s *Session) closeListeners() {
	for _, ln := range s.listeners {
		_ = ln.Close()
	}
}

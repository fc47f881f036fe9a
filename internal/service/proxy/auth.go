package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"teleport/internal/fault"
	"teleport/internal/mux"
)

// authDialTimeout bounds a connection to Auth.
const authDialTimeout = 10 * time.Second

// authGrace is how long connections to Auth go on when the service stops: enough for
// a call under way. The streams of agents would never end by themselves.
const authGrace = 500 * time.Millisecond

// serveAuth passes TLS connections for Auth on, unopened, after a signed statement of
// where they come from. Auth ends the TLS session and asks for the certificate; a
// connection that does not show one has its time bounded there.
func (s *Service) serveAuth(ctx context.Context, ln net.Listener) error {
	return mux.Accept(ctx, s.bounded(ln, maxPassed, maxPassedPerSource), s.cfg.Log, func(conn net.Conn) {
		s.track(ctx, conn, min(s.cfg.Drain, authGrace), func(ctx context.Context) {
			auth, err := s.dialAuth(ctx, conn.RemoteAddr().String())
			if err != nil {
				s.cfg.Log.WarnContext(ctx, "cannot reach the Auth Service", "addr", s.cfg.AuthAddr, "error", err)
				return
			}
			s.metrics.passed.Inc()
			defer s.metrics.passed.Dec()
			s.carry(ctx, conn, auth)
		})
	})
}

func (s *Service) dialAuth(ctx context.Context, clientAddr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, authDialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.cfg.AuthAddr)
	if err != nil {
		return nil, fault.Unreachable("dial: %w", err)
	}
	if err := s.announce(ctx, conn, clientAddr); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("say who is calling: %w", err)
	}
	return conn, nil
}

// announce writes the signed statement before the deadline of ctx.
func (s *Service) announce(ctx context.Context, conn net.Conn, clientAddr string) error {
	deadline, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if err := mux.WriteRelayed(conn, clientAddr, mux.PurposeAuth, s.certificate(), time.Now()); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

package ssh

import (
	"context"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/resume"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// software is what the identification names. Its comment offers to clients that
// their connection can be resumed.
const software = "Teleport " + resume.Mark

// arrivals are connections of which nobody knows yet what they are.
type arrivals struct {
	gate   *mux.Gate
	resume *resume.Server
}

func newArrivals(elsewhere func(from net.Addr) iter.Seq[net.Conn]) (*arrivals, error) {
	r, err := resume.NewServer(resume.ServerConfig{Greeting: "SSH-2.0-" + software, Elsewhere: elsewhere})
	if err != nil {
		return nil, err
	}
	return &arrivals{gate: mux.NewGate(sshd.DefaultMaxPending, sshd.DefaultMaxPending/4, 0), resume: r}, nil
}

// serve accepts direct connections until ctx ends, and waits for them.
func (s *Service) serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	return mux.Accept(ctx, ln, s.cfg.Log, func(nc net.Conn) {
		conns.Go(func() { s.serveConn(ctx, nc) })
	})
}

// serveConn serves one connection and returns when it is over. It owns nc, which may
// carry plain SSH, a connection that can be resumed, or one from before, which then
// goes on.
func (s *Service) serveConn(ctx context.Context, nc net.Conn) {
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.ErrorContext(ctx, "a connection was ended by a panic", "panic", r, "stack", string(debug.Stack()))
			_ = nc.Close()
		}
	}()
	remote := slog.String("remote", nc.RemoteAddr().String())
	slot, err := s.arrivals.gate.Enter(ctx, nc)
	if err != nil {
		_ = nc.Close()
		s.cfg.Log.WarnContext(ctx, "ssh connection refused", remote, slog.Any("error", err))
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	//nolint:contextcheck // the connection outlives the call, and ends by Close
	conn, over, err := s.arrivals.resume.Accept(nc)
	slot.Leave()
	switch {
	case err != nil:
		stop()
		_ = nc.Close()
		s.cfg.Log.InfoContext(ctx, "ssh connection ended before the handshake", remote, slog.Any("error", err))
	case conn == nil:
		s.cfg.Log.InfoContext(ctx, "ssh connection resumed", remote)
		<-over
		stop()
	default:
		stop()
		s.server.ServeConn(ctx, conn)
	}
}

// keep has the connection outlive what it comes over, if the client can resume it.
func (s *Service) keep(ctx context.Context, c *connection) {
	conn, ok := c.SSH.NetConn().(*resume.Conn)
	if !ok {
		return
	}
	// What ends the connection ends with it, and with its context.
	//nolint:contextcheck // the connection outlives the call, and ends by Close
	conn.Keep(resume.Policy{
		User: c.ID.User.Name,
		Check: func(from net.Addr) error {
			err := s.mayResume(ctx, c, from)
			if err != nil {
				s.metrics.resumptions.WithLabelValues(resultRefused).Inc()
				e := audit.New(audit.SessionResumeDenied, c.Fields(map[string]any{"addr.remote": from.String(), "success": false, "reason": err.Error()}))
				_ = s.refuse(ctx, e, c.ID, "", err.Error())
			}
			return err
		},
		Resumed: func(from net.Addr) { s.resumed(ctx, c, from) },
	})
}

// maxResumed bounds the resumptions of a connection that get an event of their own.
const maxResumed = 100

// resumed records that the connection goes on for its client at the address.
func (s *Service) resumed(ctx context.Context, c *connection, from net.Addr) {
	s.metrics.resumptions.WithLabelValues(resultResumed).Inc()
	if n := c.resumptions.Add(1); n <= maxResumed {
		s.emitLate(ctx, audit.New(audit.SessionResume, c.Fields(map[string]any{"addr.remote": from.String(), "success": true, "resumptions": n})))
	}
}

// mayResume decides whether a connection that lost its client goes on for one at the
// address who has proven to be the same. It is no new login: an expired certificate
// ends it only if a role says so. But what would be closed is, and who may not log in
// here any more, or not from there, does not come back.
func (s *Service) mayResume(ctx context.Context, c *connection, from net.Addr) error {
	reason := c.Locked()
	if reason == "" {
		reason, _ = c.Due()
	}
	if reason != "" {
		go c.Close(ctx, reason)
		return fault.Denied("connection of %s not resumed: %s", c.ID.User.Name, reason)
	}
	if err := c.ID.CheckSource(from); err != nil {
		return err
	}
	if list := c.SSH.Login().CriticalOptions[sshaccess.SourceAddress]; list != "" && !listed(list, from) {
		return fault.Denied("connection of %s not resumed: the certificate may not be used from %s", c.ID.User.Name, from)
	}
	if d := s.stays(c.ID, c.Login()); !d.Allowed {
		return fault.Denied("connection of %s not resumed: %s", c.ID.User.Name, d.Reason)
	}
	return nil
}

// listed reports whether the address is one of those, or in one of the networks, that
// a certificate's source-address names.
func listed(list string, from net.Addr) bool {
	tcp, ok := from.(*net.TCPAddr)
	if !ok {
		return false
	}
	addr, ok := netip.AddrFromSlice(tcp.IP)
	if !ok {
		return false
	}
	addr = addr.Unmap()
	for one := range strings.SplitSeq(list, ",") {
		if ip, err := netip.ParseAddr(one); err == nil && ip.Unmap() == addr {
			return true
		}
		if network, err := netip.ParsePrefix(one); err == nil && network.Contains(addr) {
			return true
		}
	}
	return false
}

package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/route"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// Local are services that run in the process of the Proxy. They need no tunnel: what
// would go through one goes through a pair of sockets.
type Local interface {
	// Serves reports whether the service runs here.
	Serves(service types.SystemRole) bool
	// Handle serves a connection, as an agent's end of a tunnel does. The connection is
	// closed when it returns.
	Handle(ctx context.Context, conn net.Conn, req tunnel.Request)
}

// ways are how the Proxy reaches the services of hosts.
type ways struct {
	*tunnel.Server
	s *Service
}

func (s *Service) ways() route.Tunnels {
	if s.cfg.Local == nil {
		return s.tunnels
	}
	return ways{s.tunnels, s}
}

// here reports whether the service is of this process.
func (w ways) here(hostID string, service types.SystemRole) bool {
	return hostID == w.s.cfg.Holder.HostID() && w.s.cfg.Local.Serves(service)
}

// Serves reports whether the service runs here or at the other end of a tunnel.
func (w ways) Serves(hostID string, service types.SystemRole) bool {
	return w.here(hostID, service) || w.Server.Serves(hostID, service)
}

// Dial connects to a service here, or through a tunnel.
func (w ways) Dial(ctx context.Context, hostID string, req tunnel.Request) (net.Conn, error) {
	if !w.here(hostID, req.Service) {
		return w.Server.Dial(ctx, hostID, req)
	}
	client, err := netip.ParseAddrPort(req.ClientAddr)
	if err != nil {
		return nil, fault.Invalid("client address %q: expected ip:port", req.ClientAddr)
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, fault.Unreachable("connect to the %s service in this process: %w", req.Service, err)
	}
	conn := localConn{far, net.TCPAddrFromAddrPort(client)}
	// It ends with the connection, and not with the dialling.
	serving := context.WithoutCancel(ctx)
	w.s.conns.Go(func() {
		defer conn.Close()
		defer func() {
			if p := recover(); p != nil {
				w.s.cfg.Log.ErrorContext(serving, "connection handler panicked", "service", req.Service, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
		}()
		w.s.cfg.Local.Handle(serving, conn, req)
	})
	return near, nil
}

// localConn is the end of the service. Its remote address is the client's.
type localConn struct {
	*net.UnixConn
	client net.Addr
}

// RemoteAddr returns the client's address.
func (c localConn) RemoteAddr() net.Addr { return c.client }

// socketPair returns two connections that are each other's other end.
func socketPair() (near, far *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "local")
		conn, cerr := net.FileConn(f)
		_ = f.Close()
		unixConn, ok := conn.(*net.UnixConn)
		if cerr == nil && !ok {
			cerr = fmt.Errorf("a pair of sockets is %T", conn)
		}
		if cerr != nil {
			err = cerr
			continue
		}
		conns[i] = unixConn
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}

package process

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/mux"
	"teleport/internal/retry"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/types"
)

// connection is a connection of the process to Auth. It knows the difference between
// an Auth Service that is away and somebody else at its address.
type connection struct {
	*rpc.Conn
	holder *state.Holder
	addr   string
	// run is that of the process.
	run string
	// refused is why the certificate of the other end was not accepted the last
	// time, or nil.
	refused atomic.Pointer[error]
}

// newConnection makes a connection to Auth at addr with the certificate of a
// service (empty: of the process). The address may be a Proxy's: a Proxy passes the
// TLS connection on, Auth itself ignores the additional protocol name.
func newConnection(holder *state.Holder, addr string, service types.SystemRole, run string) (*connection, error) {
	c := &connection{holder: holder, addr: addr, run: run}
	config := ca.ClientTLS(func() *tls.Certificate { return holder.Certificate(service) }, holder.Trust, types.RoleAuth)
	config.NextProtos = []string{mux.ALPNAuthPrefix + holder.State().Cluster, "h2"}
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		c.refused.Store(nil)
		if err != nil {
			c.refused.Store(&err)
		}
		return err
	}
	var err error
	c.Conn, err = rpc.NewConn(rpc.DialConfig{Addr: addr, TLS: config})
	return c, err
}

// Invoke makes a unary call.
func (c *connection) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.explain(c.Conn.Invoke(rpc.WithProcess(ctx, c.run), method, args, reply, opts...))
}

// NewStream opens a stream.
func (c *connection) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.Conn.NewStream(rpc.WithProcess(ctx, c.run), desc, method, opts...)
	return s, c.explain(err)
}

// explain makes the error of a connection one line that says what is wrong: here an
// agent notices that it is at the wrong door.
func (c *connection) explain(err error) error {
	refused := c.refused.Load()
	if !errors.Is(err, fault.ErrUnreachable) || refused == nil {
		return err
	}
	if code := fault.Code(*refused); code == ca.CodeExpired || code == ca.CodeNotYetValid {
		return fault.New(fault.ErrUnreachable, "the certificate of %s is not valid at this machine's time, %s: check the clock here, then there (%w)",
			c.addr, time.Now().UTC().Format(time.RFC3339), *refused).WithCode(join.CodeClockSkew)
	}
	return fault.New(fault.ErrUnreachable, "%s is not part of cluster %q, which this data directory joined (%w): correct the address, or delete the data directory to join the other cluster",
		c.addr, c.holder.State().Cluster, *refused).WithCode(join.CodeWrongCluster)
}

// findProxy finds out whether the address that was given as Auth's is a Proxy's: only
// a Proxy accepts tunnels. It asks until somebody answers, for a machine must not take
// the other way because the Proxy started after it.
func (p *process) findProxy(ctx context.Context, addr string) bool {
	backoff := retry.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	for {
		proxy, err := isProxy(ctx, p.holder, addr)
		if err == nil {
			return proxy
		}
		if ctx.Err() == nil {
			p.log.WarnContext(ctx, "cannot reach the cluster yet, will try again", "addr", addr, "error", err)
			p.health.Degraded("control", err)
		}
		if backoff.Wait(ctx) != nil {
			return false
		}
	}
}

// isProxy asks once; an error means that nobody answered.
func isProxy(ctx context.Context, holder *state.Holder, addr string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	config := ca.ClientTLS(func() *tls.Certificate { return holder.Certificate("") }, holder.Trust, types.RoleProxy)
	config.NextProtos = []string{mux.ALPNTunnel}
	err = tls.Client(raw, config).HandshakeContext(ctx)
	var broken net.Error
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), ctx.Err() != nil, errors.As(err, &broken) && broken.Timeout():
		return false, err
	}
	return false, nil
}

// reachable returns the address that this machine reaches its own listener at.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

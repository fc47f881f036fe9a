package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// ResourceDial says which application or database to connect to.
type ResourceDial struct {
	// Service is types.RoleApp or types.RoleDB.
	Service types.SystemRole
	// Resource is the name of the application or database.
	Resource string
	// Native says that a program of the user ends TLS with the agent, in the way of its
	// protocol.
	Native bool
}

// DialResource opens a connection through the Proxy to an agent that serves an application
// or a database, and returns the agent's host id. What goes over it is TLS with the agent:
// a program's own if Native is set, else see DialRouted. The caller closes it.
func (c *Client) DialResource(ctx context.Context, d ResourceDial) (net.Conn, string, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	out, err := c.ask(ctx, d)
	if err != nil {
		return nil, "", err
	}
	// Nothing of the caller's is to be sent yet, so the request goes alone.
	if _, err = out.Write(nil); err == nil {
		_, err = out.Read(nil)
	}
	if err = out.settle(ctx, err); err != nil {
		return nil, "", err
	}
	return out.Conn, out.resp.GetHostId(), nil
}

// DialRouted opens a connection to the application or database that the certificate is for
// (CertifyApp, CertifyDatabase): TLS 1.3 with the agent, end to end. The agent proves that
// it is one for the service and the one that the Proxy named. Of the names of protocols the
// agent chooses one. The caller closes the connection.
func (c *Client) DialRouted(ctx context.Context, d ResourceDial, cert tls.Certificate, alpn ...string) (*tls.Conn, error) {
	if d.Native {
		return nil, fault.Invalid("a native connection has the TLS of the program that uses it")
	}
	if cert.Leaf != nil && c.cfg.Now().After(cert.Leaf.NotAfter) {
		return nil, fault.Unauthenticated("the certificate for %q expired at %s: get a new one", d.Resource, stamp(cert.Leaf.NotAfter))
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	out, err := c.ask(ctx, d)
	if err != nil {
		return nil, err
	}
	conf := ca.ClientTLS(func() *tls.Certificate { return &cert }, func() *ca.Trust { return c.cfg.Credentials.Trust }, d.Service)
	conf.NextProtos = alpn
	conf.DynamicRecordSizingDisabled = true
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		return isHost(cs, out.resp.GetHostId())
	}
	conn := tls.Client(out, conf)
	err = conn.HandshakeContext(ctx)
	if err != nil && out.resp != nil {
		err = agentError(ctx, d.Resource, err)
	}
	if err = out.settle(ctx, err); err != nil {
		return nil, err
	}
	return conn, nil
}

// isHost holds the certificate of an agent against the host id that the Proxy named: those
// are the rights that the Proxy checked.
func isHost(cs tls.ConnectionState, hostID string) error {
	id, err := identity.FromTLS(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	if id.Host == nil || id.Host.ID != hostID {
		return fault.Unauthenticated("the Proxy says that host %q is at the other end, and it is %q", hostID, id.Name())
	}
	return nil
}

// agentError explains a TLS handshake with an agent that failed.
func agentError(ctx context.Context, resource string, err error) error {
	var bad *tls.CertificateVerificationError
	switch {
	case errors.As(err, &bad) || fault.Kind(err) != nil:
		return fault.Unauthenticated("the agent that serves %q shows a certificate that is not good for it: %w", resource, err)
	case alerted(err):
		return fault.Unauthenticated("the agent that serves %q does not accept the certificate for it, or speaks another protocol (%w): get a new one", resource, err)
	case ctx.Err() != nil:
		return fault.Unreachable("the agent that serves %q does not answer: no TLS handshake within %s", resource, openTimeout)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fault.Unreachable("the agent that serves %q closed the connection", resource)
	}
	return fault.Unreachable("TLS handshake with the agent that serves %q: %w", resource, err)
}

// asking is a connection to the Proxy whose request goes with the first bytes that are
// written, and whose answer comes before the first that are read: that saves the time of a
// round trip.
type asking struct {
	net.Conn
	client   *Client
	resource string
	bound    func() bool
	// first is the request until it is sent.
	first []byte
	// resp is the answer, once it is there, and failure why there is none.
	resp    *proxyv1.DialResponse
	failure error
}

// ask connects to the Proxy; the request is made and not sent yet.
func (c *Client) ask(ctx context.Context, d ResourceDial) (*asking, error) {
	if d.Service != types.RoleApp && d.Service != types.RoleDB {
		return nil, fault.Invalid("a connection to a resource is for %s or %s, not for %q", types.RoleApp, types.RoleDB, d.Service)
	}
	var first bytes.Buffer
	if err := rpc.WriteFrame(&first, &proxyv1.DialRequest{
		Service: string(d.Service), Resource: d.Resource, Native: d.Native, Cluster: c.cfg.Credentials.Trust.Cluster(),
	}); err != nil {
		return nil, err
	}
	raw, err := c.dialAny(ctx, "tcp", "")
	if err != nil {
		return nil, err
	}
	conf := c.tls(types.RoleProxy, mux.ALPNProxySSH)
	conf.DynamicRecordSizingDisabled = true
	conn := tls.Client(raw, conf)
	stop, err := bound(ctx, conn)
	if err != nil {
		_ = raw.Close()
		return nil, fault.Unreachable("open a connection to %q: %w", d.Resource, err)
	}
	out := &asking{Conn: conn, client: c, resource: d.Resource, bound: stop, first: first.Bytes()}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, out.settle(ctx, handshakeError(ctx, c.cfg.Proxy, err))
	}
	return out, nil
}

// Write sends, the first time after the request.
func (a *asking) Write(p []byte) (int, error) {
	if a.first == nil {
		return a.Conn.Write(p)
	}
	both := append(a.first, p...)
	a.first = nil
	n, err := a.Conn.Write(both)
	if err != nil && a.resp == nil {
		a.failure = fault.Unreachable("ask the Proxy for %q: %w", a.resource, err)
		err = a.failure
	}
	return max(0, n-(len(both)-len(p))), err
}

// Read reads, the first time after the answer.
func (a *asking) Read(p []byte) (int, error) {
	if a.resp == nil {
		if a.failure == nil {
			a.resp, a.failure = a.client.answered(a.Conn, a.resource)
		}
		if a.failure != nil {
			return 0, a.failure
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return a.Conn.Read(p)
}

// CloseWrite tells the other end that nothing more comes.
func (a *asking) CloseWrite() error {
	if c, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fault.Unsupported("the connection cannot be closed in one direction only")
}

// settle ends the opening: the connection is not bound to the context any more, or with
// err it is closed. It returns what is wrong; what the Proxy said comes first.
func (a *asking) settle(ctx context.Context, err error) error {
	stopped := a.bound()
	if err == nil && !stopped {
		err = fault.Unreachable("open a connection to %q: %w", a.resource, context.Cause(ctx))
	}
	if err == nil {
		err = a.SetDeadline(time.Time{})
	}
	if a.failure != nil {
		err = a.failure
	}
	if err != nil {
		_ = a.Close()
	}
	return err
}

package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"teleport/internal/fault"
)

const (
	// maxHandshakes bounds TLS handshakes under way at once.
	maxHandshakes = 2048
	// maxAnonymous bounds open connections without a client certificate.
	maxAnonymous = 1024
)

// authInfo is what the transport knows of a connection's other end.
type authInfo struct {
	credentials.CommonAuthInfo
	// state is that of TLS; each call asks anew who it belongs to, so that a
	// connection does not outlive the trust in its peer.
	state *tls.ConnectionState
	local bool
}

// AuthType names the transport for grpc.
func (authInfo) AuthType() string { return "teleport" }

// transport is the server side of connection security: TLS, or the unix socket
// of the local administrator.
type transport struct {
	credentials.TransportCredentials
	handshakes atomic.Int64
	anonymous  atomic.Int64
}

func newTransport(config *tls.Config) *transport {
	if config == nil {
		// Without TLS only the local socket can be served.
		config = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	return &transport{TransportCredentials: credentials.NewTLS(config)}
}

// Clone returns t: its state is shared on purpose.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// ServerHandshake authenticates the other end of conn.
func (t *transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if lc, ok := conn.(localConn); ok {
		return t.local(lc)
	}
	if t.handshakes.Add(1) > maxHandshakes {
		t.handshakes.Add(-1)
		return nil, nil, fault.Limit("more than %d handshakes under way", maxHandshakes)
	}
	secure, info, err := t.TransportCredentials.ServerHandshake(conn)
	t.handshakes.Add(-1)
	if err != nil {
		return nil, nil, err
	}
	state, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, fault.Unauthenticated("no TLS on connection from %s", conn.RemoteAddr())
	}
	out := authInfo{CommonAuthInfo: state.CommonAuthInfo, state: &state.State}
	if len(state.State.PeerCertificates) > 0 {
		return secure, out, nil
	}
	if t.anonymous.Add(1) > maxAnonymous {
		t.anonymous.Add(-1)
		return nil, nil, fault.Limit("more than %d connections without a certificate", maxAnonymous)
	}
	return &countedConn{Conn: secure, release: func() { t.anonymous.Add(-1) }}, out, nil
}

// local accepts only the user that the service runs as, and root.
func (t *transport) local(conn localConn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(conn.UnixConn)
	if err != nil {
		return nil, nil, err
	}
	if uid != 0 && uid != os.Geteuid() {
		return nil, nil, fault.Denied("user %d may not use the local socket of user %d", uid, os.Geteuid())
	}
	info := authInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		local:          true,
	}
	return conn, info, nil
}

// localConn marks a connection accepted on the local socket.
type localConn struct{ *net.UnixConn }

// localListener marks what it accepts as local.
type localListener struct{ *net.UnixListener }

// Accept waits for the next local connection.
func (l localListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return localConn{conn}, nil
}

// countedConn gives its place back when closed.
type countedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

// Close closes the connection.
func (c *countedConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// OverrideServerName is not for servers.
func (t *transport) OverrideServerName(string) error {
	return fault.Unsupported("server credentials have no server name")
}

// ClientHandshake is not for servers.
func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.Unsupported("server credentials cannot dial")
}

package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"runtime"
	"sync"

	"google.golang.org/grpc/credentials"

	"teleport/internal/budget"
	"teleport/internal/fault"
)

// authInfo is what the transport knows of a connection's other end.
type authInfo struct {
	credentials.CommonAuthInfo
	// state is that of TLS; each call asks anew who it belongs to, so that a
	// connection does not outlive the trust in its peer.
	state *tls.ConnectionState
	local bool
	// stranger is the connection if the other end showed no certificate, or nil.
	stranger *stranger
}

// AuthType names the transport for grpc.
func (authInfo) AuthType() string { return "teleport" }

// transport is the server side of connection security: TLS, or the unix socket
// of the local administrator.
type transport struct {
	credentials.TransportCredentials
	// shaking has the connections in the TLS handshake, open those of strangers, and
	// idle those of them without a call in progress.
	shaking, open, idle *room
	// turns are those of the handshakes that there is work to do for, arrivals those of
	// strangers between the handshake and their first call.
	turns, arrivals *budget.Turns
	// refused is called for each connection that found no place.
	refused func()
}

func newTransport(config *tls.Config, refused func()) *transport {
	if config == nil {
		// Without TLS only the local socket can be served.
		config = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	if refused == nil {
		refused = func() {}
	}
	return &transport{
		refused:              refused,
		TransportCredentials: credentials.NewTLS(config),
		turns:                budget.NewTurns(handshakesPerCore * runtime.GOMAXPROCS(0)),
		arrivals:             budget.NewTurns(arrivalsPerCore * runtime.GOMAXPROCS(0)),
		shaking:              newRoom(maxHandshakes, maxHandshakesPerSource, handshakeGrace),
		open:                 newRoom(maxStrangers, maxStrangersPerSource, -1),
		idle:                 newRoom(maxIdle, maxIdlePerSource, 0),
	}
}

// Clone returns t: its state is shared on purpose.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// ServerHandshake authenticates the other end of conn.
func (t *transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if lc, ok := conn.(localConn); ok {
		return t.local(lc)
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	g := &guest{source: budget.Source(conn.RemoteAddr().String()), out: func() {
		cancel()
		_ = conn.Close()
	}}
	if !t.shaking.enter(g) {
		t.refused()
		return nil, nil, fault.Limit("too many handshakes from %s at once: try again in a moment", g.source)
	}
	// Until it is let in, or refused.
	defer t.shaking.leave(g)
	working := &handshake{Conn: conn, ctx: ctx, turns: t.turns, guest: g}
	secure, info, err := t.TransportCredentials.ServerHandshake(working)
	working.done()
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
	if err := t.arrivals.Enter(ctx, budget.Entry{Source: g.source}); err != nil {
		t.refused()
		return nil, nil, fault.Limit("too many connections without a certificate from %s at once: try again in a moment", g.source)
	}
	if out.stranger, err = t.newStranger(secure, conn, sync.OnceFunc(t.arrivals.Leave)); err != nil {
		return nil, nil, err
	}
	return out.stranger, out, nil
}

// handshake is a connection in the TLS handshake. What the other end sent is worked on
// when it is the turn of its source, so that a crowd from one address does not keep
// the cores from the others; who only waits for the other end takes no turn.
type handshake struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // the time of one handshake
	turns *budget.Turns
	guest *guest
	// inside is true during a turn, over once the handshake has ended.
	inside, over bool
}

// Read ends the turn, waits for the other end, and then for the next turn.
func (h *handshake) Read(b []byte) (int, error) {
	if h.over {
		return h.Conn.Read(b)
	}
	h.leave()
	h.guest.ours.Store(false)
	n, err := h.Conn.Read(b)
	h.guest.ours.Store(true)
	if n > 0 {
		if terr := h.turns.Enter(h.ctx, budget.Entry{Source: h.guest.source}); terr != nil {
			return 0, terr
		}
		h.inside = true
	}
	return n, err
}

func (h *handshake) leave() {
	if h.inside {
		h.inside = false
		h.turns.Leave()
	}
}

// done ends the handshake.
func (h *handshake) done() {
	h.leave()
	h.over = true
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

// OverrideServerName is not for servers.
func (t *transport) OverrideServerName(string) error {
	return fault.Unsupported("server credentials have no server name")
}

// ClientHandshake is not for servers.
func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.Unsupported("server credentials cannot dial")
}

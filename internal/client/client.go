package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/resume"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// openTimeout bounds the opening of a connection to a node, from TCP to the end
// of the SSH handshake.
const openTimeout = 30 * time.Second

// Config is what a Client works with.
type Config struct {
	// Proxy is host:port of the Proxy, or of the Auth Service where only Auth is
	// called. Without a port 443 and 3080 are tried.
	Proxy string
	// Credentials of the user; required.
	Credentials *Credentials
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log gets debug messages; nil is none.
	Log *slog.Logger
	// Dial opens TCP connections; nil is a plain dial.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resume has connections to nodes survive the loss of what they come over; nil
	// does not.
	Resume *Resumption
	// Banner is given what a server has to say to those whom it lets in; nil drops it.
	Banner func(text string)
}

// Client connects to a cluster with a user's credentials. Each call makes its own
// connection, which the caller closes.
type Client struct {
	cfg   Config
	addrs []string
	// join says to the Proxy that sessions are joined.
	join bool
}

// New checks the credentials and returns a Client; it does not connect.
func New(cfg Config) (*Client, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	if cfg.Credentials == nil {
		return nil, notLoggedIn("not logged in: run tsh login --proxy=HOST --user=NAME")
	}
	if err := cfg.Credentials.Check(cfg.Now()); err != nil {
		return nil, err
	}
	addrs, err := ProxyAddrs(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, addrs: addrs}, nil
}

// tls returns the configuration for a service of the cluster: its certificate is
// signed by the host CA, ours is shown.
func (c *Client) tls(role types.SystemRole, protos ...string) *tls.Config {
	creds := c.cfg.Credentials
	cert := creds.tls()
	conf := ca.ClientTLS(func() *tls.Certificate { return cert }, func() *ca.Trust { return creds.Trust }, role)
	conf.NextProtos = protos
	return conf
}

// Auth returns a connection to the Auth API, end to end with the Auth Service:
// the Proxy only passes it on. It connects at the first call.
func (c *Client) Auth() (*grpc.ClientConn, error) {
	proto := mux.ALPNAuthPrefix + c.cfg.Credentials.Trust.Cluster()
	return rpc.Dial(rpc.DialConfig{Addr: c.addrs[0], TLS: c.tls(types.RoleAuth, proto, "h2"), Dial: c.dialAny})
}

// dialAny opens a TCP connection to the first of the addresses that answers; the
// address given is ignored.
func (c *Client) dialAny(ctx context.Context, network, _ string) (net.Conn, error) {
	var problems []error
	for _, addr := range c.addrs {
		conn, err := c.cfg.Dial(ctx, network, addr)
		if err == nil {
			c.cfg.Log.DebugContext(ctx, "connected", "addr", addr)
			return conn, nil
		}
		problems = append(problems, err)
	}
	return nil, fault.Unreachable("cannot reach %s: %w", c.cfg.Proxy, errors.Join(problems...))
}

// Reach opens a TCP connection to the Proxy, closes it, and returns how long that took:
// one round trip.
func (c *Client) Reach(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	conn, err := c.dialAny(ctx, "tcp", "")
	if err != nil {
		return 0, err
	}
	took := time.Since(begin)
	_ = conn.Close()
	return took, nil
}

// NodeConn is a connection to a node's SSH service: what is read and written are
// the bytes of the SSH protocol.
type NodeConn struct {
	net.Conn
	// HostID is the id of the node that was chosen.
	HostID string
	// HostName is what the Proxy calls it.
	HostName string
}

// CloseWrite tells the node that nothing more comes.
func (n *NodeConn) CloseWrite() error {
	if c, ok := n.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fault.Unsupported("the connection cannot be closed in one direction only")
}

// dialNode makes one connection to a node, with an offer to resume it unless that is
// nil.
func (c *Client) dialNode(ctx context.Context, host string, port uint32, offer *resume.Offer) (*NodeConn, error) {
	raw, err := c.dialAny(ctx, "tcp", "")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c.tls(types.RoleProxy, mux.ALPNProxySSH))
	node, err := c.open(ctx, conn, host, port, offer)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return node, nil
}

// open makes the TLS handshake and asks the Proxy for the host.
func (c *Client) open(ctx context.Context, conn *tls.Conn, host string, port uint32, offer *resume.Offer) (*NodeConn, error) {
	stop, err := bound(ctx, conn)
	if err != nil {
		return nil, fault.Unreachable("open a connection to %q: %w", host, err)
	}
	defer stop()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, handshakeError(ctx, c.cfg.Proxy, err)
	}
	cluster := c.cfg.Credentials.Trust.Cluster()
	first, err := request(&proxyv1.DialRequest{Host: host, Port: port, Cluster: cluster, Join: c.join}, offer)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(first); err != nil {
		return nil, fault.Unreachable("ask the Proxy for %q: %w", host, err)
	}
	resp, err := c.answered(conn, host)
	if err != nil {
		return nil, err
	}
	if !names(host, cluster, resp) {
		return nil, fault.Unauthenticated("the Proxy answered %q when asked for %q: refused", resp.GetHostName(), host)
	}
	node := &NodeConn{Conn: conn, HostID: resp.GetHostId(), HostName: resp.GetHostName()}
	if offer != nil {
		//nolint:contextcheck // the connection outlives the call, and ends by Close
		if err := c.accept(node, port, offer); err != nil {
			return nil, err
		}
	}
	if !stop() {
		return nil, fault.Unreachable("open a connection to %q: %w", host, context.Cause(ctx))
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fault.Unreachable("open a connection to %q: %w", host, err)
	}
	return node, nil
}

// bound has what is read and written fail when ctx ends. The function returned takes that
// back, if it reports true; the deadline is then the caller's to clear.
func bound(ctx context.Context, conn net.Conn) (stop func() bool, err error) {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }), nil
}

// answered reads the answer of the Proxy to a request for what is called so.
func (c *Client) answered(conn io.Reader, what string) (*proxyv1.DialResponse, error) {
	resp := new(proxyv1.DialResponse)
	if err := rpc.ReadFrame(conn, resp, rpc.MaxFrame); err != nil {
		return nil, c.refused(what, err)
	}
	if resp.GetError() != "" {
		return nil, responseError(resp)
	}
	return resp, nil
}

// refused explains a connection that ended before the answer: with TLS 1.3 that
// is also how a server says that it does not accept the client's certificate.
func (c *Client) refused(host string, err error) error {
	if alerted(err) {
		return fault.Unauthenticated("the Proxy at %s does not accept your certificate (%w): run %s", c.cfg.Proxy, err, c.cfg.Credentials.Renew)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.Unreachable("the Proxy at %s closed the connection when asked for %q", c.cfg.Proxy, host)
	}
	return fault.Unreachable("ask the Proxy for %q: %w", host, err)
}

// responseError gives the Proxy's refusal its kind.
func responseError(resp *proxyv1.DialResponse) error {
	for _, kind := range fault.Kinds() {
		if kind.Error() == resp.GetErrorKind() {
			return fault.New(kind, "%s", resp.GetError())
		}
	}
	return errors.New(resp.GetError())
}

// names reports whether the answer claims to be about the host that was asked for.
// That it is, only the node's host certificate says.
func names(asked, cluster string, resp *proxyv1.DialResponse) bool {
	short := func(s string) string { return strings.TrimSuffix(strings.ToLower(s), "."+strings.ToLower(cluster)) }
	return short(asked) == short(resp.GetHostName()) || short(asked) == short(resp.GetHostId())
}

// SSH opens an SSH connection to a node as the login. One TLS and one SSH
// handshake are made, nothing else.
func (c *Client) SSH(ctx context.Context, login, host string, port uint32) (*ssh.Client, error) {
	signer, err := c.cfg.Credentials.signer()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	node, err := c.DialNode(ctx, host, port)
	if err != nil {
		return nil, err
	}
	// What the user asked for and not what the Proxy made of it; the id is also what the
	// Proxy checked the user's rights for.
	return c.handshake(ctx, steady(node), login, host, signer, node.HostID)
}

// Jump opens an SSH connection to a host through one to a node: the node connects to
// host:port, and the host proves who it is like any other. port 0 is that of nodes.
func (c *Client) Jump(ctx context.Context, via *ssh.Client, login, host string, port uint32) (*ssh.Client, error) {
	signer, err := c.cfg.Credentials.signer()
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = defaultNodePort
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	conn, err := via.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, fault.Unreachable("jump to %q: %w", host, openError(err))
	}
	return c.handshake(ctx, conn, login, host, signer)
}

// defaultNodePort is that of SSH services that listen.
const defaultNodePort = 3022

// handshake logs in over a connection to the host, which must have a host certificate
// for its name or one of the others.
func (c *Client) handshake(ctx context.Context, conn net.Conn, login, host string, signer ssh.Signer, names ...string) (*ssh.Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	// A node that refuses says why before it hangs up; it has proven its name by then.
	var refusal, banner string
	client, chans, reqs, err := ssh.NewClientConn(conn, host, &ssh.ClientConfig{
		Config: sshAlgorithms(),
		User:   login,
		Auth:   []ssh.AuthMethod{ssh.PublicKeys(signer)},

		HostKeyCallback:   c.cfg.Credentials.Trust.HostKeyCallback(types.RoleNode, append([]string{host}, names...)...),
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoRSASHA512v01},
		ClientVersion:     "SSH-2.0-Teleport",
		BannerCallback: func(text string) error {
			refusal = firstLine(text)
			banner += text[:min(len(text), maxBanner-len(banner))]
			return nil
		},
	})
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, sshError(login, host, refusal, err)
	}
	if banner != "" && c.cfg.Banner != nil {
		c.cfg.Banner(banner)
	}
	return ssh.NewClient(client, chans, reqs), nil
}

// maxBanner bounds what a server may say to those whom it lets in.
const maxBanner = 8 << 10

// sshAlgorithms prefers what is fastest among what is good.
func sshAlgorithms() ssh.Config {
	return ssh.Config{
		KeyExchanges: []string{ssh.KeyExchangeCurve25519, ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeECDHP256},
		Ciphers:      []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305},
		MACs:         []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
	}
}

// firstLine returns the first line of what a node says, short and printable.
func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	line = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, line)
	return line[:min(len(line), maxRefusal)]
}

// maxRefusal bounds what is shown of a node's refusal.
const maxRefusal = 512

// sshError turns a failed SSH handshake into what the user can act on.
func sshError(login, host, refusal string, err error) error {
	switch {
	case strings.Contains(err.Error(), "unable to authenticate") && refusal != "":
		return fault.Denied("%s", refusal)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fault.Denied("access denied: you may not log in to %q as %q, or there is no such user on it", host, login)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Unreachable("%q does not answer: no SSH handshake within %s", host, openTimeout)
	case fault.Kind(err) != nil:
		return fault.New(fault.Kind(err), "SSH handshake with %q: %w", host, err)
	}
	return fault.Unreachable("SSH handshake with %q: %w", host, err)
}

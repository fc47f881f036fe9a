package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

const (
	// connectTimeout bounds one TCP connection with its TLS handshake.
	connectTimeout = 8 * time.Second
	// preferGrace is how long the first port is waited for when the second answers.
	preferGrace = 300 * time.Millisecond
	// maxPing bounds the answer of /webapi/ping.
	maxPing = 64 << 10
)

// ProxyConfig says which Proxy and why to believe it.
type ProxyConfig struct {
	// Addr is host or host:port; without a port 443 and 3080 are tried.
	Addr string
	// Pins of the host CA that the user was given, in an invitation or by hand:
	// the cluster must have one of them.
	Pins []string
	// Known are pins that an earlier login left; see Home.Pins.
	Known []string
	// Insecure accepts any certificate.
	Insecure bool
	// Log gets debug messages; nil is none.
	Log *slog.Logger
	// Dial opens TCP connections; nil is a plain dial.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Proxy is a Proxy that answered and showed a certificate that is trusted.
type Proxy struct {
	addr string
	cfg  ProxyConfig
	tls  *tls.Config
}

// reason is one ground on which a certificate may be trusted.
type reason struct {
	name string
	tls  *tls.Config
}

// reasons lists the grounds, strongest first.
func (cfg *ProxyConfig) reasons(host string) []reason {
	if cfg.Insecure {
		return []reason{{"--insecure", &tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: host,
			InsecureSkipVerify: true, //nolint:gosec // what --insecure asks for, and nothing else does
		}}}
	}
	var out []reason
	if len(cfg.Pins) > 0 {
		out = append(out, reason{"CA pin", ca.PinnedTLS(cfg.Pins, types.RoleProxy)})
	}
	if len(cfg.Known) > 0 {
		out = append(out, reason{"host CA of an earlier login", ca.PinnedTLS(cfg.Known, types.RoleProxy)})
	}
	return append(out, reason{"system roots", &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}})
}

// ProxyAddrs returns the host:port pairs to try for what the user wrote:
// host, host:port or https://host[:port].
func ProxyAddrs(addr string) ([]string, error) {
	s := strings.TrimSuffix(strings.TrimPrefix(addr, "https://"), "/")
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		s = ip.String()
		return []string{net.JoinHostPort(s, "443"), net.JoinHostPort(s, "3080")}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, ""
	}
	if err := errors.Join(fileName("Proxy host", host), types.ValidHostname(host)); err != nil {
		if _, ipErr := netip.ParseAddr(host); ipErr != nil {
			return nil, fault.Invalid("Proxy address %q: expected host or host:port", addr)
		}
	}
	if port == "" {
		return []string{net.JoinHostPort(host, "443"), net.JoinHostPort(host, "3080")}, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fault.Invalid("Proxy address %q: %q is not a port", addr, port)
	}
	return []string{net.JoinHostPort(host, port)}, nil
}

// ConnectProxy finds the port and the ground for trust. It makes no more than
// TLS handshakes.
func ConnectProxy(ctx context.Context, cfg ProxyConfig) (*Proxy, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	addrs, err := ProxyAddrs(cfg.Addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := startProbe(ctx, cfg, addrs[0])
	if len(addrs) == 1 {
		a := <-first
		return a.proxy, a.err
	}
	second := startProbe(ctx, cfg, addrs[1])
	var best *Proxy
	var refusal error
	var late <-chan time.Time
	for pending := len(addrs); pending > 0; pending-- {
		var a answer
		select {
		case a = <-first:
			if a.err == nil {
				return a.proxy, nil
			}
		case a = <-second:
			if best = a.proxy; best != nil {
				late = time.After(preferGrace)
			}
		case <-late:
			return best, nil
		}
		// A port where something answered has more to say.
		if a.err != nil && (refusal == nil || errors.Is(a.err, fault.ErrUnauthenticated)) {
			refusal = a.err
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, refusal
}

// answer is what came of probing one address.
type answer struct {
	proxy *Proxy
	err   error
}

func startProbe(ctx context.Context, cfg ProxyConfig, addr string) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		p, err := probe(ctx, cfg, addr)
		out <- answer{p, err}
	}()
	return out
}

// probe tries the grounds for trust on one address.
func probe(ctx context.Context, cfg ProxyConfig, addr string) (*Proxy, error) {
	host, _, _ := net.SplitHostPort(addr)
	var refused error
	for _, r := range cfg.reasons(host) {
		p := &Proxy{addr: addr, cfg: cfg, tls: r.tls}
		conn, err := p.dial(ctx, mux.ALPNProxyGRPC, "h2")
		if err == nil {
			_ = conn.Close()
			cfg.Log.DebugContext(ctx, "proxy certificate accepted", "addr", addr, "ground", r.name)
			return p, nil
		}
		if errors.Is(err, fault.ErrUnreachable) {
			return nil, err
		}
		cfg.Log.DebugContext(ctx, "proxy certificate refused", "addr", addr, "ground", r.name, "error", err)
		if refused == nil || len(cfg.Pins) == 0 {
			refused = err
		}
	}
	return nil, refused
}

// dial opens a TLS connection to the Proxy.
func (p *Proxy) dial(ctx context.Context, protos ...string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := p.cfg.Dial(ctx, "tcp", p.addr)
	if err != nil {
		return nil, fault.Unreachable("cannot reach the Proxy at %s: %w", p.addr, err)
	}
	conf := p.tls.Clone()
	conf.NextProtos = protos
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, handshakeError(ctx, p.addr, err)
	}
	return conn, nil
}

// handshakeError tells a network that failed from a certificate that is not
// trusted.
func handshakeError(ctx context.Context, addr string, err error) error {
	var bad *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record):
		return fault.Unreachable("%s does not speak TLS: is it the Proxy's HTTPS port?", addr)
	case alerted(err):
		return fault.Unreachable("%s refused the TLS handshake (%w): is it the Proxy's HTTPS port?", addr, err)
	case errors.As(err, &bad) || fault.Kind(err) != nil:
		return fault.Unauthenticated("the Proxy at %s shows a certificate that this machine does not trust (%w): "+
			"use the invite link, or --ca-pin with the pin that `tctl status` shows, or --insecure on a network that you trust", addr, err)
	case ctx.Err() != nil:
		return fault.Unreachable("the Proxy at %s does not answer: no TLS handshake within %s", addr, connectTimeout)
	}
	return fault.Unreachable("TLS handshake with %s: %w", addr, err)
}

// alerted reports whether the other side ended TLS with an alert. The library's own
// type of alerts is not exported, but how it wraps them is fixed.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// Addr returns the host:port that answered.
func (p *Proxy) Addr() string { return p.addr }

// grpc opens the Proxy's gRPC port for logging in. The caller closes it.
func (p *Proxy) grpc() (*grpc.ClientConn, error) {
	conf := p.tls.Clone()
	conf.NextProtos = []string{mux.ALPNProxyGRPC, "h2"}
	return rpc.Dial(rpc.DialConfig{Addr: p.addr, TLS: conf, Dial: p.cfg.Dial})
}

// Ping is what a Proxy says about itself to anybody.
type Ping struct {
	ServerVersion string `json:"server_version"`
	ClusterName   string `json:"cluster_name"`
}

// Ping asks the Proxy's web port (/webapi/ping).
func (p *Proxy) Ping(ctx context.Context) (*Ping, error) {
	conn, err := p.dial(ctx, "http/1.1")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return nil, fault.Unreachable("ping %s: %w", p.addr, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.addr+"/webapi/ping", nil)
	if err != nil {
		return nil, fault.Invalid("ping %s: %w", p.addr, err)
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, fault.Unreachable("ping %s: %w", p.addr, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxPing)), req)
	if err != nil {
		return nil, fault.Unreachable("ping %s: %w", p.addr, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var out Ping
	if resp.StatusCode != http.StatusOK {
		return nil, fault.Unreachable("ping %s: status %d", p.addr, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPing)).Decode(&out); err != nil {
		return nil, fault.Unreachable("ping %s: the answer is not a Teleport Proxy's", p.addr)
	}
	return &out, nil
}

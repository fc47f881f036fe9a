// Package egress is how a join reaches other people's servers: Auth the clouds and
// issuers that vouch for machines, a machine the metadata service of its cloud. It
// makes one bounded request to a host that its caller names; it follows nothing, and
// it knows nothing of what is asked.
package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"

	"teleport/internal/fault"
)

const (
	// DefaultTimeout is the time for a request and its answer.
	DefaultTimeout = 5 * time.Second
	// DefaultLimit bounds the body of an answer.
	DefaultLimit = 64 << 10
)

// Config says how a Client reaches the network; the zero value is the real one.
type Config struct {
	// Roots replace those of the system.
	Roots *x509.CertPool
	// Dial replaces the network in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Timeout of a request, DefaultTimeout if zero.
	Timeout time.Duration
}

// Client makes requests. Its zero value is not usable.
type Client struct {
	cfg Config
	// metadata clients speak plain HTTP to link-local addresses.
	metadata bool
}

// New returns a Client for servers on the network.
func New(cfg Config) *Client { return &Client{cfg: cfg} }

// Metadata returns a Client for the metadata service of a machine's cloud: plain
// HTTP, no proxy, and a short time for it, since most machines have none.
func Metadata(cfg Config) *Client {
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	return &Client{cfg: cfg, metadata: true}
}

// Request is one request.
type Request struct {
	// Method is GET if empty.
	Method string
	URL    string
	Header http.Header
	Body   []byte
	// Limit bounds the body of the answer, DefaultLimit if zero.
	Limit int64
	// Private allows an address that is not on the public network: only for hosts that
	// an administrator named, never for one that came out of a document.
	Private bool
	// Plain allows http, under the same condition.
	Plain bool
	// Roots replace those of the Client for this request.
	Roots *x509.CertPool
}

// Response is the answer to a request.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do makes a request. Redirects are not followed: they come back as they are. The
// error says which host failed and how.
func (c *Client) Do(ctx context.Context, req Request) (*Response, error) {
	u, err := url.Parse(req.URL)
	plainHTTP := u != nil && u.Scheme == "http" && (c.metadata || req.Plain)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !plainHTTP {
		return nil, fault.Invalid("address %q: expected https://host/path", req.URL)
	}
	timeout := c.cfg.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(ctx, method, req.URL, bytes.NewReader(req.Body))
	if err != nil {
		return nil, fault.Invalid("request to %s: %w", u.Host, err)
	}
	if req.Header != nil {
		r.Header = req.Header.Clone()
	}
	transport := c.transport(req)
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // the URL may hold what must not be logged
		}
		return nil, fault.New(fault.ErrUnreachable, "%s does not answer: %s", u.Host, plain(err))
	}
	defer resp.Body.Close()
	limit := req.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fault.New(fault.ErrUnreachable, "%s broke off its answer: %s", u.Host, plain(err))
	}
	if int64(len(body)) > limit {
		return nil, fault.Invalid("the answer of %s is longer than %d bytes", u.Host, limit)
	}
	return &Response{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// plain says why a request failed, without the addresses of this network: a stranger who
// wants to join may read it.
func plain(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "its name is not known here"
	case errors.As(err, &dns):
		return "its name cannot be looked up"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "there is no answer in time"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}

func (c *Client) transport(req Request) *http.Transport {
	roots := c.cfg.Roots
	if req.Roots != nil {
		roots = req.Roots
	}
	dial := c.cfg.Dial
	if dial == nil {
		d := &net.Dialer{}
		if !c.metadata && !req.Private {
			d.Control = publicOnly
		}
		dial = d.DialContext
	}
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		MaxResponseHeaderBytes: 64 << 10,
		DisableKeepAlives:      true,
		DisableCompression:     true,
	}
}

// publicOnly refuses addresses of this machine and its own networks, after names are
// resolved: what an issuer's document names must not become a request to a neighbour.
func publicOnly(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return errors.New("it has no address")
	}
	ip := addr.Addr().Unmap()
	if nat64.Contains(ip) {
		// A network without IPv4 reaches the rest of the world so (RFC 6052).
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || slices.ContainsFunc(special(), func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return errors.New("its address is not on the public network")
	}
	return nil
}

// special are the networks that lead elsewhere than to a host on the public network: the
// shared address space (RFC 6598), those for protocols and benchmarks (RFC 6890), and
// IPv6 addresses with one of IPv4 inside, which may be any (RFC 8215, RFC 3056, RFC 4380,
// RFC 4291).
func special() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"),
		netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("::/96"),
	}
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// target is where an application is.
type target struct {
	scheme string
	// addr is host:port, the only address that is dialled; host is what requests name it
	// by, and name what its certificate has to.
	addr, host, name string
	// path is what a user who asks for / is sent to, or empty.
	path     string
	insecure bool
}

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeTCP   = "tcp"
)

func newTarget(a *typesv1.App) (*target, error) {
	u, err := url.Parse(a.GetSpec().GetUri())
	if err != nil || u.Hostname() == "" {
		return nil, fault.Invalid("application %q: %q is no address of an application", a.GetMetadata().GetName(), a.GetSpec().GetUri())
	}
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case schemeHTTP:
			port = "80"
		case schemeHTTPS:
			port = "443"
		}
	}
	switch {
	case port == "" || u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS && u.Scheme != schemeTCP:
		return nil, fault.Invalid("application %q: uri %q: use http://, https:// or tcp://host:port", a.GetMetadata().GetName(), a.GetSpec().GetUri())
	}
	t := &target{
		scheme: u.Scheme, addr: net.JoinHostPort(u.Hostname(), port), host: u.Host, name: u.Hostname(),
		insecure: a.GetSpec().GetInsecureSkipVerify(),
	}
	if p := u.EscapedPath(); p != "/" && strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "//") {
		t.path = p
	}
	return t, nil
}

// tcp says that the application is no web application.
func (t *target) tcp() bool { return t.scheme == schemeTCP }

// tlsConfig is how the application's certificate is verified.
func (t *target) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: t.name,
		//nolint:gosec // only where the configuration of the application says so
		InsecureSkipVerify: t.insecure,
	}
}

const (
	dialTimeout = 10 * time.Second
	keepAlive   = 30 * time.Second
)

// dialer reaches targets, but for addresses that no application has.
type dialer struct{ net.Dialer }

func newDialer() *dialer {
	return &dialer{net.Dialer{
		Timeout: dialTimeout, KeepAlive: keepAlive,
		Control: func(_, addr string, _ syscall.RawConn) error { return checkDial(addr) },
	}}
}

// dial connects to the target.
func (d *dialer) dial(ctx context.Context, t *target) (net.Conn, error) {
	return d.DialContext(ctx, "tcp", t.addr)
}

// errNoTarget is the kind of error of an address that is never dialled.
var errNoTarget = errors.New("no application is there")

// metadata are addresses at which clouds give a machine's secrets to whoever asks.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fd00:ec2::254/128"), netip.MustParsePrefix("fd20:ce::254/128"), netip.MustParsePrefix("100.100.100.200/32"),
}

// checkDial refuses an address, after its name was resolved: the names of applications may
// be in the hands of others.
func checkDial(addr string) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%w: %q", errNoTarget, addr)
	}
	ip := ap.Addr().Unmap().WithZone("")
	for _, p := range metadata {
		if p.Contains(ip) {
			return fmt.Errorf("%w: %s is where a cloud keeps the secrets of this machine", errNoTarget, ip)
		}
	}
	if ip.IsMulticast() || ip == netip.IPv4Unspecified() || ip == netip.IPv6Unspecified() {
		return fmt.Errorf("%w: %s", errNoTarget, ip)
	}
	return nil
}

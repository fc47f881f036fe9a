package doctor

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"teleport/internal/ca"
	"teleport/internal/mux"
)

const (
	// maxAddrs is how many addresses of one name are tried.
	maxAddrs = 8
	// maxAnswer bounds what an HTTP server may answer.
	maxAnswer = 64 << 10
	// maxNames is how many names of a certificate are shown.
	maxNames = 5
)

// presented is what the other end of a TLS connection showed.
type presented struct {
	chain   []*x509.Certificate
	proto   string
	version uint16
}

// dns finds the addresses of the host.
func (x *examination) dns(ctx context.Context) finding {
	if ip, err := netip.ParseAddr(x.host); err == nil {
		x.addrs = []string{ip.String()}
		return good("%s is an address: there is nothing to look up", x.host)
	}
	ctx, cancel := context.WithTimeout(ctx, x.Timeout)
	defer cancel()
	addrs, err := x.Lookup(ctx, x.host)
	var failed *net.DNSError
	switch {
	case errors.As(err, &failed) && failed.IsNotFound:
		return broken("correct the name in teleport.proxy_server or teleport.auth_server, or add it to the DNS", "there is no host %s", x.host)
	case err != nil:
		return broken("look at /etc/resolv.conf: the name servers in it do not answer for this name", "%s cannot be looked up: %s", x.host, err)
	case len(addrs) == 0:
		return broken("give the name an address in the DNS", "%s has no address", x.host)
	}
	x.addrs = addrs[:min(len(addrs), maxAddrs)]
	return good("%s is %s", x.host, strings.Join(x.addrs, ", "))
}

// tcp connects to each address; one that answers is enough.
func (x *examination) tcp(ctx context.Context) finding {
	var answered, silent []string
	var last error
	for _, addr := range x.addrs {
		conn, err := x.dial(ctx, addr)
		if err != nil {
			last = err
			silent = append(silent, fmt.Sprintf("%s: %s", net.JoinHostPort(addr, x.port), dialProblem(err)))
			continue
		}
		_ = conn.Close()
		if x.reached == "" {
			x.reached = addr
		}
		answered = append(answered, net.JoinHostPort(addr, x.port))
	}
	switch {
	case len(answered) == 0:
		return broken(x.tcpFix(last), "no connection (%s)", strings.Join(silent, "; "))
	case len(silent) > 0:
		return good("%s answers; others of its addresses do not (%s)", strings.Join(answered, ", "), strings.Join(silent, "; "))
	}
	return good("%s answers", strings.Join(answered, ", "))
}

func (x *examination) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: x.Timeout}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(addr, x.port))
}

func dialProblem(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	}
	return err.Error()
}

func (x *examination) tcpFix(err error) string {
	fix := ""
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		fix = fmt.Sprintf("nothing listens on port %s there, or a firewall refuses it: start the Proxy Service, or correct the port (usually 443 or 3080; of the Auth Service 3025)", x.port)
	case errors.As(err, &timeout) && timeout.Timeout():
		fix = fmt.Sprintf("a firewall drops the packets, or the host is off: open outgoing TCP to %s", x.addr)
	default:
		fix = "correct the network of this machine, or the address"
	}
	if f := x.proxySettings(); strings.Contains(f.detail, "not used") {
		fix += ". Teleport does not use a forward proxy (" + strings.SplitN(f.detail, " is set", 2)[0] + "): it needs a direct way"
	}
	return fix
}

// handshake offers the names, with the certificate of this machine if it has one, and
// returns what the other end showed. Nothing is believed here: verdict does that, and
// what is sent afterwards is no secret.
func (x *examination) handshake(ctx context.Context, protos ...string) (*tls.Conn, *presented, error) {
	raw, err := x.dial(ctx, x.reached)
	if err != nil {
		return nil, nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(x.Timeout))
	var shown *presented
	conn := tls.Client(raw, &tls.Config{
		ServerName: x.host, NextProtos: protos, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // it is looked at, not trusted: see verdict
		VerifyConnection: func(cs tls.ConnectionState) error {
			shown = &presented{chain: cs.PeerCertificates, proto: cs.NegotiatedProtocol, version: cs.Version}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, shown, err
	}
	return conn, shown, nil
}

// tls shakes hands as a join does, and looks at the certificate.
func (x *examination) tls(ctx context.Context) finding {
	conn, shown, err := x.handshake(ctx, mux.ALPNProxyGRPC, "h2")
	if err != nil && strings.Contains(err.Error(), "no application protocol") {
		// Somebody else; see who.
		conn, shown, err = x.handshake(ctx, "http/1.1")
	}
	if err != nil {
		return x.tlsProblem(err)
	}
	_ = conn.Close()
	x.presented = shown
	if len(shown.chain) == 0 {
		return broken("correct the address", "%s showed no certificate", x.addr)
	}
	what := describe(shown)
	if shown.version < tls.VersionTLS13 {
		return broken(straight, "%s speaks %s at most, and a Teleport speaks TLS 1.3: something in between ends TLS (%s)", x.addr, tls.VersionName(shown.version), what)
	}
	f := x.verdict(shown.chain)
	f.detail += " (" + what + ")"
	return f
}

const straight = "let the load balancer or firewall pass the port on as it is (TCP, or TLS passthrough): one that ends TLS does not work in this version"

func (x *examination) tlsProblem(err error) finding {
	var header tls.RecordHeaderError
	var timeout net.Error
	switch {
	case errors.As(err, &header) && strings.HasPrefix(string(header.RecordHeader[:]), "HTTP/"):
		return broken("correct the port, or have the listener there speak TLS", "port %s speaks plain HTTP, without TLS", x.port)
	case errors.As(err, &header) && strings.HasPrefix(string(header.RecordHeader[:]), "SSH-"):
		return broken("correct the port: that of a Proxy is usually 443 or 3080", "port %s is that of an SSH server", x.port)
	case errors.As(err, &header):
		return broken("correct the port", "port %s does not speak TLS", x.port)
	case errors.As(err, &timeout) && timeout.Timeout():
		return broken("correct the port, or look whether a firewall holds TLS back", "port %s is open, and does not answer to TLS", x.port)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return broken("correct the port, or look for a load balancer that has nobody behind it, or a firewall that cuts TLS off", "port %s is open, and ends the connection when TLS begins", x.port)
	}
	return broken("correct the address, or look at the log of what listens there", "the TLS handshake failed: %s", err)
}

// describe says what a certificate is, so that a stranger in between is known by it.
func describe(p *presented) string {
	leaf := p.chain[0]
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	more := ""
	if len(names) > maxNames {
		names, more = names[:maxNames], ", ..."
	}
	return fmt.Sprintf("%s; the certificate is for %s%s, issued by %q, good until %s", tls.VersionName(p.version), strings.Join(names, ", "), more,
		leaf.Issuer.String(), leaf.NotAfter.UTC().Format("2006-01-02 15:04:05 UTC"))
}

// verdict says whether a join would trust the other end, and by what.
func (x *examination) verdict(chain []*x509.Certificate) finding {
	now := x.Now()
	const pinFix = "give the CA pin of the cluster (teleport.ca_pin or --ca-pin; `tctl status` shows it)"
	switch {
	case x.Insecure:
		return good("not verified, because of --insecure")
	case pinned(chain, x.pins):
		return good("the certificate is of the authority that the CA pin names")
	case len(x.pins) > 0:
		return good("trust comes from the CA pin, which the end of a join is checked by")
	}
	if x.holder != nil {
		if _, err := x.holder.Trust().VerifyTLS(chain, now); err == nil {
			return good("the certificate is of the cluster that this machine is in")
		} else if x.direct {
			return broken("correct the address, or delete the data directory to join another cluster", "the certificate is not of the cluster that this machine is in: %s", err)
		}
	}
	if x.direct {
		return broken(pinFix, "there is nothing to know the Auth Service by")
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: x.host, Intermediates: inter, CurrentTime: now})
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return good("this machine trusts the certificate")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		what := "has expired"
		if now.Before(chain[0].NotBefore) {
			what = "is not valid yet"
		}
		return broken("correct the clock of this machine if it is wrong, otherwise replace the certificate", "the certificate %s at this machine's time, %s", what, now.UTC().Format(time.RFC3339))
	case errors.As(err, &host):
		return broken("use an address that the certificate names, or "+pinFix, "the certificate is not for %s", x.host)
	}
	return broken(pinFix+", or give the Proxy Service a certificate that this machine trusts. If you do not know the issuer, something in between ends TLS: "+straight,
		"this machine does not trust the certificate")
}

// pinned reports whether one of the certificates is what a pin names.
func pinned(chain []*x509.Certificate, pins []string) bool {
	return slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return slices.Contains(pins, ca.Pin(c)) })
}

// alpn looks whether the names of the protocols come through: a Proxy chooses that of
// tunnels, and whatever ends TLS before it does not know it.
func (x *examination) alpn(ctx context.Context) finding {
	conn, shown, err := x.handshake(ctx, mux.ALPNTunnel)
	if conn != nil {
		_ = conn.Close()
	}
	switch {
	case err == nil && shown.proto == mux.ALPNTunnel:
		x.tunnel = shown
		return good("the Proxy Service chose %s", mux.ALPNTunnel)
	case x.direct && x.presented.proto == "h2":
		return good("the other end chose h2, as an Auth Service does")
	}
	const gone = "the name of the protocol did not come through (%s instead of %s): "
	chosen := "none chosen"
	if x.presented.proto != "" {
		chosen = x.presented.proto
	}
	ping, err := x.ping(ctx)
	switch {
	case err != nil:
		return broken("correct the address", gone+"this is no Teleport, or something in between ends TLS; asked for /webapi/ping it says: %s", chosen, mux.ALPNTunnel, err)
	case !ping.teleport():
		return broken("correct the address", gone+"another web server answers, %s", chosen, mux.ALPNTunnel, ping)
	}
	return broken(straight, gone+"the Proxy Service of cluster %q is behind something that ends TLS", chosen, mux.ALPNTunnel, ping.Cluster)
}

// answer is what a Proxy says of itself to everybody.
type answer struct {
	Version string `json:"server_version"`
	Cluster string `json:"cluster_name"`

	status int
	server string
	date   time.Time
}

func (a *answer) teleport() bool { return a.Version != "" && a.Cluster != "" }

// String says who answered.
func (a *answer) String() string {
	who := a.server
	if who == "" {
		who = "of an unknown make"
	}
	return fmt.Sprintf("%s, with status %d", who, a.status)
}

// ping asks the web port who it is.
func (x *examination) ping(ctx context.Context) (*answer, error) {
	conn, _, err := x.handshake(ctx, "http/1.1")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+x.addr+"/webapi/ping", http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	a := &answer{status: resp.StatusCode, server: resp.Header.Get("Server")}
	a.date, _ = http.ParseTime(resp.Header.Get("Date"))
	if body, err := io.ReadAll(resp.Body); err == nil {
		// Whatever else answers is no JSON of ours, and says so by its fields.
		_ = json.Unmarshal(body, a)
	}
	return a, nil
}

// balancer looks whether the tunnel's connection ends at the Proxy itself.
func (x *examination) balancer(ctx context.Context) finding {
	if x.tunnel == nil {
		return good("not asked: the connection is to the Auth Service itself")
	}
	ping, err := x.ping(ctx)
	if err != nil {
		return broken("look at the log of the Proxy Service", "asked for /webapi/ping, it says: %s", err)
	}
	x.date = ping.date
	if !ping.teleport() {
		return broken(straight, "tunnels end at a Proxy, and /webapi/ping is answered by another web server, %s", ping)
	}
	who := fmt.Sprintf("Teleport %s, cluster %q", ping.Version, ping.Cluster)
	issuer := x.tunnel.chain[0].Issuer.String()
	switch {
	case x.holder != nil:
		if _, err := x.holder.Trust().VerifyTLS(x.tunnel.chain, x.Now()); err != nil {
			return broken("correct the address, or delete the data directory to join the other cluster", "%s answers; it is not of cluster %q, which this machine is in: %s", who, x.holder.State().Cluster, err)
		}
	case len(x.pins) > 0 && !x.Insecure && len(x.tunnel.chain) > 1 && !pinned(x.tunnel.chain, x.pins):
		return broken("compare teleport.ca_pin with `tctl status`, and the address with that of your cluster", "%s answers; the tunnel is of %q, which no CA pin names", who, issuer)
	}
	return good("%s answers, and the tunnel ends there with a certificate of %q: nothing in between ends TLS", who, issuer)
}

// clock compares this machine's clock with that of the Proxy.
func (x *examination) clock(context.Context) finding {
	if x.date.IsZero() {
		return unknown("the other end did not say what time it is; the join compares")
	}
	skew := x.Now().Sub(x.date).Round(time.Second)
	switch {
	case skew.Abs() <= maxSkew:
		return good("it agrees with that of the Proxy")
	case skew > 0:
		return broken("set the clock (NTP), then try again", "this machine's clock is %s ahead of the Proxy's", skew)
	}
	return broken("set the clock (NTP), then try again", "this machine's clock is %s behind the Proxy's", skew.Abs())
}

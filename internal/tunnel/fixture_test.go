package tunnel_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/mux"
	"teleport/internal/retry"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

const client = "192.0.2.7:40001"

// toNode asks for the SSH Service for that client.
var toNode = tunnel.Request{Service: types.RoleNode, ClientAddr: client}

// cluster signs certificates.
type cluster struct {
	signer *ca.Signer
	trust  *ca.Trust
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	ks := keystore.Software()
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		c, err := ca.Generate(ks, "example.com", typ, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cas = append(cas, c)
	}
	s, err := ca.NewSigner(ks, cas, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ca.NewTrust(cas)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{s, trust}
}

type keyPair struct {
	tls, ssh crypto.Signer
	spki     []byte
	wire     ssh.PublicKey
}

func newKeys(t testing.TB) keyPair {
	t.Helper()
	tlsKey, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	sshKey, err := keys.Generate(keys.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := keys.PublicDER(tlsKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	wire, err := ssh.NewPublicKey(sshKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{tlsKey, sshKey, spki, wire}
}

// host issues the certificates of a host for the service ("": of the process).
func (c *cluster) host(t testing.TB, id string, service types.SystemRole, ttl time.Duration, roles ...types.SystemRole) (*tls.Certificate, ssh.Signer) {
	t.Helper()
	k := newKeys(t)
	der, wire, err := c.signer.Host(ca.HostRequest{
		Identity: identity.Identity{Cluster: "example.com", Host: &identity.Host{ID: id, Name: "web-1", Roles: roles, Service: service}},
		TLSKey:   k.spki, SSHKey: k.wire.Marshal(), TTL: ttl,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.tls}, certSigner(t, wire, k.ssh)
}

func (c *cluster) user(t testing.TB, login string) ssh.Signer {
	t.Helper()
	k := newKeys(t)
	_, wire, err := c.signer.User(ca.UserRequest{
		Identity: identity.Identity{Cluster: "example.com", User: &identity.User{Name: "alice", Roles: []string{"access"}, Logins: []string{login}}},
		TLSKey:   k.spki, SSHKey: k.wire.Marshal(), TTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return certSigner(t, wire, k.ssh)
}

func certSigner(t testing.TB, wire []byte, key crypto.Signer) ssh.Signer {
	t.Helper()
	cert, err := ca.ParseSSHCertificate(wire)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, plain)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// proxy is a running Server.
type proxy struct {
	*tunnel.Server
	addr string
	stop func() // returns when Serve did
}

// startProxy serves on ln, or on a new loopback port if that is nil.
func startProxy(t testing.TB, c *cluster, ln net.Listener, change func(*tunnel.ServerConfig)) *proxy {
	t.Helper()
	cert, _ := c.host(t, uuid.NewString(), types.RoleProxy, 0, types.RoleProxy)
	_, signer := c.host(t, uuid.NewString(), "", 0, types.RoleProxy)
	cfg := tunnel.ServerConfig{
		Trust: func() *ca.Trust { return c.trust }, Signer: func() ssh.Signer { return signer }, Drain: -1,
	}
	if change != nil {
		change(&cfg)
	}
	s := tunnel.NewServer(cfg)
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	addr := ln.Addr().String()
	ln = tls.NewListener(ln, ca.ServerTLS(func() *tls.Certificate { return cert }, nil, tls.NoClientCert, mux.ALPNTunnel))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve() = %v, want nil when ctx ends", err)
		}
	})
	t.Cleanup(stop)
	return &proxy{s, addr, stop}
}

// agent is a running RunAgent.
type agent struct {
	id     string
	states chan bool
	stop   func()
}

// hostKey accepts any Proxy of the cluster.
func (c *cluster) hostKey() ssh.HostKeyCallback { return c.trust.AnyHostKeyCallback(types.RoleProxy) }

func echo(_ context.Context, conn net.Conn, _ tunnel.Request) {
	_, _ = io.Copy(conn, conn)
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
}

// agentConfig returns the configuration of a good agent, and its host id.
func agentConfig(t testing.TB, c *cluster, addr string) (tunnel.AgentConfig, string) {
	t.Helper()
	id := uuid.NewString()
	_, signer := c.host(t, id, "", 0, types.RoleNode)
	return tunnel.AgentConfig{
		Addr: addr, TLS: ca.ClientTLS(nil, func() *ca.Trust { return c.trust }, types.RoleProxy),
		Signer: func() ssh.Signer { return signer }, HostKey: c.hostKey, Handle: echo,
		Reconnect: retry.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond},
	}, id
}

func startAgent(t testing.TB, cfg tunnel.AgentConfig, id string) *agent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	a := &agent{id: id, states: make(chan bool, 100)}
	done := make(chan error, 1)
	go func() { done <- tunnel.RunAgent(ctx, cfg, func(up bool) { a.states <- up }) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("RunAgent() = %v, want nil when ctx ends", err)
		}
	})
	t.Cleanup(a.stop)
	return a
}

// wait waits for a change to the state.
func (a *agent) wait(t testing.TB, up bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got := <-a.states:
			if got == up {
				return
			}
		case <-timeout:
			t.Fatalf("the agent did not become connected=%v", up)
		}
	}
}

// until waits for the condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func pair(t testing.TB, change func(*tunnel.AgentConfig)) (*cluster, *proxy, *agent) {
	t.Helper()
	c := newCluster(t)
	p := startProxy(t, c, nil, nil)
	cfg, id := agentConfig(t, c, p.addr)
	if change != nil {
		change(&cfg)
	}
	a := startAgent(t, cfg, id)
	a.wait(t, true)
	until(t, "tunnel registered", func() bool { return p.Connected(id) })
	return c, p, a
}

func (p *proxy) dial(t testing.TB, id string) net.Conn {
	t.Helper()
	conn, err := p.Dial(t.Context(), id, toNode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// recorder is a log handler that keeps the text of errors.
type recorder struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	r.lines = append(r.lines, line)
	return nil
}

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out string
	for _, l := range r.lines {
		out += l + "\n"
	}
	return out
}

// dialTLS connects as an agent does, up to TLS.
func dialTLS(t testing.TB, c *cluster, addr string) net.Conn {
	t.Helper()
	cfg := ca.ClientTLS(nil, func() *ca.Trust { return c.trust }, types.RoleProxy)
	cfg.NextProtos = []string{mux.ALPNTunnel}
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Package clienttest is a small cluster for tests of what tsh and tctl are made
// of: real certificates and protocols on one port, with hand-written services
// behind it that say what the test told them. It is no model of how the real
// services decide.
package clienttest

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	appv1 "teleport/api/app/v1"
	auditv1 "teleport/api/audit/v1"
	databasev1 "teleport/api/database/v1"
	loginv1 "teleport/api/login/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/ca"
	"teleport/internal/client"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// What the cluster is called, and ids in it.
const (
	Name     = "test.example.com"
	NodeName = "web-1"
	NodeID   = "6805dda3-779e-493b-a1c5-8d0bd3a0a2f1"
	AgentID  = "b2c07c94-9a0f-44d0-8a4f-0a8d2b1a8f5e"
	proxyID  = "1f58429134c4-proxy"
)

// TB is what is needed of a test.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(f func())
}

// Cluster is a running fake.
type Cluster struct {
	// Addr is the host:port of its one port.
	Addr string
	// Signer and Trust are the real ones.
	Signer *ca.Signer
	Trust  *ca.Trust
	// Login, Resources and the others are the services behind the port.
	Login     *Login
	Resources *Resources
	Tokens    *Tokens
	Status    *statusv1.GetStatusResponse
	Events    []*auditv1.Event
	// MaxTTL caps what SignUser signs for; 0 does not.
	MaxTTL time.Duration
	// Web is the certificate of the web port; nil is the Proxy's own.
	Web *tls.Certificate
	// Node is the SSH service behind the Proxy, Agent that of applications and databases.
	Node  *Node
	Agent *Agent
	// HostName, if set, is the name that the Proxy answers a DialRequest with, and
	// HostID the id; with a HostName alone the id is another's.
	HostName, HostID string

	t     TB
	proxy *tls.Certificate
}

// Start runs a cluster until the test ends.
func Start(t TB) *Cluster {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := New(t)
	c.Addr = ln.Addr().String()
	c.serve(ln)
	return c
}

// New makes a cluster that signs but does not run.
func New(t TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		authority, err := ca.Generate(keystore.Software(), Name, typ, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cas = append(cas, authority)
	}
	var err error
	if c.Signer, err = ca.NewSigner(keystore.Software(), cas, time.Now); err != nil {
		t.Fatal(err)
	}
	if c.Trust, err = ca.NewTrust(cas); err != nil {
		t.Fatal(err)
	}
	c.proxy, _ = c.host(types.RoleProxy, proxyID, "proxy-1")
	c.Login = &Login{c: c, Password: "correct horse battery", Code: "123456", User: "alice"}
	c.Resources = &Resources{}
	c.Tokens = &Tokens{}
	c.Status = &statusv1.GetStatusResponse{ClusterName: Name, SoftwareVersion: "0.1.0", CaPins: c.Trust.Pins()}
	c.Node = &Node{c: c}
	c.Agent = &Agent{c: c, ID: AgentID}
	return c
}

// Impostor makes the node show the host certificate of another service, as a Proxy
// can that passes one off as another.
func (c *Cluster) Impostor(role types.SystemRole, id, name string) {
	c.t.Helper()
	_, c.Node.signer = c.host(role, id, name)
}

// host signs the certificates of a service.
func (c *Cluster) host(role types.SystemRole, id, name string) (*tls.Certificate, ssh.Signer) {
	c.t.Helper()
	k, err := client.NewSingleKey()
	if err != nil {
		c.t.Fatal(err)
	}
	public, err := k.Public()
	if err != nil {
		c.t.Fatal(err)
	}
	tlsDER, sshWire, err := c.Signer.Host(ca.HostRequest{
		Identity: identity.Identity{Cluster: Name, Host: &identity.Host{ID: id, Name: name, Roles: []types.SystemRole{role}, Service: role}},
		TLSKey:   public.GetTls(), SSHKey: public.GetSsh(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{tlsDER}, PrivateKey: k.TLS}
	for _, authority := range c.Trust.HostCertificates() {
		cert.Certificate = append(cert.Certificate, authority.Raw)
	}
	sshCert, err := ca.ParseSSHCertificate(sshWire)
	if err != nil {
		c.t.Fatal(err)
	}
	plain, err := ssh.NewSignerFromSigner(k.SSH)
	if err != nil {
		c.t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(sshCert, plain)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, signer
}

// Certificates signs those of a user.
func (c *Cluster) Certificates(public *loginv1.PublicKeys, user string, ttl time.Duration, logins ...string) *loginv1.UserCertificates {
	c.t.Helper()
	tlsDER, sshWire, err := c.Signer.User(ca.UserRequest{
		Identity: identity.Identity{Cluster: Name, User: &identity.User{
			Name: user, Roles: []string{"access"}, Logins: logins, Traits: map[string][]string{"logins": logins},
		}},
		TLSKey: public.GetTls(), SSHKey: public.GetSsh(), TTL: ttl, NoLogins: len(logins) == 0, PermitPTY: true,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	authorities := c.Trust.Authorities()
	signatures, err := c.Signer.SignAsHostCA(ca.AuthoritiesDigest(tlsDER, authorities))
	if err != nil {
		c.t.Fatal(err)
	}
	return &loginv1.UserCertificates{
		User: user, ClusterName: Name, Tls: tlsDER, Ssh: sshWire, Authorities: authorities, AuthoritiesSignatures: signatures,
	}
}

// Credentials makes those of a user, of one key.
func (c *Cluster) Credentials(user string, ttl time.Duration, logins ...string) *client.Credentials {
	c.t.Helper()
	k, err := client.NewSingleKey()
	if err != nil {
		c.t.Fatal(err)
	}
	public, err := k.Public()
	if err != nil {
		c.t.Fatal(err)
	}
	creds, err := client.NewCredentials(k, c.Certificates(public, user, ttl, logins...))
	if err != nil {
		c.t.Fatal(err)
	}
	return creds
}

// serve routes the port as a Proxy does.
func (c *Cluster) serve(ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	m := mux.New(mux.Config{Listener: ln})
	has := func(want string) func([]string, string) bool {
		return func(protos []string, _ string) bool { return slices.Contains(protos, want) }
	}
	sshLn := m.Route(has(mux.ALPNProxySSH))
	grpcLn := m.Route(has(mux.ALPNProxyGRPC))
	authLn := m.Route(func(protos []string, _ string) bool {
		return slices.ContainsFunc(protos, func(p string) bool { return strings.HasPrefix(p, mux.ALPNAuthPrefix) })
	})
	webLn := m.Default()
	trust := func() *ca.Trust { return c.Trust }
	proxy := func() *tls.Certificate { return c.proxy }
	web := func() *tls.Certificate {
		if c.Web != nil {
			return c.Web
		}
		return c.proxy
	}
	authCert, _ := c.host(types.RoleAuth, "auth-1", "auth-1")
	_, node := c.host(types.RoleNode, NodeID, NodeName)
	c.Node.signer = node
	allow := func(context.Context, rpc.Caller, string) error { return nil }
	login := rpc.NewServer(rpc.ServerConfig{
		TLS: ca.ServerTLS(web, trust, tls.NoClientCert, mux.ALPNProxyGRPC, "h2"), Identify: c.Trust.Identify, Authorize: allow,
	})
	loginv1.RegisterLoginServiceServer(login.Registrar(), c.Login)
	auth := rpc.NewServer(rpc.ServerConfig{
		TLS:      ca.ServerTLS(func() *tls.Certificate { return authCert }, trust, tls.RequireAndVerifyClientCert, mux.ALPNAuthPrefix+Name, "h2"),
		Identify: c.Trust.Identify, Authorize: allow,
	})
	resourcev1.RegisterResourceServiceServer(auth.Registrar(), c.Resources)
	tokenv1.RegisterTokenServiceServer(auth.Registrar(), c.Tokens)
	statusv1.RegisterStatusServiceServer(auth.Registrar(), statusService{c: c})
	auditv1.RegisterAuditServiceServer(auth.Registrar(), auditService{c: c})
	userv1.RegisterUserServiceServer(auth.Registrar(), userService{c: c})
	appv1.RegisterAppServiceServer(auth.Registrar(), appService{c: c})
	databasev1.RegisterDatabaseServiceServer(auth.Registrar(), databaseService{c: c})

	sshConf := ca.ServerTLS(proxy, trust, tls.RequireAndVerifyClientCert, mux.ALPNProxySSH)
	webConf := ca.ServerTLS(web, trust, tls.NoClientCert, "http/1.1")
	done := make(chan struct{}, 5)
	run := func(f func()) {
		go func() { f(); done <- struct{}{} }()
	}
	run(func() { _ = m.Serve(ctx) })
	run(func() { _ = login.Serve(ctx, grpcLn) })
	run(func() { _ = auth.Serve(ctx, authLn) })
	run(func() { accept(sshLn, sshConf, c.dial) })
	run(func() { accept(webLn, webConf, c.ping) })
	c.t.Cleanup(func() {
		cancel()
		for range cap(done) {
			<-done
		}
	})
}

func accept(ln net.Listener, conf *tls.Config, handle func(*tls.Conn)) {
	for {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			conn := tls.Server(raw, conf)
			defer func() { _ = conn.Close() }()
			if conn.Handshake() == nil {
				handle(conn)
			}
		}()
	}
}

// Derive returns the id of a token's secret.
func Derive(secret string) string { return keys.DeriveToken(secret).ID }

package proxy_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	opensshv1 "teleport/api/openssh/v1"
	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/authapi"
	"teleport/internal/authz"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/service/proxy"
	"teleport/internal/store"
	"teleport/internal/types"
)

// authority is the Auth Service as far as OpenSSH servers need one: the true handler,
// called without a network in between.
type authority struct {
	handler *authapi.OpenSSHServer
	store   *store.Store
	proxyID string

	mu sync.Mutex
	// fail is what every call ends with.
	fail error
}

func (a *authority) setFail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

// Invoke makes a call.
func (a *authority) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	a.mu.Lock()
	err := a.fail
	a.mu.Unlock()
	if err != nil {
		return err
	}
	ctx = rpc.WithCaller(ctx, rpc.Caller{Identity: &identity.Identity{Cluster: clusterName, Host: &identity.Host{
		ID: a.proxyID, Name: "proxy", Roles: []types.SystemRole{types.RoleProxy}, Service: types.RoleProxy,
	}}})
	var out proto.Message
	switch req := args.(type) {
	case *opensshv1.SignProxyRequest:
		out, err = a.handler.SignProxy(ctx, req)
	case *opensshv1.SignLoginRequest:
		out, err = a.handler.SignLogin(ctx, req)
	default:
		return fault.Unsupported("%s", method)
	}
	if err == nil {
		proto.Merge(reply.(proto.Message), out)
	}
	return err
}

// NewStream opens nothing.
func (a *authority) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fault.Unsupported("no streams")
}

// stock is a world with an OpenSSH server.
type stock struct {
	*world
	auth   *authority
	signer *ca.Signer
	// trusted is the authority that servers trust.
	trusted ssh.PublicKey
	id      string

	mu sync.Mutex
	// shown are the certificates that the server was shown; login is refused if set.
	shown  []*ssh.Certificate
	refuse bool
	// banner is what the server shows, and told what its users were shown.
	banner, told string
}

const stockName = "db-8"

// newStock starts a Proxy and an OpenSSH server whose host key the function makes; nil
// is a good one.
func newStock(t *testing.T, hostKey func(*stock) ssh.Signer) *stock {
	t.Helper()
	s := &stock{auth: &authority{}, id: uuid.NewString()}
	s.world = newWorld(t, func(c *proxy.Config) { c.AuthConn = s.auth })
	openssh := must(ca.Generate(keystore.Software(), clusterName, ca.TypeOpenSSH, time.Now()))
	cas := append(slices.Clone(s.cas), openssh)
	s.signer = must(ca.NewSigner(keystore.Software(), cas, time.Now))
	trust := must(ca.NewTrust(cas))
	s.trusted, _, _, _, _ = ssh.ParseAuthorizedKey([]byte(trust.OpenSSHKeys()[0]))
	s.auth.proxyID = s.holder.HostID()
	b := memory.New()
	t.Cleanup(func() { _ = b.Close() })
	s.auth.store = store.New(store.Config{Backend: b})
	s.auth.store.SetCluster(clusterName)
	s.auth.handler = must(authapi.NewOpenSSH(authapi.SigningConfig{
		Config: authapi.Config{
			Store: s.auth.store, Authorizer: authz.New(nil), Trust: func() *ca.Trust { return trust }, Cluster: func() string { return clusterName },
		},
		Signer: func() *ca.Signer { return s.signer },
	}))
	user := types.New(types.KindUser, "alice").(*typesv1.User)
	user.Spec = &typesv1.UserSpec{Roles: []string{"web"}}
	s.put(t, user)
	s.setRole(t, nil)
	if hostKey == nil {
		hostKey = func(s *stock) ssh.Signer { return s.hostKey(t, s.signer, s.id) }
	}
	s.addServer(t, s.serve(t, hostKey(s)))
	return s
}

// put writes a resource at Auth and in the Proxy's cache.
func (s *stock) put(t *testing.T, r types.Resource) {
	t.Helper()
	if err := s.auth.store.Tx().Upsert(proto.Clone(r).(types.Resource)).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.cache.Apply(types.Change{Revision: 3, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: r})
}

// setRole gives alice's role options.
func (s *stock) setRole(t *testing.T, options *typesv1.RoleOptions) {
	t.Helper()
	role := types.New(types.KindRole, "web").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Options: options, Allow: &typesv1.RoleConditions{
		Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"web"}}},
	}}
	s.put(t, role)
}

func (s *stock) addServer(t *testing.T, addr string) {
	t.Helper()
	n := types.New(types.KindNode, s.id).(*typesv1.Server)
	n.SubKind, n.Metadata.Labels = types.SubKindOpenSSH, map[string]string{"env": "web"}
	n.Spec = &typesv1.ServerSpec{Hostname: stockName, Addr: addr}
	s.put(t, n)
}

// hostKey makes a host key with a certificate for the server of the id.
func (s *stock) hostKey(t *testing.T, by *ca.Signer, id string) ssh.Signer {
	t.Helper()
	key, plain := newSSHKey(t)
	wire, err := by.OpenSSHHost(ca.OpenSSHHostRequest{ID: id, Name: stockName, SSHKey: plain.PublicKey().Marshal(), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return certified(t, key, wire)
}

func newSSHKey(t *testing.T) (crypto.Signer, ssh.Signer) {
	t.Helper()
	key := must(keys.Generate(keys.Ed25519))
	return key, must(ssh.NewSignerFromSigner(key))
}

func certified(t *testing.T, key crypto.Signer, wire []byte) ssh.Signer {
	t.Helper()
	return must(ssh.NewCertSigner(must(ca.ParseSSHCertificate(wire)), must(ssh.NewSignerFromSigner(key))))
}

// serve is an OpenSSH server: its commands print their own text.
func (s *stock) serve(t *testing.T, key ssh.Signer) string {
	t.Helper()
	checker := &ssh.CertChecker{IsUserAuthority: func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), s.trusted.Marshal()) }}
	config := &ssh.ServerConfig{PublicKeyCallback: func(meta ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refuse {
			return nil, errors.New("no")
		}
		if cert, ok := k.(*ssh.Certificate); ok {
			s.shown = append(s.shown, cert)
		}
		return checker.Authenticate(meta, k)
	}, BannerCallback: func(ssh.ConnMetadata) string { return s.banner }}
	config.AddHostKey(key)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { serveCommands(nc, config) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.stop()
		conns.Wait()
	})
	return ln.Addr().String()
}

func serveCommands(nc net.Conn, config *ssh.ServerConfig) {
	defer nc.Close()
	_, chans, reqs, err := ssh.NewServerConn(nc, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for n := range chans {
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				_ = r.Reply(true, nil)
				if r.Type == "exec" && string(r.Payload[4:]) != "sleep" {
					_, _ = ch.Write(r.Payload[4:])
					_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{7}))
					_ = ch.Close()
				}
			}
			_ = ch.Close()
		}()
	}
}

// visitor makes the credentials of alice.
func (s *stock) visitor(t *testing.T) (*tls.Certificate, ssh.Signer) {
	t.Helper()
	tlsKey := must(keys.Generate(keys.ECDSAP256))
	key, plain := newSSHKey(t)
	req := ca.UserRequest{
		Identity: identity.Identity{Cluster: clusterName, User: &identity.User{Name: "alice", Roles: []string{"web"}, Logins: []string{"root", "daemon"}}},
		TLSKey:   must(keys.PublicDER(tlsKey.Public())), SSHKey: plain.PublicKey().Marshal(), TTL: time.Hour, PermitPTY: true,
	}
	der, wire, err := s.world.signer.User(req)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.PrivateKey(tlsKey)}, certified(t, key, wire)
}

// connect logs alice in and returns what the user was told if that fails.
func (s *stock) connect(t *testing.T, login string) (*ssh.Client, string, error) {
	t.Helper()
	cert, signer := s.visitor(t)
	conn, resp := s.dialUser(t, cert, dialReq(stockName))
	if resp.GetError() != "" {
		return nil, resp.GetError(), errors.New(resp.GetErrorKind())
	}
	_ = conn.SetDeadline(time.Time{})
	banner := ""
	c, chans, reqs, err := ssh.NewClientConn(conn, stockName, &ssh.ClientConfig{
		User: login, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   s.trust.HostKeyCallback(types.RoleNode, stockName, resp.GetHostId()),
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
		BannerCallback:    func(text string) error { banner = text; return nil },
	})
	if err != nil {
		return nil, banner, err
	}
	s.told = banner
	client := ssh.NewClient(c, chans, reqs)
	t.Cleanup(func() { _ = client.Close() })
	return client, "", nil
}

func (s *stock) mustConnect(t *testing.T) *ssh.Client {
	t.Helper()
	c, text, err := s.connect(t, "root")
	if err != nil {
		t.Fatalf("connect: %v, told %q", err, text)
	}
	return c
}

func command(t *testing.T, c *ssh.Client, text string) (string, error) {
	t.Helper()
	sess, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer sess.Close()
	out, err := sess.Output(text)
	return string(out), err
}

// waitEvent returns the first event of the code, when it comes.
func (s *stock) waitEvent(t *testing.T, code string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range s.recorded() {
			if e.GetCode() == code {
				return e.GetFields().AsMap()
			}
		}
	}
	t.Fatalf("no event %s", code)
	return nil
}

func TestOpenSSHServer(t *testing.T) {
	s := newStock(t, nil)
	s.banner = "Authorized use only.\nAsk \x1b[1mEve.\n"
	c := s.mustConnect(t)
	if want := "Authorized use only.\r\nAsk ?[1mEve.\r\n"; s.told != want {
		t.Errorf("the user was shown %q, want %q", s.told, want)
	}
	out, err := command(t, c, "hello")
	var exit *ssh.ExitError
	if out != "hello" || !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("hello = %q, %v", out, err)
	}
	end := s.waitEvent(t, "T2004I")
	if end["server_id"] != s.id || end["server_hostname"] != stockName || end["proxy_id"] != s.holder.HostID() || end["user"] != "alice" || end["exitCode"] != "7" {
		t.Errorf("session.end = %v", end)
	}
	if connect := s.waitEvent(t, "T2010I"); connect["server_id"] != s.id || connect["proxy_id"] == "" {
		t.Errorf("session.connect = %v", connect)
	}
	if start := s.waitEvent(t, "T2000I"); start["server_labels"].(map[string]any)["env"] != "web" {
		t.Errorf("session.start = %v", start)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cert := s.shown[0]
	if cert.KeyId != "alice" || cert.CriticalOptions["source-address"] != "127.0.0.1/32" || len(cert.ValidPrincipals) != 1 || len(cert.Extensions) != 1 {
		t.Errorf("the server was shown %q for %v from %v with %v", cert.KeyId, cert.ValidPrincipals, cert.CriticalOptions, cert.Extensions)
	}
}

// What answers is checked by the Proxy: it must be this server, now.
func TestOpenSSHServersThatAreNot(t *testing.T) {
	for name, tt := range map[string]struct {
		key  func(*testing.T, *stock) ssh.Signer
		says string
	}{
		"plain_key":      {func(t *testing.T, _ *stock) ssh.Signer { _, plain := newSSHKey(t); return plain }, "it shows no host certificate"},
		"another_server": {func(t *testing.T, s *stock) ssh.Signer { return s.hostKey(t, s.signer, uuid.NewString()) }, "is not for"},
		"expired": {func(t *testing.T, s *stock) ssh.Signer {
			early := must(ca.NewSigner(keystore.Software(), early(s.cas), func() time.Time { return time.Now().Add(-3 * time.Hour) }))
			return s.hostKey(t, early, s.id)
		}, "expired at"},
		"another_cluster": {func(t *testing.T, s *stock) ssh.Signer {
			var cas []*typesv1.CertAuthority
			for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
				cas = append(cas, must(ca.Generate(keystore.Software(), clusterName, typ, time.Now())))
			}
			return s.hostKey(t, must(ca.NewSigner(keystore.Software(), cas, time.Now)), s.id)
		}, "not signed by the host certificate authority"},
		"an_agent": {func(t *testing.T, s *stock) ssh.Signer {
			key, plain := newSSHKey(t)
			_, wire, err := s.signer.Host(ca.HostRequest{
				Identity: identity.Identity{Cluster: clusterName, Host: &identity.Host{ID: s.id, Name: stockName, Roles: []types.SystemRole{types.RoleNode}, Service: types.RoleNode}},
				TLSKey:   must(keys.PublicDER(must(keys.Generate(keys.ECDSAP256)).Public())), SSHKey: plain.PublicKey().Marshal(),
			})
			if err != nil {
				t.Fatal(err)
			}
			return certified(t, key, wire)
		}, "is not that of the OpenSSH server"},
		"another_proxy": {func(t *testing.T, s *stock) ssh.Signer {
			key, plain := newSSHKey(t)
			wire, err := s.signer.OpenSSHHost(ca.OpenSSHHostRequest{ID: s.id, Name: stockName, Proxy: "p9", SSHKey: plain.PublicKey().Marshal(), TTL: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			return certified(t, key, wire)
		}, "is not that of the OpenSSH server"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t, func(s *stock) ssh.Signer { return tt.key(t, s) })
			c, text, err := s.connect(t, "root")
			if c != nil || err == nil || !strings.Contains(text, tt.says) || !strings.HasPrefix(text, "cannot connect you to "+stockName) {
				t.Errorf("connect = %v, told %q, want %q", err, text, tt.says)
			}
			if e := s.waitEvent(t, "T1006W"); !strings.Contains(e["error"].(string), tt.says) {
				t.Errorf("recorded %v", e)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.shown) != 0 {
				t.Error("the Proxy showed it a certificate")
			}
		})
	}
}

// early returns authorities that were there yesterday.
func early(cas []*typesv1.CertAuthority) []*typesv1.CertAuthority {
	var out []*typesv1.CertAuthority
	for _, c := range cas {
		c = proto.CloneOf(c)
		fresh := must(ca.Generate(keystore.Software(), clusterName, c.GetSpec().GetType(), time.Now().Add(-24*time.Hour)))
		c.Spec.ActiveKeys.Tls = fresh.GetSpec().GetActiveKeys().GetTls()
		out = append(out, c)
	}
	return out
}

func TestOpenSSHRefusals(t *testing.T) {
	yes := proto.Bool(true)
	for name, tt := range map[string]struct {
		login  string
		before func(*testing.T, *stock)
		says   string
		code   string
	}{
		"login":      {login: "daemon", says: "access denied to daemon connecting to db-8: your roles do not allow it, ask an administrator (audit event ", code: "T3007W"},
		"nobody":     {login: "toor", says: "access denied to toor", code: "T3007W"},
		"pin_source": {before: func(t *testing.T, s *stock) { s.setRole(t, &typesv1.RoleOptions{PinSourceIp: yes}) }, says: "bind certificates to the address", code: "T1006W"},
		"broken_option": {before: func(t *testing.T, s *stock) {
			role := types.New(types.KindRole, "web").(*typesv1.Role)
			role.Spec = &typesv1.RoleSpec{Options: &typesv1.RoleOptions{ClientIdleTimeout: "soon"}, Allow: &typesv1.RoleConditions{
				Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"web"}}},
			}}
			s.cache.Apply(types.Change{Revision: 4, Kind: types.KindRole, Name: "web", Resource: role})
		}, says: "access denied to root", code: "T1006W"},
		"login_locked": {before: func(t *testing.T, s *stock) {
			s.put(t, types.NewLock(&typesv1.LockTarget{Login: "root"}, "not now", "admin", time.Now(), time.Time{}))
		}, says: `lock targeting Login:"root" is in force: not now`, code: "T1006W"},
		"not_alone": {before: func(_ *testing.T, s *stock) {
			role := types.New(types.KindRole, "web").(*typesv1.Role)
			role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
				Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"web"}}},
				RequireSessionJoin: []*typesv1.SessionRequirePolicy{{Name: "watched", Filter: "true", Kinds: []string{"ssh"}, Modes: []string{"moderator"}, Count: 1}},
			}}
			s.cache.Apply(types.Change{Revision: 4, Kind: types.KindRole, Name: "web", Resource: role})
		}, says: "your roles ask for others to be in your sessions", code: "T3007W"},
		"role_gone_at_auth": {before: func(t *testing.T, s *stock) {
			if err := s.auth.store.Tx().Delete(types.KindRole, "web", "").Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, says: "your roles do not allow it", code: "T1006W"},
		"server_refuses": {before: func(_ *testing.T, s *stock) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refuse = true
		}, says: `its sshd does not let "root" in`, code: "T1006W"},
		"nobody_answers": {before: func(t *testing.T, s *stock) { s.addServer(t, "127.0.0.1:1") }, says: "connect to the node at", code: "T1006W"},
		"metadata":       {before: func(t *testing.T, s *stock) { s.addServer(t, "169.254.169.254:22") }, says: "not one that a Proxy connects to", code: "T1006W"},
		"auth_away_later": {before: func(t *testing.T, s *stock) {
			_ = s.mustConnect(t).Close() // it has a certificate to answer with
			s.auth.setFail(fault.Unreachable("gone"))
		}, says: "new logins to OpenSSH servers need the Auth Service", code: "T1006W"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t, nil)
			if tt.before != nil {
				tt.before(t, s)
			}
			login := tt.login
			if login == "" {
				login = "root"
			}
			c, text, err := s.connect(t, login)
			if c != nil || err == nil || !strings.Contains(text, tt.says) || strings.Count(text, "\n") > 1 {
				t.Errorf("connect = %v, told %q, want %q", err, text, tt.says)
			}
			s.waitEvent(t, tt.code)
		})
	}
}

// Who has no certificate of the cluster for SSH learns nothing, and nothing is opened.
func TestOpenSSHStrangers(t *testing.T) {
	s := newStock(t, nil)
	cert, _ := s.visitor(t)
	key, plain := newSSHKey(t)
	wire := must(s.signer.OpenSSHHost(ca.OpenSSHHostRequest{ID: s.id, Name: "root", SSHKey: plain.PublicKey().Marshal(), TTL: time.Hour}))
	for name, signer := range map[string]ssh.Signer{"plain_key": plain, "host_certificate": certified(t, key, wire)} {
		conn, resp := s.dialUser(t, cert, dialReq(s.id))
		if resp.GetError() != "" {
			t.Fatal(resp.GetError())
		}
		_, _, _, err := ssh.NewClientConn(conn, "", &ssh.ClientConfig{
			User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: s.trust.HostKeyCallback(types.RoleNode, s.id),
			HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
		})
		if err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shown) > 0 {
		t.Error("the Proxy logged in to the server for a stranger")
	}
}

// Without Auth the Proxy cannot answer for a server that it has no certificate for.
func TestOpenSSHWithoutAuth(t *testing.T) {
	s := newStock(t, nil)
	s.auth.setFail(fault.Unreachable("gone"))
	cert, _ := s.visitor(t)
	_, resp := s.dialUser(t, cert, dialReq(stockName))
	if !strings.Contains(resp.GetError(), "need the Auth Service") {
		t.Errorf("told %q", resp.GetError())
	}
}

func TestOpenSSHLimits(t *testing.T) {
	s := newStock(t, nil)
	s.setRole(t, &typesv1.RoleOptions{MaxConnections: 1, MaxSessions: 1})
	c := s.mustConnect(t)
	if _, text, err := s.connect(t, "root"); err == nil || !strings.Contains(text, "you have 1 connections to db-8 already") {
		t.Errorf("a second connection: %v, told %q", err, text)
	}
	held, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "your roles allow 1 sessions") {
		t.Errorf("a second session: %v", err)
	}
	_ = held.Close()
	_ = c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, _, err := s.connect(t, "root"); err == nil {
			_ = c.Close()
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("after the first has ended: %v", err)
		}
	}
}

// A lock, the removal of the server and the loss of a role's rights end what goes on.
func TestOpenSSHEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*testing.T, *stock)
		says   string
	}{
		"lock": {func(t *testing.T, s *stock) {
			s.put(t, types.NewLock(&typesv1.LockTarget{User: "alice"}, "stolen", "admin", time.Now(), time.Time{}))
			if err := s.proxy.EnforceLocks(t.Context()); err != nil {
				t.Errorf("EnforceLocks = %v", err)
			}
		}, `lock targeting User:"alice" is in force: stolen`},
		"removed": {func(_ *testing.T, s *stock) {
			s.cache.Apply(types.Change{Revision: 5, Kind: types.KindNode, Name: s.id})
		}, "the server was removed from the cluster"},
		"idle": {func(t *testing.T, s *stock) {
			s.setRole(t, &typesv1.RoleOptions{ClientIdleTimeout: "10ms"})
		}, "nothing was done on it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t, nil)
			c := s.mustConnect(t)
			sess, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			stderr, _ := sess.StderrPipe()
			if err := sess.Start("sleep"); err != nil {
				t.Fatal(err)
			}
			tt.change(t, s)
			text, _ := io.ReadAll(stderr)
			if !strings.Contains(string(text), tt.says) {
				t.Errorf("told %q, want %q", text, tt.says)
			}
			if err := c.Wait(); err == nil {
				t.Error("the connection goes on")
			}
			if e := s.waitEvent(t, "T3006I"); e["server_id"] != s.id || !strings.Contains(e["reason"].(string), tt.says) {
				t.Errorf("recorded %v", e)
			}
			s.waitEvent(t, "T2004I")
		})
	}
}

// A node with an agent is never answered for.
func TestOpenSSHIsNotForAgents(t *testing.T) {
	s := newStock(t, nil)
	id := s.agent(t, "agent-1", "web", nil)
	cert, _ := s.visitor(t)
	conn, resp := s.dialUser(t, cert, &proxyv1.DialRequest{Host: id})
	if resp.GetError() != "" {
		t.Fatal(resp.GetError())
	}
	if _, err := conn.Write([]byte("as it is")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "as it is" {
		t.Errorf("the agent's own bytes = %q, %v", got, err)
	}
	if _, err := s.auth.handler.SignProxy(t.Context(), &opensshv1.SignProxyRequest{ServerId: id}); err == nil {
		t.Error("Auth lets a Proxy answer for it")
	}
}

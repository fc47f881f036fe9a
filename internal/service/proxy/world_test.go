package proxy_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/mux"
	"teleport/internal/retry"
	"teleport/internal/rpc"
	"teleport/internal/service/proxy"
	"teleport/internal/state"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

const clusterName = "example.com"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is a cluster: authorities, an Auth Service with canned answers, a Proxy.
type world struct {
	cas    []*typesv1.CertAuthority
	signer *ca.Signer
	trust  *ca.Trust
	cache  *cache.Cache
	auth   *fakeAuth
	addr   string // of the Proxy
	holder *state.Holder
	stop   func()
	proxy  *proxy.Service

	mu     sync.Mutex
	events []*auditv1.Event
}

func (w *world) recorded() []*auditv1.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// newWorld starts a Proxy and what it needs.
func newWorld(t testing.TB, change ...func(*proxy.Config)) *world {
	t.Helper()
	w := &world{cache: cache.New()}
	ks := keystore.Software()
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		w.cas = append(w.cas, must(ca.Generate(ks, clusterName, typ, time.Now())))
	}
	w.signer = must(ca.NewSigner(ks, w.cas, time.Now))
	w.trust = must(ca.NewTrust(w.cas))
	w.holder = w.join(t, types.RoleProxy)
	w.fillCache()
	w.auth = startAuth(t, w)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	w.addr = ln.Addr().String()
	conn := must(rpc.Dial(rpc.DialConfig{Addr: w.auth.addr, TLS: ca.ClientTLS(
		func() *tls.Certificate { return w.holder.Certificate(types.RoleProxy) }, w.holder.Trust, types.RoleAuth)}))
	t.Cleanup(func() { _ = conn.Close() })
	cfg := proxy.Config{
		Listener: ln, Holder: w.holder, Cache: w.cache, AuthAddr: w.auth.addr, AuthConn: conn, PublicAddr: "proxy.example.com:443",
		Registerer: prometheus.NewRegistry(), Drain: -1,
		Emit: func(_ context.Context, events ...*auditv1.Event) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, events...)
			return nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = s
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	<-ready
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run() = %v, want nil when ctx ends", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(w.stop)
	return w
}

// fillCache has a role that sees nodes of env=web, and the cluster's name.
func (w *world) fillCache() {
	add := func(r types.Resource) {
		w.cache.Apply(types.Change{Revision: 1, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: r})
	}
	name := types.New(types.KindClusterName, types.KindClusterName).(*typesv1.ClusterName)
	name.Spec = &typesv1.ClusterNameSpec{ClusterName: clusterName}
	add(name)
	role := types.New(types.KindRole, "web").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
		Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"web"}}},
	}}
	add(role)
	w.cache.Synced(1)
}

// addInstance says that a host is of the cluster, or that it is not any more.
func (w *world) addInstance(id string, there bool) {
	c := types.Change{Revision: 2, Kind: types.KindInstance, Name: id}
	if there {
		c.Resource = &typesv1.Instance{Kind: types.KindInstance}
	}
	w.cache.Apply(c)
}

// addNode announces a node.
func (w *world) addNode(id, hostname, env, addr string) {
	n := types.New(types.KindNode, id).(*typesv1.Server)
	n.Metadata.Labels = map[string]string{"env": env}
	n.Spec = &typesv1.ServerSpec{Hostname: hostname, UseTunnel: addr == "", Addr: addr}
	w.cache.Apply(types.Change{Revision: 2, Kind: types.KindNode, Name: id, Resource: n})
}

// join makes the identity of a process with the roles.
func (w *world) join(t testing.TB, roles ...types.SystemRole) *state.Holder {
	t.Helper()
	id := uuid.NewString()
	tlsKey, sshKey := must(keys.Generate(keys.ECDSAP256)), must(keys.Generate(keys.Ed25519))
	sshPublic := must(ssh.NewPublicKey(sshKey.Public())).Marshal()
	issue := func(service types.SystemRole) *joinv1.ServiceCertificates {
		der, wire, err := w.signer.Host(ca.HostRequest{
			Identity: identity.Identity{Cluster: clusterName, Host: &identity.Host{ID: id, Name: "host-1", Roles: roles, Service: service}},
			TLSKey:   must(keys.PublicDER(tlsKey.Public())), SSHKey: sshPublic,
		})
		if err != nil {
			t.Fatal(err)
		}
		return &joinv1.ServiceCertificates{Tls: der, Ssh: wire}
	}
	process := issue("")
	grant := &joinv1.Grant{
		HostId: id, ClusterName: clusterName,
		Certificates: &joinv1.HostCertificates{Tls: process.GetTls(), Ssh: process.GetSsh(), Services: map[string]*joinv1.ServiceCertificates{}},
		Authorities:  []*typesv1.CertAuthority{ca.Public(w.cas[0]), ca.Public(w.cas[1])},
	}
	for _, r := range roles {
		grant.Roles = append(grant.Roles, string(r))
		grant.Certificates.Services[string(r)] = issue(r)
	}
	return must(state.NewHolder(&state.State{
		Cluster: clusterName, HostID: id, Hostname: "host-1", Roles: roles,
		TLSKey: must(keys.MarshalPrivate(tlsKey)), SSHKey: must(keys.MarshalPrivate(sshKey)), Grant: must(proto.Marshal(grant)),
	}))
}

// user issues the certificate of a user with the roles.
func (w *world) user(t testing.TB, roles ...string) *tls.Certificate {
	t.Helper()
	key := must(keys.Generate(keys.ECDSAP256))
	der, _, err := w.signer.User(ca.UserRequest{
		Identity: identity.Identity{Cluster: clusterName, User: &identity.User{Name: "alice", Roles: roles, Logins: []string{"root"}}},
		TLSKey:   must(keys.PublicDER(key.Public())), TTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.PrivateKey(key)}
}

// agent starts an agent behind a tunnel, whose node echoes, and returns its id.
func (w *world) agent(t testing.TB, hostname, env string, seen chan<- string) string {
	t.Helper()
	h := w.join(t, types.RoleNode)
	w.tunnel(t, h, func(_ context.Context, conn net.Conn, req tunnel.Request) {
		if seen != nil {
			seen <- req.ClientAddr
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	})
	w.addNode(h.HostID(), hostname, env, "")
	return h.HostID()
}

// tunnel keeps the tunnel of an agent until the test ends, or until what it returns is
// called.
func (w *world) tunnel(t testing.TB, h *state.Holder, handle func(context.Context, net.Conn, tunnel.Request)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	up, done := make(chan bool, 100), make(chan struct{})
	go func() {
		defer close(done)
		_ = tunnel.RunAgent(ctx, tunnel.AgentConfig{
			Addr: w.addr, TLS: ca.ClientTLS(nil, h.Trust, types.RoleProxy),
			Signer:    func() ssh.Signer { return h.SSHSigner("") },
			HostKey:   func() ssh.HostKeyCallback { return h.Trust().AnyHostKeyCallback(types.RoleProxy) },
			Handle:    handle,
			Reconnect: retry.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond},
		}, func(connected bool) { up <- connected })
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	if !<-up {
		t.Fatal("agent not connected")
	}
	return stop
}

// takesTunnel reports whether the Proxy takes a tunnel of the host.
func (w *world) takesTunnel(t testing.TB, h *state.Holder) bool {
	t.Helper()
	conn := w.dialTLS(t, nil, mux.ALPNTunnel)
	sc, chans, reqs, err := ssh.NewClientConn(conn, w.addr, &ssh.ClientConfig{
		User: h.HostID(), Auth: []ssh.AuthMethod{ssh.PublicKeys(h.SSHSigner(""))},
		HostKeyCallback: h.Trust().AnyHostKeyCallback(types.RoleProxy), HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sc.Close()
	go ssh.DiscardRequests(reqs)
	go func() {
		for c := range chans {
			_ = c.Reject(ssh.Prohibited, "")
		}
	}()
	_, _, err = sc.SendRequest("are you there?", true, nil)
	return err == nil
}

// dialUser asks the Proxy for a host.
func (w *world) dialUser(t testing.TB, cert *tls.Certificate, req *proxyv1.DialRequest) (*tls.Conn, *proxyv1.DialResponse) {
	t.Helper()
	conn := w.dialTLS(t, cert, mux.ALPNProxySSH)
	if err := rpc.WriteFrame(conn, req); err != nil {
		t.Fatal(err)
	}
	resp := new(proxyv1.DialResponse)
	if err := rpc.ReadFrame(conn, resp, rpc.MaxFrame); err != nil {
		t.Fatal(err)
	}
	return conn, resp
}

func (w *world) dialTLS(t testing.TB, cert *tls.Certificate, protos ...string) *tls.Conn {
	t.Helper()
	cfg := ca.ClientTLS(func() *tls.Certificate { return cert }, func() *ca.Trust { return w.trust }, types.RoleProxy)
	cfg.NextProtos = protos
	conn, err := tls.Dial("tcp", w.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// fakeAuth answers joins and logins and remembers who asked.
type fakeAuth struct {
	joinv1.UnimplementedJoinServiceServer
	loginv1.UnimplementedLoginServiceServer
	addr string

	mu      sync.Mutex
	callers []rpc.Caller
	answers int // of a join; 0 is one
}

func (a *fakeAuth) saw(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.callers = append(a.callers, rpc.CallerFrom(ctx))
}

func (a *fakeAuth) last() rpc.Caller {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.callers) == 0 {
		return rpc.Caller{}
	}
	return a.callers[len(a.callers)-1]
}

func (a *fakeAuth) Join(s grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	a.saw(s.Context())
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if req.GetInit().GetTokenId() == "bad" {
			return fault.New(fault.ErrDenied, "no such token").WithCode("token_unknown")
		}
		for range max(a.answers, 1) {
			if err := s.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Question{Question: &joinv1.Question{
				ClusterName: clusterName, Method: req.GetInit().GetTokenId(),
			}}}); err != nil {
				return err
			}
		}
	}
}

func (a *fakeAuth) Renew(ctx context.Context, _ *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
	a.saw(ctx)
	return &joinv1.RenewResponse{Grant: &joinv1.Grant{HostId: rpc.CallerFrom(ctx).Name()}}, nil
}

func (a *fakeAuth) Login(ctx context.Context, req *loginv1.LoginRequest) (*loginv1.LoginResponse, error) {
	a.saw(ctx)
	if req.GetPassword() != "right" {
		return nil, fault.Unauthenticated("wrong name, password or code")
	}
	return &loginv1.LoginResponse{Certificates: &loginv1.UserCertificates{User: req.GetUser()}}, nil
}

func (a *fakeAuth) GetInvitation(ctx context.Context, req *loginv1.GetInvitationRequest) (*loginv1.GetInvitationResponse, error) {
	a.saw(ctx)
	return &loginv1.GetInvitationResponse{User: req.GetToken()}, nil
}

func (a *fakeAuth) RedeemInvitation(ctx context.Context, req *loginv1.RedeemInvitationRequest) (*loginv1.RedeemInvitationResponse, error) {
	a.saw(ctx)
	return &loginv1.RedeemInvitationResponse{User: req.GetToken()}, nil
}

func startAuth(t testing.TB, w *world) *fakeAuth {
	t.Helper()
	h := w.join(t, types.RoleAuth)
	a := &fakeAuth{}
	s := rpc.NewServer(rpc.ServerConfig{
		TLS:       ca.ServerTLS(func() *tls.Certificate { return h.Certificate(types.RoleAuth) }, h.Trust, tls.VerifyClientCertIfGiven),
		Identify:  func(cs tls.ConnectionState) (*identity.Identity, error) { return w.trust.Identify(cs) },
		Authorize: func(context.Context, rpc.Caller, string) error { return nil },
		Log:       slog.New(slog.DiscardHandler),
	})
	joinv1.RegisterJoinServiceServer(s.Registrar(), a)
	loginv1.RegisterLoginServiceServer(s.Registrar(), a)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	a.addr = ln.Addr().String()
	ln = mux.RelayedListener(ln, mux.PurposeAuth, func(c *x509.Certificate) error {
		id, err := w.trust.VerifyTLS([]*x509.Certificate{c}, time.Now())
		if err == nil && !id.Host.Serves(types.RoleProxy) {
			return errors.New("not a Proxy")
		}
		return err
	}, time.Now)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	return a
}

// call opens the Proxy's gRPC port as a stranger that knows the pin.
func (w *world) call(t testing.TB) *grpc.ClientConn {
	t.Helper()
	cfg := ca.PinnedTLS(w.trust.Pins(), types.RoleProxy)
	cfg.NextProtos = []string{mux.ALPNProxyGRPC, "h2"}
	conn := must(rpc.Dial(rpc.DialConfig{Addr: w.addr, TLS: cfg}))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func nopEmit(context.Context, ...*auditv1.Event) error { return nil }

func dialReq(host string) *proxyv1.DialRequest { return &proxyv1.DialRequest{Host: host} }

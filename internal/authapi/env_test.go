package authapi_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	agentv1 "teleport/api/agent/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
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
	"teleport/internal/store"
	"teleport/internal/types"
)

const cluster = "example.com"

// env is the handlers behind a real server on a loopback address.
type env struct {
	t      testing.TB
	store  *store.Store
	signer *ca.Signer
	trust  *ca.Trust
	agents *authapi.AgentServer
	addr   string
	// seen answers SeenGeneration.
	seen func(identity.Host) error
}

func newEnv(t testing.TB) *env {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &env{t: t, seen: func(identity.Host) error { return nil }}
	b := memory.New()
	e.store = store.New(store.Config{Backend: b})
	e.store.SetCluster(cluster)
	tx := e.store.Tx()
	name := types.New(types.KindClusterName, types.KindClusterName).(*typesv1.ClusterName)
	name.Spec = &typesv1.ClusterNameSpec{ClusterName: cluster, ClusterId: "id"}
	tx.Create(name)
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		a, err := ca.Generate(keystore.Software(), cluster, typ, time.Now())
		check(t, err)
		cas = append(cas, a)
		tx.Create(a)
	}
	for _, r := range types.PresetRoles() {
		tx.Create(r)
	}
	check(t, tx.Commit(ctx))
	var err error
	e.signer, err = ca.NewSigner(keystore.Software(), cas, time.Now)
	check(t, err)
	e.trust, err = ca.NewTrust(cas)
	check(t, err)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	e.addr = ln.Addr().String()
	server := e.server()
	done := make(chan error, 2)
	go func() { done <- e.agents.Run(ctx) }()
	go func() { done <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("the server ended with %v", err)
			}
		}
		_ = b.Close()
	})
	<-e.agents.Ready()
	return e
}

func (e *env) config() authapi.Config {
	authorizer := authz.New(func(ctx context.Context, names []string) ([]*typesv1.Role, error) {
		var out []*typesv1.Role
		for _, n := range names {
			if r, err := store.Get[*typesv1.Role](ctx, e.store, types.KindRole, n); err == nil {
				out = append(out, r)
			}
		}
		return out, nil
	})
	return authapi.Config{Store: e.store, Authorizer: authorizer, Trust: func() *ca.Trust { return e.trust }, Cluster: func() string { return cluster }}
}

func (e *env) server() *rpc.Server {
	cfg := e.config()
	resources, err := authapi.NewResource(cfg)
	check(e.t, err)
	tokens, err := authapi.NewToken(cfg)
	check(e.t, err)
	status, err := authapi.NewStatus(cfg)
	check(e.t, err)
	events, err := authapi.NewAudit(cfg)
	check(e.t, err)
	e.agents, err = authapi.NewAgent(authapi.AgentConfig{Config: cfg, SeenGeneration: func(_ context.Context, h identity.Host) error { return e.seen(h) }})
	check(e.t, err)
	cert := e.host("auth-1", types.RoleAuth, types.RoleAuth)
	server := rpc.NewServer(rpc.ServerConfig{
		TLS:      ca.ServerTLS(func() *tls.Certificate { return cert }, func() *ca.Trust { return e.trust }, tls.VerifyClientCertIfGiven, "h2"),
		Identify: e.trust.Identify, Authorize: cfg.Authorizer.Authorize,
	})
	resourcev1.RegisterResourceServiceServer(server.Registrar(), resources)
	tokenv1.RegisterTokenServiceServer(server.Registrar(), tokens)
	statusv1.RegisterStatusServiceServer(server.Registrar(), status)
	authapi.RegisterAudit(server.Registrar(), events)
	agentv1.RegisterAgentServiceServer(server.Registrar(), e.agents)
	return server
}

// host makes the certificate of a process with the roles, for the service.
func (e *env) host(id string, service types.SystemRole, roles ...types.SystemRole) *tls.Certificate {
	e.t.Helper()
	key, der := newKey(e.t)
	cert, _, err := e.signer.Host(ca.HostRequest{
		Identity: identity.Identity{Cluster: cluster, Host: &identity.Host{ID: id, Name: "name-" + id, Roles: roles, Service: service, Generation: 1}},
		TLSKey:   der,
	})
	check(e.t, err)
	key.Certificate = [][]byte{cert}
	return key
}

// user makes the certificate of a user with the roles.
func (e *env) user(name string, roles ...string) *tls.Certificate {
	e.t.Helper()
	key, der := newKey(e.t)
	cert, _, err := e.signer.User(ca.UserRequest{
		Identity: identity.Identity{Cluster: cluster, User: &identity.User{Name: name, Roles: roles, Logins: []string{"root"}}},
		TLSKey:   der, TTL: time.Hour,
	})
	check(e.t, err)
	key.Certificate = [][]byte{cert}
	return key
}

func newKey(t testing.TB) (*tls.Certificate, []byte) {
	t.Helper()
	key, err := keys.Generate(keys.ECDSAP256)
	check(t, err)
	der, err := keys.PublicDER(key.Public())
	check(t, err)
	return &tls.Certificate{PrivateKey: key}, der
}

// dial connects with the certificate, nil for none.
func (e *env) dial(cert *tls.Certificate) *grpc.ClientConn {
	e.t.Helper()
	conf := ca.ClientTLS(func() *tls.Certificate { return cert }, func() *ca.Trust { return e.trust }, types.RoleAuth)
	conn, err := rpc.Dial(rpc.DialConfig{Addr: e.addr, TLS: conf})
	check(e.t, err)
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// admin is a user who may edit everything.
func (e *env) admin() *grpc.ClientConn { return e.dial(e.user("admin", "editor")) }

// put writes resources past the API.
func (e *env) put(rs ...types.Resource) {
	e.t.Helper()
	for _, r := range rs {
		check(e.t, types.Check(r))
		check(e.t, e.store.Tx().Upsert(r).Commit(e.t.Context()))
	}
}

// codes returns the codes of the audit events so far, oldest first.
func (e *env) codes() []string {
	e.t.Helper()
	events, _, err := e.store.SearchEvents(e.t.Context(), store.EventQuery{Ascending: true})
	check(e.t, err)
	var out []string
	for _, ev := range events {
		out = append(out, ev.GetCode())
	}
	return out
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails unless err is of the kind and its text has the part.
func want(t *testing.T, err, kind error, part string) {
	t.Helper()
	if !errors.Is(err, kind) || !contains(err.Error(), part) {
		t.Errorf("error = %v (kind %v), want %v with %q", err, fault.Kind(err), kind, part)
	}
}

func packed(t testing.TB, r types.Resource) *anypb.Any {
	t.Helper()
	a, err := types.ToAny(r)
	check(t, err)
	return a
}

func unpacked(t testing.TB, a *anypb.Any) types.Resource {
	t.Helper()
	r, err := types.FromAny(a)
	check(t, err)
	return r
}

func newUser(name string, roles ...string) *typesv1.User {
	u := types.New(types.KindUser, name).(*typesv1.User)
	u.Spec = &typesv1.UserSpec{Roles: roles}
	return u
}

func newRole(name string) *typesv1.Role { return types.New(types.KindRole, name).(*typesv1.Role) }

func newNode(id string, labels map[string]string) *typesv1.Server {
	s := types.New(types.KindNode, id).(*typesv1.Server)
	s.Metadata.Labels = labels
	s.Spec = &typesv1.ServerSpec{Hostname: "host-" + id}
	return s
}

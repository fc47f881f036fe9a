package auth_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/backend/sqlite"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/control"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/service/auth"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

// hostID is that of an Auth process that is started again.
const hostID = "0b6f1c0e-95a5-4c0f-9a83-3f0f6a4cf1d2"

// cluster is a running Auth Service.
type cluster struct {
	*auth.Service
	dir, addr string
	registry  *prometheus.Registry
	local     *grpc.ClientConn
	cancel    context.CancelFunc
	done      chan error
}

// start runs an Auth Service in dir over b.
func start(t *testing.T, dir string, b backend.Backend, edits ...func(*auth.Config)) *cluster {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir, addr: ln.Addr().String(), registry: prometheus.NewRegistry(), done: make(chan error, 1)}
	cfg := auth.Config{
		JoinMethods: all.Methods(),
		ClusterName: "main.example.com", DataDir: dir, HostID: hostID, Hostname: "auth-1", Backend: b, Listener: ln, LocalSocket: filepath.Join(dir, "auth.sock"), Registerer: c.registry,
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	if c.Service, err = auth.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	ready := make(chan struct{})
	go func() { c.done <- c.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-c.done:
		t.Fatalf("Run = %v before it was ready", err)
	}
	if c.local, err = rpc.DialLocal(cfg.LocalSocket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop(t) })
	return c
}

func (c *cluster) stop(t *testing.T) {
	t.Helper()
	if c.cancel == nil {
		return
	}
	_ = c.local.Close()
	c.cancel()
	c.cancel = nil
	if err := <-c.done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

// token makes a join token as the local administrator.
func (c *cluster) token(t *testing.T, roles ...string) string {
	t.Helper()
	resp, err := tokenv1.NewTokenServiceClient(c.local).CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: roles})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSecret()
}

// joinAs joins a machine with a token.
func (c *cluster) joinAs(t *testing.T, secret string, roles ...types.SystemRole) (*state.Holder, error) {
	t.Helper()
	st, err := join.Join(t.Context(), join.Params{
		Addr: c.addr, Direct: true, Token: secret, Roles: roles, Hostname: "web-1", Pins: c.Trust().Pins(), Methods: all.Methods(),
	})
	if err != nil {
		return nil, err
	}
	return state.NewHolder(st)
}

// dial connects as a joined process.
func (c *cluster) dial(t *testing.T, h *state.Holder) *rpc.Conn {
	t.Helper()
	conf := ca.ClientTLS(func() *tls.Certificate { return h.Certificate("") }, h.Trust, types.RoleAuth)
	conf.NextProtos = []string{"teleport-auth@main.example.com", "h2"}
	conn, err := rpc.NewConn(rpc.DialConfig{Addr: c.addr, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestFirstStart(t *testing.T) {
	c := start(t, t.TempDir(), memory.New())
	resp, err := statusv1.NewStatusServiceClient(c.local).GetStatus(t.Context(), &statusv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetClusterName() != "main.example.com" || len(resp.GetCaPins()) != 1 {
		t.Errorf("status = %v", resp)
	}
	var typs []string
	for _, a := range resp.GetAuthorities() {
		if a.GetLastRotated() != nil {
			t.Errorf("authority %s was rotated at %v, want never", a.GetType(), a.GetLastRotated())
		}
		typs = append(typs, a.GetType())
	}
	if got := strings.Join(typs, " "); got != "host user db db_client openssh jwt" {
		t.Errorf("authorities = %q", got)
	}
	if len(resp.GetAuthAddrs()) != 1 || resp.GetAuthAddrs()[0] != c.addr {
		t.Errorf("auth addresses = %v, want %s", resp.GetAuthAddrs(), c.addr)
	}
	list, err := resourcev1.NewResourceServiceClient(c.local).ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "roles"})
	if err != nil || len(list.GetResources()) != 3 {
		t.Errorf("roles = %v, %v, want the three presets", list, err)
	}
	list, err = resourcev1.NewResourceServiceClient(c.local).ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "cert_authority"})
	if err != nil || len(list.GetResources()) != 6 {
		t.Fatalf("authorities = %v, %v, want six", list, err)
	}
	for _, packed := range list.GetResources() {
		if strings.Contains(string(packed.GetValue()), "PRIVATE KEY") {
			t.Error("a private key of an authority left the Auth Service")
		}
	}
}

func TestRestartKeepsTheCluster(t *testing.T) {
	dir := t.TempDir()
	open := func() backend.Backend {
		b, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "sqlite.db")})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c := start(t, dir, open())
	pins, host := c.Trust().Pins(), c.HostID()
	secret := c.token(t, "node")
	c.stop(t)
	c = start(t, dir, open(), func(cfg *auth.Config) { cfg.ClusterName = "" })
	if !slices.Equal(pins, c.Trust().Pins()) || c.HostID() != host || c.ClusterName() != "main.example.com" {
		t.Error("the cluster is another one after a restart")
	}
	if _, err := c.joinAs(t, secret, types.RoleNode); err != nil {
		t.Errorf("join with a token of before = %v", err)
	}
	c.stop(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	b := open()
	defer func() { _ = b.Close() }()
	_, err = auth.Open(t.Context(), auth.Config{ClusterName: "other", DataDir: dir, HostID: hostID, Hostname: "auth-1", Backend: b, Listener: ln})
	if !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "cannot be renamed") {
		t.Errorf("Open under another name = %v, want ErrInvalid", err)
	}
}

// TestClusterOfAnOlderVersion: what it has not is made at the next start; what somebody
// changed stays.
func TestClusterOfAnOlderVersion(t *testing.T) {
	b := memory.New()
	c := start(t, t.TempDir(), &unclosed{b})
	ctx := t.Context()
	tx := c.Store().Tx()
	for _, typ := range []string{ca.TypeDB, ca.TypeDBClient, ca.TypeJWT} {
		tx.Delete(types.KindCertAuthority, typ, "")
	}
	role := func(name string) *typesv1.Role {
		t.Helper()
		r, err := store.Get[*typesv1.Role](ctx, c.Store(), types.KindRole, name)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	access, auditor, editor := role("access"), role("auditor"), role("editor")
	allow := access.GetSpec().GetAllow()
	allow.AppLabels, allow.DbLabels, allow.DbUsers, allow.DbNames, allow.DbRoles = nil, nil, nil, nil, nil
	auditor.Spec.Allow.Rules[1].Resources = []string{types.KindNode, types.KindLock, types.KindClusterAlert, types.KindSessionTracker}
	editor.Spec.Allow.Rules[0].Resources = []string{types.KindUser}
	if err := tx.Update(access).Update(auditor).Update(editor).Commit(ctx); err != nil {
		t.Fatal(err)
	}
	c.stop(t)
	c = start(t, t.TempDir(), &unclosed{b})
	if len(c.Trust().DatabaseCertificates()) != 1 || len(c.Trust().DatabaseClientCertificates()) != 1 {
		t.Error("the authorities of databases were not made")
	}
	for _, r := range types.PresetRoles() {
		name := r.GetMetadata().GetName()
		if same := proto.Equal(role(name).GetSpec(), r.GetSpec()); same != (name != "editor") {
			t.Errorf("role %s is the preset: %t", name, same)
		}
	}
	events, _, err := c.Store().SearchEvents(ctx, store.EventQuery{Types: []string{audit.RoleUpdate.Type}})
	if err != nil || len(events) != 2 {
		t.Errorf("events %v, %v; want one for each role that was changed", events, err)
	}
	c.stop(t)
	_ = b.Close()
}

// unclosed is a backend that outlives the service.
type unclosed struct{ backend.Backend }

func (*unclosed) Close() error { return nil }

func TestRaceAtFirstStart(t *testing.T) {
	b := memory.New()
	defer func() { _ = b.Close() }()
	var wg sync.WaitGroup
	pins := make([]string, 4)
	for i := range pins {
		dir := t.TempDir()
		wg.Go(func() {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = ln.Close() }()
			s, err := auth.Open(t.Context(), auth.Config{ClusterName: "main", DataDir: dir, HostID: uuid.NewString(), Hostname: "auth-1", Backend: b, Listener: ln})
			if err != nil {
				t.Error(err)
				return
			}
			pins[i] = s.Trust().Pins()[0]
		})
	}
	wg.Wait()
	for _, p := range pins {
		if p != pins[0] {
			t.Errorf("pins = %v, want one cluster", pins)
		}
	}
}

func TestStaticTokens(t *testing.T) {
	dir := t.TempDir()
	open := func() backend.Backend {
		b, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "sqlite.db")})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	static := func(values ...string) func(*auth.Config) {
		return func(cfg *auth.Config) {
			for _, v := range values {
				cfg.StaticTokens = append(cfg.StaticTokens, auth.StaticToken{Roles: []types.SystemRole{types.RoleProxy, types.RoleNode}, Value: keys.Secret(v)})
			}
		}
	}
	ids := func(c *cluster) []string {
		resp, err := tokenv1.NewTokenServiceClient(c.local).ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, tok := range resp.GetTokens() {
			if !tok.GetStatic() || tok.GetExpires() != nil || !slices.Equal(tok.GetRoles(), []string{"Node", "Proxy"}) {
				t.Errorf("token = %v, want a static one for Node and Proxy that never expires", tok)
			}
			out = append(out, tok.GetId())
		}
		slices.Sort(out)
		return out
	}
	c := start(t, dir, open(), static("first-static-token", "second-static-token"))
	want := []string{keys.TokenID("first-static-token"), keys.TokenID("second-static-token")}
	slices.Sort(want)
	if got := ids(c); !slices.Equal(got, want) {
		t.Errorf("tokens = %v, want %v", got, want)
	}
	_, err := tokenv1.NewTokenServiceClient(c.local).DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: want[0]})
	if !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "configuration file") {
		t.Errorf("delete of a static token = %v, want ErrInvalid that says where it comes from", err)
	}
	if _, err := c.joinAs(t, "first-static-token", types.RoleNode); err != nil {
		t.Errorf("join with a static token = %v", err)
	}
	c.stop(t)
	c = start(t, dir, open(), static("second-static-token"))
	if got := ids(c); !slices.Equal(got, []string{keys.TokenID("second-static-token")}) {
		t.Errorf("tokens after one was taken out of the file = %v", got)
	}
	if _, err := c.joinAs(t, "first-static-token", types.RoleNode); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("join with a static token that was taken out = %v, want ErrDenied", err)
	}
}

func TestJoinedNodeIsListedAndLeaves(t *testing.T) {
	c := start(t, t.TempDir(), memory.New())
	h, err := c.joinAs(t, c.token(t, "node"), types.RoleNode)
	if err != nil {
		t.Fatal(err)
	}
	server := types.New(types.KindNode, h.HostID()).(*typesv1.Server)
	server.Metadata.Labels = map[string]string{"env": "test"}
	server.Spec = &typesv1.ServerSpec{Hostname: "web-1", UseTunnel: true, Version: "1"}
	conn := c.dial(t, h)
	copied := cache.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	emitter := control.NewEmitter(conn, nil)
	go func() {
		done <- control.Run(ctx, control.Config{
			Conn: conn, Cache: copied, Emitter: emitter, Servers: func() []types.Resource { return []types.Resource{server} },
		})
	}()
	if err := copied.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(copied.Roles([]string{"access", "editor", "auditor"})) != 3 || len(copied.Authorities()) != 6 || copied.ClusterName() == nil {
		t.Error("the node does not have roles, authorities and cluster name")
	}
	for _, a := range copied.Authorities() {
		for _, k := range a.GetSpec().GetActiveKeys().GetTls() {
			if len(k.GetPrivateKey()) > 0 {
				t.Error("a node was sent a private key")
			}
		}
	}
	nodes := func() int {
		list, err := resourcev1.NewResourceServiceClient(c.local).ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "node"})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.GetResources())
	}
	eventually(t, "the node is listed", func() bool { return nodes() == 1 })
	err = emitter.Emit(t.Context(), audit.New(audit.SessionStart, map[string]any{"user": "alice", "sid": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the node is gone", func() bool { return nodes() == 0 })
	found, err := auditv1.NewAuditServiceClient(c.local).SearchEvents(t.Context(), &auditv1.SearchEventsRequest{Types: []string{"session.start"}})
	if err != nil || len(found.GetEvents()) != 1 || found.GetEvents()[0].GetFields().GetFields()["server_id"].GetStringValue() != h.HostID() {
		t.Errorf("search = %v, %v, want the event with the id of its sender", found, err)
	}
}

func TestAuditLines(t *testing.T) {
	dir := t.TempDir()
	open := func() backend.Backend {
		b, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "sqlite.db")})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	c := start(t, dir, b)
	logDir := filepath.Join(dir, "log", c.HostID())
	stored := func(c *cluster) []string {
		var uids []string
		req := &auditv1.SearchEventsRequest{Limit: 1000}
		for {
			resp, err := auditv1.NewAuditServiceClient(c.local).SearchEvents(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range resp.GetEvents() {
				uids = append(uids, e.GetUid())
			}
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				slices.Sort(uids)
				return uids
			}
		}
	}
	for range 3 {
		for range 20 {
			c.token(t, "node")
		}
		eventually(t, "all events are lines, each once", func() bool { return slices.Equal(lines(t, logDir), stored(c)) })
		c.stop(t)
		// What is stored while nobody writes lines is written at the next start.
		b := open()
		away, err := auth.Open(t.Context(), auth.Config{DataDir: t.TempDir(), HostID: uuid.NewString(), Hostname: "auth-1", Backend: b, Listener: listen(t)})
		if err != nil {
			t.Fatal(err)
		}
		late := audit.New(audit.UserLogin, map[string]any{"user": "late"})
		if err := away.Store().Emit(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		c = start(t, dir, open())
		eventually(t, "what was missed is caught up", func() bool { return slices.Equal(lines(t, logDir), stored(c)) })
	}
	if _, err := os.Stat(filepath.Join(logDir, "events.log")); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	c := start(t, t.TempDir(), memory.New())
	if _, err := c.joinAs(t, c.token(t, "node"), types.RoleNode); err != nil {
		t.Fatal(err)
	}
	if _, err := c.joinAs(t, "no-such-token-exists", types.RoleNode); !errors.Is(err, fault.ErrDenied) {
		t.Fatalf("join = %v, want ErrDenied", err)
	}
	eventually(t, "joins are counted", func() bool {
		families, err := c.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "teleport_auth_joins_total" {
					got = append(got, fmt.Sprintf("%s %g", m.GetLabel()[0].GetValue(), m.GetCounter().GetValue()))
				}
			}
		}
		return slices.Equal(got, []string{"admitted 1", "refused 1"})
	})
}

func TestNewAuthoritiesAreTakenOver(t *testing.T) {
	c := start(t, t.TempDir(), memory.New())
	before := c.Trust().Pins()[0]
	fresh, err := ca.Generate(keystore.Software(), c.ClusterName(), ca.TypeHost, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := store.Get[*typesv1.CertAuthority](t.Context(), c.Store(), types.KindCertAuthority, ca.TypeHost)
	if err != nil {
		t.Fatal(err)
	}
	// As a rotation by another Auth Service does: the new keys sign, both are trusted.
	fresh.Spec.AdditionalTrustedKeys = old.GetSpec().GetActiveKeys()
	if err := c.Store().Tx().Upsert(fresh).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both pins are known", func() bool { return len(c.Trust().Pins()) == 2 })
	newPins := slices.DeleteFunc(c.Trust().Pins(), func(p string) bool { return p == before })
	eventually(t, "the server shows a certificate of the new authority", func() bool {
		conn, err := tls.Dial("tcp", c.addr, ca.PinnedTLS(newPins, types.RoleAuth))
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

func TestAnonymousMayOnlyJoinAndLogIn(t *testing.T) {
	c := start(t, t.TempDir(), memory.New())
	conn, err := rpc.Dial(rpc.DialConfig{Addr: c.addr, TLS: ca.PinnedTLS(c.Trust().Pins(), types.RoleAuth)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = tokenv1.NewTokenServiceClient(conn).ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
	if !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("ListTokens of nobody = %v, want ErrUnauthenticated", err)
	}
	wrong := "sha256:" + strings.Repeat("0", 64)
	conn, err = rpc.Dial(rpc.DialConfig{Addr: c.addr, TLS: ca.PinnedTLS([]string{wrong}, types.RoleAuth)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = tokenv1.NewTokenServiceClient(conn).ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
	if !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("call with a wrong pin = %v, want ErrUnreachable", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// lines returns the uids in the audit log files, sorted.
func lines(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "20*.log"))
	if err != nil {
		t.Fatal(err)
	}
	var uids []string
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			e, err := audit.ParseJSON(s.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			uids = append(uids, e.GetUid())
		}
		_ = f.Close()
	}
	slices.Sort(uids)
	return uids
}

// eventually waits for what other goroutines do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

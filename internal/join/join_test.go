package join_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

const clusterName = "test.example.com"

// fixture is an Auth end with a real TLS listener.
type fixture struct {
	t      testing.TB
	store  *store.Store
	server *join.Server
	trust  *ca.Trust
	signer *ca.Signer
	ks     keystore.Keystore
	cas    []*typesv1.CertAuthority
	addr   string
	now    atomic.Pointer[time.Time]
}

func (f *fixture) clock() time.Time { return *f.now.Load() }

func (f *fixture) setClock(at time.Time) { f.now.Store(&at) }

// setAuthorities makes signer and trust those of the authorities.
func (f *fixture) setAuthorities() {
	f.t.Helper()
	var err error
	f.signer, err = ca.NewSigner(f.ks, f.cas, time.Now)
	check(f.t, err)
	f.trust, err = ca.NewTrust(f.cas)
	check(f.t, err)
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureWith(t, all.Methods())
}

func newFixtureWith(t testing.TB, methods []method.Method) *fixture {
	t.Helper()
	f := &fixture{t: t}
	f.setClock(time.Now())
	f.store = store.New(store.Config{Backend: memory.New()})
	f.store.SetCluster(clusterName)
	ks := keystore.Software()
	f.ks = ks
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		authority, err := ca.Generate(ks, clusterName, typ, time.Now())
		check(t, err)
		f.cas = append(f.cas, authority)
	}
	f.setAuthorities()
	f.server = join.NewServer(join.ServerConfig{
		Store: f.store, Now: f.clock, Methods: methods,
		Signer:  func() *ca.Signer { return f.signer },
		Trust:   func() *ca.Trust { return f.trust },
		Cluster: func() string { return clusterName },
	})
	holder := f.localIdentity(types.RoleAuth)
	srv := rpc.NewServer(rpc.ServerConfig{
		TLS:       ca.ServerTLS(func() *tls.Certificate { return holder.Certificate(types.RoleAuth) }, func() *ca.Trust { return f.trust }, tls.VerifyClientCertIfGiven, "h2"),
		Identify:  func(cs tls.ConnectionState) (*identity.Identity, error) { return f.trust.Identify(cs) },
		Authorize: func(context.Context, rpc.Caller, string) error { return nil },
	})
	joinv1.RegisterJoinServiceServer(srv.Registrar(), f.server)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ctx, ln)
	}()
	t.Cleanup(func() { cancel(); <-done })
	f.addr = ln.Addr().String()
	return f
}

func (f *fixture) localIdentity(roles ...types.SystemRole) *state.Holder {
	f.t.Helper()
	pair, err := join.NewKeyPair()
	check(f.t, err)
	grant, err := f.server.IssueLocal(context.Background(), join.LocalRequest{
		Hostname: "auth-1", Roles: roles, TLSKey: pair.TLSPublic, SSHKey: pair.SSHPublic, Principals: []string{"localhost", "127.0.0.1"},
	})
	check(f.t, err)
	st, err := join.NewState(grant, pair, "auth-1", nil, "")
	check(f.t, err)
	holder, err := state.NewHolder(st)
	check(f.t, err)
	return holder
}

const secret = "00112233445566778899aabbccddeeff"

// token stores a token for the secret, changed by the edits.
func (f *fixture) token(secret string, edits ...func(*typesv1.Token)) {
	f.t.Helper()
	key := keys.DeriveToken(secret)
	tok := types.New(types.KindToken, key.ID).(*typesv1.Token)
	tok.Metadata.Expires = timestamppb.New(f.clock().Add(time.Hour))
	tok.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "token"}
	tok.Status = &typesv1.TokenStatus{Verifier: key.Private.Public().(ed25519.PublicKey)}
	for _, edit := range edits {
		edit(tok)
	}
	check(f.t, f.store.Tx().Create(tok).Commit(context.Background()))
}

// params are those of a machine that does everything right.
func (f *fixture) params(edits ...func(*join.Params)) join.Params {
	p := join.Params{
		Addr: f.addr, Direct: true, Token: secret, Roles: []types.SystemRole{types.RoleNode},
		Hostname: "node-1", Pins: f.trust.Pins(), Methods: all.Methods(),
	}
	for _, edit := range edits {
		edit(&p)
	}
	return p
}

func (f *fixture) events(kind audit.Kind) []*auditv1.Event {
	f.t.Helper()
	events, _, err := f.store.SearchEvents(context.Background(), store.EventQuery{Types: []string{kind.Type}})
	check(f.t, err)
	var out []*auditv1.Event
	for _, e := range events {
		if e.GetCode() == kind.Code {
			out = append(out, e)
		}
	}
	return out
}

func TestJoin(t *testing.T) {
	f := newFixture(t)
	f.token(secret, func(tok *typesv1.Token) { tok.Spec.Labels = map[string]string{"team": "db"} })
	st, err := join.Join(context.Background(), f.params())
	check(t, err)
	holder, err := state.NewHolder(st)
	check(t, err)
	id, err := f.trust.VerifyTLS([]*x509.Certificate{holder.Certificate("").Leaf}, time.Now())
	check(t, err)
	if id.Host.ID != st.HostID || !id.Host.Has(types.RoleNode) || id.Host.Service != "" || id.Host.Generation != 1 {
		t.Errorf("process certificate says %+v", id.Host)
	}
	if holder.Labels()["team"] != "db" {
		t.Errorf("labels = %v, want the token's", holder.Labels())
	}
	if c := holder.Certificate(types.RoleNode); c == nil {
		t.Error("no certificate for the Node service")
	}
	if c := holder.Certificate(types.RoleProxy); c != nil {
		t.Error("a certificate for a service that was not asked for")
	}
	if _, err := f.trust.VerifySSHHost(holder.SSHSigner(types.RoleNode).PublicKey(), "node-1."+clusterName, time.Now()); err != nil {
		t.Errorf("SSH host certificate: %v", err)
	}
	instance, err := store.Get[*typesv1.Instance](context.Background(), f.store, types.KindInstance, st.HostID)
	check(t, err)
	if instance.GetSpec().GetLabels()["team"] != "db" || instance.GetStatus().GetRemoteAddr() == "" {
		t.Errorf("instance = %v", instance)
	}
	events := f.events(audit.InstanceJoin)
	if len(events) != 1 || events[0].GetFields().GetFields()["host_id"].GetStringValue() != st.HostID {
		t.Errorf("join events = %v", events)
	}
	for _, e := range events {
		line, err := audit.JSON(e)
		check(t, err)
		if strings.Contains(string(line), secret) {
			t.Errorf("the audit log has the secret: %s", line)
		}
	}
	// The same token again: another machine.
	again, err := join.Join(context.Background(), f.params())
	check(t, err)
	if again.HostID == st.HostID {
		t.Error("two machines got one host id")
	}
}

func TestRefusals(t *testing.T) {
	other := newFixture(t)
	revoke := func(f *fixture, _ *join.Params) {
		check(t, f.store.Tx().Delete(types.KindToken, keys.TokenID(secret), "").Commit(context.Background()))
	}
	tests := []struct {
		name  string
		token func(*typesv1.Token)
		edit  func(*fixture, *join.Params)
		code  string
		says  string
		// unheard: the refusal happens on the machine, Auth never hears of it.
		unheard bool
	}{
		{name: "unknown_token", edit: func(_ *fixture, p *join.Params) { p.Token = strings.Repeat("f", 32) }, code: join.CodeTokenUnknown, says: "tctl tokens add --type=node"},
		{name: "expired_token", token: func(tok *typesv1.Token) { tok.Metadata.Expires = timestamppb.New(time.Now().Add(time.Second)) }, edit: func(f *fixture, p *join.Params) {
			f.setClock(time.Now().Add(40 * time.Second))
		}, code: join.CodeTokenExpired, says: "expired"},
		{name: "expired_and_gone", token: func(tok *typesv1.Token) { tok.Metadata.Expires = timestamppb.New(time.Now().Add(time.Second)) }, edit: func(f *fixture, p *join.Params) {
			revoke(f, p)
			f.setClock(time.Now().Add(40 * time.Second))
		}, code: join.CodeTokenExpired, says: "ago"},
		{name: "revoked", edit: revoke, code: join.CodeTokenRevoked, says: "was revoked"},
		{name: "used_up", token: func(tok *typesv1.Token) { tok.Spec.MaxUses = 1; tok.Status.Uses = 1 }, code: join.CodeTokenUsedUp, says: "good for (1)"},
		{name: "role_not_in_token", edit: func(_ *fixture, p *join.Params) { p.Roles = []types.SystemRole{types.RoleNode, types.RoleProxy} }, code: join.CodeRoleNotAllowed, says: "allows Node, this process runs Proxy as well"},
		{name: "other_method", token: func(tok *typesv1.Token) { tok.Spec.JoinMethod = "iam" }, edit: func(_ *fixture, p *join.Params) { p.Method = "token" }, code: join.CodeMethodMismatch, says: `"iam"`},
		{name: "method_in_config", edit: func(_ *fixture, p *join.Params) { p.Method = "iam" }, code: join.CodeMethodMismatch, says: "join_params.method"},
		{name: "clock_behind", edit: func(_ *fixture, p *join.Params) {
			p.Now = func() time.Time { return time.Now().Add(-10 * time.Minute) }
		}, code: join.CodeClockSkew, says: "10m0s behind"},
		{name: "clock_ahead", edit: func(_ *fixture, p *join.Params) {
			p.Now = func() time.Time { return time.Now().Add(10 * time.Minute) }
		}, code: join.CodeClockSkew, says: "ahead of"},
		{name: "wrong_pin", edit: func(_ *fixture, p *join.Params) { p.Pins = other.trust.Pins() }, code: join.CodeWrongPin, says: "teleport.ca_pin expects " + other.trust.Pins()[0]},
		{name: "no_pin", edit: func(_ *fixture, p *join.Params) { p.Pins = nil }, code: join.CodeNoTrust, says: "ca_pin", unheard: true},
		{name: "untrusted_proxy", edit: func(_ *fixture, p *join.Params) { p.Pins, p.Direct = nil, false }, code: join.CodeNoTrust, says: "does not trust the certificate", unheard: true},
		{name: "host_name_of_cluster", edit: func(_ *fixture, p *join.Params) { p.Hostname = clusterName }, code: join.CodeNameReserved, says: "name of the cluster"},
		{name: "host_name_in_cluster", edit: func(_ *fixture, p *join.Params) { p.Hostname = "web-1." + strings.ToUpper(clusterName) }, code: join.CodeNameReserved, says: "followed by the name of the cluster"},
		{name: "internal_name", edit: func(_ *fixture, p *join.Params) { p.Hostname = "auth.teleport.cluster.local" }, code: join.CodeNameReserved, says: "reserved"},
		{name: "host_id_as_name", edit: func(_ *fixture, p *join.Params) { p.Hostname = "7f2c0a51-0bd4-4d0b-8f6f-0d7c1a3b2e11" }, code: join.CodeNameReserved, says: "host id"},
		{name: "principals_for_node", edit: func(_ *fixture, p *join.Params) { p.Principals = []string{"proxy.example.com"} }, code: join.CodePrincipalDenied, says: "only the Proxy and Auth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.token(secret, func(tok *typesv1.Token) {
				if tt.token != nil {
					tt.token(tok)
				}
			})
			p := f.params()
			if tt.edit != nil {
				tt.edit(f, &p)
			}
			_, err := join.Join(context.Background(), p)
			if fault.Code(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("Join = [%s] %v, want code %s and %q", fault.Code(err), err, tt.code, tt.says)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the refusal has more than one line: %q", err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the refusal has the secret: %q", err)
			}
			if got := len(f.events(audit.InstanceJoin)); got != 0 {
				t.Errorf("%d hosts joined, want none: a refusal leaves nothing behind", got)
			}
			events := f.events(audit.InstanceJoinFailure)
			if tt.unheard {
				if len(events) != 0 {
					t.Errorf("events = %v, want none", events)
				}
				return
			}
			if len(events) != 1 || events[0].GetFields().GetFields()["reason"].GetStringValue() != tt.code {
				t.Errorf("failure events = %v, want one with reason %s", events, tt.code)
			}
		})
	}
}

func TestMaxUsesUnderRace(t *testing.T) {
	f := newFixture(t)
	const uses, joiners = 7, 100
	f.token(secret, func(tok *typesv1.Token) { tok.Spec.MaxUses = uses })
	var joined, refused atomic.Int32
	var wg sync.WaitGroup
	for range joiners {
		wg.Go(func() {
			_, err := join.Join(context.Background(), f.params())
			switch {
			case err == nil:
				joined.Add(1)
			case fault.Code(err) == join.CodeTokenUsedUp:
				refused.Add(1)
			default:
				t.Errorf("Join: %v", err)
			}
		})
	}
	wg.Wait()
	if joined.Load() != uses || refused.Load() != joiners-uses {
		t.Errorf("%d joined and %d were refused, want %d and %d", joined.Load(), refused.Load(), uses, joiners-uses)
	}
	instances, err := store.All[*typesv1.Instance](context.Background(), f.store, types.KindInstance)
	check(t, err)
	if len(instances) != uses+1 {
		t.Errorf("%d instances, want %d and Auth's own", len(instances), uses)
	}
}

// hostile is a relay between machine and Auth that changes what passes.
type hostile struct {
	joinv1.UnimplementedJoinServiceServer
	f          *fixture
	onInit     func(*joinv1.Init)
	onQuestion func(*joinv1.Question)
	onResult   func(*joinv1.Result)
}

func (h *hostile) Join(down grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	conn, err := rpc.Dial(rpc.DialConfig{Addr: h.f.addr, TLS: ca.PinnedTLS(h.f.trust.Pins(), types.RoleAuth)})
	if err != nil {
		return err
	}
	defer conn.Close()
	up, err := joinv1.NewJoinServiceClient(conn).Join(down.Context())
	if err != nil {
		return err
	}
	for {
		req, err := down.Recv()
		if err != nil {
			return err
		}
		if req.GetInit() != nil && h.onInit != nil {
			h.onInit(req.GetInit())
		}
		if err := up.Send(req); err != nil {
			return err
		}
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		if resp.GetQuestion() != nil && h.onQuestion != nil {
			h.onQuestion(resp.GetQuestion())
		}
		if resp.GetResult() != nil && h.onResult != nil {
			h.onResult(resp.GetResult())
		}
		if err := down.Send(resp); err != nil {
			return err
		}
		if resp.GetResult() != nil {
			return nil
		}
	}
}

func TestHostileRelay(t *testing.T) {
	stolen, err := join.NewKeyPair()
	check(t, err)
	otherPins := newFixture(t).trust.Pins()
	tests := []struct {
		name  string
		relay hostile
		// pins of the machine, if not those of the cluster.
		pins []string
		code string
	}{
		{name: "passes_on", relay: hostile{}},
		{name: "swaps_the_tls_key", relay: hostile{onInit: func(i *joinv1.Init) { i.TlsPublicKey = stolen.TLSPublic }}, code: join.CodeTokenProof},
		{name: "swaps_the_ssh_key", relay: hostile{onInit: func(i *joinv1.Init) { i.SshPublicKey = stolen.SSHPublic }}, code: join.CodeTokenProof},
		{name: "adds_a_role", relay: hostile{onInit: func(i *joinv1.Init) { i.Roles = append(i.Roles, "Proxy") }}, code: join.CodeTokenProof},
		{name: "changes_the_name", relay: hostile{onInit: func(i *joinv1.Init) { i.Hostname = "db-1" }}, code: join.CodeTokenProof},
		{name: "changes_the_grant", relay: hostile{onResult: func(r *joinv1.Result) {
			grant := &joinv1.Grant{}
			check(t, proto.Unmarshal(r.Grant, grant))
			grant.HostId = "somebody-else"
			r.Grant, err = proto.Marshal(grant)
			check(t, err)
		}}, code: join.CodeServerUntrusted},
		{name: "hides_the_pins", relay: hostile{onQuestion: func(q *joinv1.Question) { q.CaPins = nil }}, pins: otherPins, code: join.CodeWrongPin},
		{name: "forges_the_pins", relay: hostile{onQuestion: func(q *joinv1.Question) { q.CaPins = otherPins }}, pins: otherPins, code: join.CodeWrongPin},
		{name: "changes_the_signature", relay: hostile{onResult: func(r *joinv1.Result) { r.Signatures[0][8] ^= 1 }}, code: join.CodeServerUntrusted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.token(secret)
			tt.relay.f = f
			holder := f.localIdentity(types.RoleProxy)
			srv := rpc.NewServer(rpc.ServerConfig{
				TLS:       ca.ServerTLS(func() *tls.Certificate { return holder.Certificate(types.RoleProxy) }, func() *ca.Trust { return f.trust }, tls.NoClientCert, "h2"),
				Identify:  func(tls.ConnectionState) (*identity.Identity, error) { return nil, nil },
				Authorize: func(context.Context, rpc.Caller, string) error { return nil },
			})
			joinv1.RegisterJoinServiceServer(srv.Registrar(), &tt.relay)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(t, err)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() { _ = srv.Serve(ctx, ln) }()
			_, err = join.Join(context.Background(), f.params(func(p *join.Params) {
				p.Addr, p.Direct = ln.Addr().String(), false
				if tt.pins != nil {
					p.Pins = tt.pins
				}
			}))
			if fault.Code(err) != tt.code || (err == nil) != (tt.code == "") {
				t.Errorf("Join = [%s] %v, want code %q", fault.Code(err), err, tt.code)
			}
		})
	}
}

func TestRejoinKeepsTheHostAndAddsAService(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	st, err := join.Join(context.Background(), f.params())
	check(t, err)
	holder, err := state.NewHolder(st)
	check(t, err)

	const proxySecret = "ffeeddccbbaa99887766554433221100"
	f.token(proxySecret, func(tok *typesv1.Token) { tok.Spec.Roles = []string{"Proxy"} })
	again, err := join.Join(context.Background(), f.params(func(p *join.Params) {
		p.Token, p.Current, p.Roles = proxySecret, holder, []types.SystemRole{types.RoleProxy, types.RoleNode}
	}))
	check(t, err)
	if again.HostID != st.HostID {
		t.Errorf("host id changed from %s to %s", st.HostID, again.HostID)
	}
	if len(again.Roles) != 2 || again.Generation <= st.Generation {
		t.Errorf("rejoined with roles %v and generation %d", again.Roles, again.Generation)
	}
	// Without the proof of the old identity the same token does not give both.
	_, err = join.Join(context.Background(), f.params(func(p *join.Params) {
		p.Token, p.Roles = proxySecret, []types.SystemRole{types.RoleProxy, types.RoleNode}
	}))
	if fault.Code(err) != join.CodeRoleNotAllowed {
		t.Errorf("Join without an identity = %v, want %s", err, join.CodeRoleNotAllowed)
	}
}

// renew renews with the certificate of a state.
func (f *fixture) renew(from *state.State) (*state.State, error) {
	f.t.Helper()
	holder, err := state.NewHolder(from)
	check(f.t, err)
	conn, err := rpc.Dial(rpc.DialConfig{Addr: f.addr, TLS: ca.ClientTLS(func() *tls.Certificate { return holder.Certificate("") }, holder.Trust, types.RoleAuth)})
	check(f.t, err)
	defer conn.Close()
	return join.Renew(context.Background(), joinv1.NewJoinServiceClient(conn), from, nil)
}

// The process of Auth makes its identity anew while it runs: what it had under way with
// the one before is no copy, and a copy is one.
func TestLocalRenewalIsNoClone(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	id := ""
	issue := func() uint64 {
		pair, err := join.NewKeyPair()
		check(t, err)
		grant, err := f.server.IssueLocal(ctx, join.LocalRequest{
			HostID: id, Hostname: "auth-1", Roles: []types.SystemRole{types.RoleAuth}, TLSKey: pair.TLSPublic, SSHKey: pair.SSHPublic, Process: "run-1",
		})
		check(t, err)
		id = grant.GetHostId()
		return grant.GetGeneration()
	}
	first := issue()
	issue()
	old := identity.Host{ID: id, Generation: first}
	for process, want := range map[string]string{"run-1": join.CodeReplaced, "run-2": join.CodeIdentityCloned} {
		err := f.server.SeenGeneration(rpc.WithCaller(ctx, rpc.Caller{Process: process}), old)
		if fault.Code(err) != want {
			t.Errorf("generation %d of process %s = %v, want %s", first, process, err, want)
		}
	}
}

func TestRenewIsTwoPhaseAndShowsClones(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	first, err := join.Join(context.Background(), f.params())
	check(t, err)
	ctx := context.Background()
	renew := f.renew
	seen := func(st *state.State) error {
		return f.server.SeenGeneration(ctx, identity.Host{ID: st.HostID, Generation: st.Generation})
	}
	second, err := renew(first)
	check(t, err)
	// The answer was lost before it was saved: the first generation still renews.
	third, err := renew(first)
	check(t, err)
	check(t, seen(third))
	// A connection of the same run that was under way during the renewal is no copy.
	sameRun := rpc.WithCaller(ctx, rpc.Caller{Process: "run-1"})
	i, err := f.instance(first.HostID)
	check(t, err)
	i.Status.Process = "run-1"
	check(t, f.store.Tx().Update(i).Commit(ctx))
	if err := f.server.SeenGeneration(sameRun, identity.Host{ID: first.HostID, Generation: first.Generation}); fault.Code(err) != join.CodeReplaced {
		t.Errorf("the old generation of the same run = %v, want %s", err, join.CodeReplaced)
	}
	if locks, err := store.All[*typesv1.Lock](ctx, f.store, types.KindLock); err != nil || len(locks) != 0 {
		t.Errorf("locks = %v, %v; want none yet", locks, err)
	}
	for name, st := range map[string]*state.State{"first": first, "second": second} {
		if _, err := renew(st); fault.Code(err) != join.CodeIdentityCloned {
			t.Errorf("renewal with the %s generation = %v, want %s", name, err, join.CodeIdentityCloned)
		}
		if err := seen(st); fault.Code(err) != join.CodeIdentityCloned {
			t.Errorf("the %s generation was accepted: %v", name, err)
		}
	}
	renewals := f.events(audit.InstanceRenew)
	if len(renewals) != 2 || len(renewals[0].GetFields().GetFields()["roles"].GetListValue().GetValues()) != 1 {
		t.Errorf("renewals = %v, want 2 with their roles", renewals)
	}
	for range 3 {
		check(t, seen(third))
		if err := seen(first); fault.Code(err) != join.CodeIdentityCloned {
			t.Errorf("the first generation was accepted: %v", err)
		}
	}
	// Each copy, once; twice if the copies took turns.
	denied := f.events(audit.InstanceRenewDenied)
	if len(denied) < 2 || len(denied) > 3 {
		t.Errorf("%d refusals were recorded, want 2, or 3 as two copies took turns", len(denied))
	}
	locks, err := store.All[*typesv1.Lock](ctx, f.store, types.KindLock)
	check(t, err)
	alerts, err := store.All[*typesv1.ClusterAlert](ctx, f.store, types.KindClusterAlert)
	check(t, err)
	if len(locks) != 1 || locks[0].GetSpec().GetTarget().GetServerId() != first.HostID || len(alerts) != 1 {
		t.Errorf("locks %v and alerts %v, want one each for host %s", locks, alerts, first.HostID)
	}
	if _, err := renew(third); fault.Code(err) != join.CodeLocked {
		t.Errorf("renewal of the locked original = %v, want %s", err, join.CodeLocked)
	}
	check(t, f.store.Tx().Delete(types.KindLock, locks[0].GetMetadata().GetName(), "").Commit(ctx))
	for _, e := range denied {
		if e.GetFields().GetFields()["reason"].GetStringValue() != join.CodeIdentityCloned {
			t.Errorf("refusal = %v, want reason %s", e, join.CodeIdentityCloned)
		}
	}
	check(t, f.store.Tx().Delete(types.KindInstance, first.HostID, "").Commit(ctx))
	if _, err := renew(third); fault.Code(err) != join.CodeHostRemoved {
		t.Errorf("renewal of a removed host = %v, want %s", err, join.CodeHostRemoved)
	}
}

func TestStateFromJoinSurvivesTheDisk(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	st, err := join.Join(context.Background(), f.params())
	check(t, err)
	dir, err := state.Open(filepath.Join(t.TempDir(), "data"))
	check(t, err)
	defer dir.Close()
	check(t, dir.Save(st))
	loaded, err := dir.Load()
	check(t, err)
	if loaded.HostID != st.HostID || loaded.Generation != st.Generation {
		t.Errorf("loaded %+v, want %+v", loaded, st)
	}
}

// TestMalformed sends what no machine of ours would.
func TestMalformed(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	pair, err := join.NewKeyPair()
	check(t, err)
	good := func() *joinv1.Init {
		return &joinv1.Init{
			Protocol: 1, TokenId: keys.TokenID(secret), Roles: []string{"Node"}, Hostname: "n",
			TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic, Clock: timestamppb.Now(),
		}
	}
	tests := map[string]func(*joinv1.Init){
		"protocol":      func(i *joinv1.Init) { i.Protocol = 9 },
		"no_token":      func(i *joinv1.Init) { i.TokenId = "" },
		"long_token":    func(i *joinv1.Init) { i.TokenId = strings.Repeat("a", 1000) },
		"no_roles":      func(i *joinv1.Init) { i.Roles = nil },
		"many_roles":    func(i *joinv1.Init) { i.Roles = make([]string, 1000) },
		"unknown_role":  func(i *joinv1.Init) { i.Roles = []string{"Admin"} },
		"bot":           func(i *joinv1.Init) { i.Roles = []string{"Bot"} },
		"bad_hostname":  func(i *joinv1.Init) { i.Hostname = "a b\x1b[2J" },
		"no_tls_key":    func(i *joinv1.Init) { i.TlsPublicKey = nil },
		"no_ssh_key":    func(i *joinv1.Init) { i.SshPublicKey = []byte("x") },
		"no_clock":      func(i *joinv1.Init) { i.Clock = nil },
		"bad_identity":  func(i *joinv1.Init) { i.Current = &joinv1.HostProof{Certificate: []byte("x")} },
		"huge_identity": func(i *joinv1.Init) { i.Current = &joinv1.HostProof{Certificate: make([]byte, 1<<16)} },
	}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: f.addr, TLS: ca.PinnedTLS(f.trust.Pins(), types.RoleAuth)})
	check(t, err)
	defer conn.Close()
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			stream, err := joinv1.NewJoinServiceClient(conn).Join(t.Context())
			check(t, err)
			init := good()
			edit(init)
			check(t, stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: init}}))
			if _, err = stream.Recv(); err == nil {
				// Only what needs the proof gets a question.
				check(t, stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Answer{Answer: &joinv1.Answer{Proof: make([]byte, 64)}}}))
				_, err = stream.Recv()
			}
			if !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrDenied) && !errors.Is(err, fault.ErrUnsupported) {
				t.Errorf("answer = %v, want a refusal", err)
			}
		})
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRefusalsOfOneSourceAreBounded(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	at := time.Now()
	f.setClock(at)
	stranger := f.params(func(p *join.Params) { p.Token = strings.Repeat("f", 32) })
	limited := false
	for range 300 {
		_, err := join.Join(context.Background(), stranger)
		if err == nil {
			t.Fatal("an unknown token joined")
		}
		if limited = fault.Code(err) == join.CodeTooMany; limited {
			break
		}
	}
	if !limited {
		t.Error("300 refused joins of one address were all heard")
	}
	if n := len(f.events(audit.InstanceJoinFailure)); n == 0 || n > 250 {
		t.Errorf("%d refusals are in the audit log", n)
	}
	// Time heals it, within what the machines' clocks may differ.
	f.setClock(at.Add(30 * time.Second))
	if _, err := join.Join(context.Background(), f.params()); err != nil {
		t.Errorf("Join after half a minute = %v", err)
	}
}

// While the host authority has two keys, either pin is enough, whichever key signs.
func TestEitherPinWhileARotationOverlaps(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	oldPin := f.trust.Pins()[0]
	next, err := ca.Generate(f.ks, clusterName, ca.TypeHost, time.Now())
	check(t, err)
	was, is := f.cas[0].GetSpec().GetActiveKeys(), next.GetSpec().GetActiveKeys()
	for phase, keys := range map[string][2]*typesv1.CertAuthorityKeys{"before the change": {was, is}, "after the change": {is, was}} {
		f.cas[0] = proto.CloneOf(f.cas[0])
		f.cas[0].Spec.ActiveKeys, f.cas[0].Spec.AdditionalTrustedKeys = keys[0], keys[1]
		f.setAuthorities()
		pins := f.trust.Pins()
		if len(pins) != 2 {
			t.Fatalf("pins = %v, want two", pins)
		}
		for _, pin := range pins {
			st, err := join.Join(t.Context(), f.params(func(p *join.Params) { p.Pins = []string{pin} }))
			if err != nil {
				t.Errorf("%s, with pin %s: %v", phase, pin, err)
				continue
			}
			if got := holderOf(t, st).Trust().Pins(); len(got) != 2 {
				t.Errorf("%s, with one pin: the machine trusts %v, want both authorities", phase, got)
			}
		}
	}
	// The rotation is over: the old pin is worth nothing.
	f.cas[0] = proto.CloneOf(f.cas[0])
	f.cas[0].Spec.ActiveKeys, f.cas[0].Spec.AdditionalTrustedKeys = is, nil
	f.setAuthorities()
	if _, err := join.Join(t.Context(), f.params(func(p *join.Params) { p.Pins = []string{oldPin} })); fault.Code(err) != join.CodeWrongPin {
		t.Errorf("Join with the old pin = %v, want %s", err, join.CodeWrongPin)
	}
}

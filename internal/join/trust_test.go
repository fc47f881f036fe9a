package join_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

// serve serves joins at an address of its own, with the certificate of a host.
func serve(t *testing.T, holder *state.Holder, joins joinv1.JoinServiceServer) string {
	t.Helper()
	srv := rpc.NewServer(rpc.ServerConfig{
		TLS:       ca.ServerTLS(func() *tls.Certificate { return holder.Certificate(types.RoleProxy) }, holder.Trust, tls.NoClientCert, "h2"),
		Identify:  func(tls.ConnectionState) (*identity.Identity, error) { return nil, nil },
		Authorize: func(context.Context, rpc.Caller, string) error { return nil },
	})
	joinv1.RegisterJoinServiceServer(srv.Registrar(), joins)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { _ = srv.Serve(ctx, ln) }()
	return ln.Addr().String()
}

// thief asks every machine for a proof, and counts those that it is shown.
type thief struct {
	joinv1.UnimplementedJoinServiceServer
	pins  []string
	shown atomic.Int32
}

func (h *thief) Join(stream grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	question := &joinv1.Question{Method: types.JoinMethodGCP, ClusterName: clusterName, Nonce: make([]byte, 32), CaPins: h.pins, Challenge: []byte("for " + clusterName)}
	if err := stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Question{Question: question}}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err == nil && answer.GetAnswer() != nil {
		h.shown.Add(1)
	}
	return fault.Denied("thank you")
}

// What anybody could use in the machine's place is shown to the cluster of the pin and
// to nobody else, whatever method the other side asks for.
func TestBearerProofsAreShownToTheirClusterOnly(t *testing.T) {
	for _, bearer := range []bool{true, false} {
		m := platform(1, "")
		m.Bearer = bearer
		f := newPlatform(t, m)
		f.delegatedToken()
		mine := func(edits ...func(*join.Params)) join.Params {
			p := f.machine(map[string]string{}, edits...)
			p.Methods = []method.Method{m}
			return p
		}
		h := &thief{pins: f.trust.Pins()}
		elsewhere := serve(t, newFixture(t).localIdentity(types.RoleProxy), h)
		_, err := join.Join(t.Context(), mine(func(p *join.Params) { p.Addr, p.Direct, p.Method = elsewhere, false, "" }))
		if err == nil || bearer != (fault.Code(err) == join.CodeServerUntrusted) || bearer != (h.shown.Load() == 0) {
			t.Errorf("bearer %v: Join = [%s] %v, and %d proofs were shown", bearer, fault.Code(err), err, h.shown.Load())
		}
		if _, err := join.Join(t.Context(), mine()); err != nil {
			t.Errorf("bearer %v: Join with the cluster itself = %v", bearer, err)
		}
		relay := serve(t, f.localIdentity(types.RoleProxy), &hostile{f: f})
		if _, err := join.Join(t.Context(), mine(func(p *join.Params) { p.Addr, p.Direct = relay, false })); err != nil {
			t.Errorf("bearer %v: Join through a Proxy of the cluster = %v", bearer, err)
		}
	}
}

// The configuration of a machine may have the pin of an authority that is gone: once it
// has joined, it knows the cluster by what it keeps.
func TestIdentityOutlivesThePin(t *testing.T) {
	m := platform(1, "")
	m.Bearer = true
	f := newPlatform(t, m)
	f.delegatedToken()
	old := f.trust.Pins()
	next, err := ca.Generate(f.ks, clusterName, ca.TypeHost, time.Now())
	check(t, err)
	was, is := f.cas[0].GetSpec().GetActiveKeys(), next.GetSpec().GetActiveKeys()
	setKeys := func(active, additional *typesv1.CertAuthorityKeys) {
		f.cas[0] = proto.CloneOf(f.cas[0])
		f.cas[0].Spec.ActiveKeys, f.cas[0].Spec.AdditionalTrustedKeys = active, additional
		f.setAuthorities()
	}
	setKeys(is, was)
	p := f.machine(map[string]string{}, func(p *join.Params) { p.Methods, p.Pins = []method.Method{m}, old })
	st, err := join.Join(t.Context(), p)
	check(t, err)
	setKeys(is, nil)
	p.Current = holderOf(t, st)
	again, err := join.Join(t.Context(), p)
	check(t, err)
	if again.HostID != st.HostID {
		t.Errorf("came back as host %s, was %s", again.HostID, st.HostID)
	}
}

// A machine that is in a cluster does not believe a Proxy of it that says that the
// cluster has other authorities now.
func TestProxyCannotReplaceTheCluster(t *testing.T) {
	f, evil := newPlatform(t, platform(1, "")), newPlatform(t, platform(1, ""))
	f.delegatedToken()
	evil.delegatedToken(func(tok *typesv1.Token) { tok.Spec.Rejoin = types.RejoinReplace })
	st, err := join.Join(t.Context(), f.machine(map[string]string{}))
	check(t, err)
	proxy := serve(t, f.localIdentity(types.RoleProxy), evil.server)
	_, err = join.Join(t.Context(), f.machine(map[string]string{}, func(p *join.Params) {
		p.Addr, p.Direct, p.Pins, p.Current = proxy, false, nil, holderOf(t, st)
	}))
	if fault.Code(err) != join.CodeWrongPin {
		t.Errorf("Join through a Proxy with a cluster of its own = %v, want %s", err, join.CodeWrongPin)
	}
}

// Who found a data directory of long ago has a host id and nothing that it allowed: the
// services are those of the token. The same for a host that was removed.
func TestOldIdentityAllowsNoService(t *testing.T) {
	const proxySecret = "ffeeddccbbaa99887766554433221100"
	for name, age := range map[string]func(*fixture, string){
		"expired": func(f *fixture, _ string) { f.setClock(f.clock().Add(30 * 24 * time.Hour)) },
		"removed": func(f *fixture, id string) {
			check(f.t, f.store.Tx().Delete(types.KindInstance, id, "").Commit(context.Background()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.token(proxySecret, func(tok *typesv1.Token) { tok.Spec.Roles = []string{"Proxy"} })
			f.token(secret, func(tok *typesv1.Token) {
				tok.Spec.Roles, tok.Spec.Rejoin, tok.Metadata.Expires = []string{"Node"}, types.RejoinSameKey, nil
			})
			st, err := join.Join(t.Context(), f.params(func(p *join.Params) { p.Token, p.Roles = proxySecret, []types.SystemRole{types.RoleProxy} }))
			check(t, err)
			age(f, st.HostID)
			again := func(roles ...types.SystemRole) (*state.State, error) {
				return join.Join(t.Context(), f.params(func(p *join.Params) { p.Roles, p.Current, p.Now = roles, holderOf(t, st), f.clock }))
			}
			if _, err := again(types.RoleProxy); fault.Code(err) != join.CodeRoleNotAllowed {
				t.Errorf("Join as a Proxy with a token for nodes = %v, want %s", err, join.CodeRoleNotAllowed)
			}
			back, err := again(types.RoleNode)
			check(t, err)
			if back.HostID != st.HostID {
				t.Errorf("came back as host %s, was %s", back.HostID, st.HostID)
			}
		})
	}
}

// A machine does not get rid of a lock by deleting its data directory.
func TestLockedMachineDoesNotBecomeAnother(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken()
	machine := f.machine(map[string]string{"machine": "vm-1"})
	st, err := join.Join(t.Context(), machine)
	check(t, err)
	lock := types.NewLock(&typesv1.LockTarget{ServerId: st.HostID}, "stop", "admin", f.clock(), time.Time{})
	check(t, f.store.Tx().Create(lock).Commit(t.Context()))
	if _, err := join.Join(t.Context(), machine); fault.Code(err) != join.CodeLocked {
		t.Errorf("Join afresh = %v, want %s", err, join.CodeLocked)
	}
	check(t, f.store.Tx().Delete(types.KindLock, lock.GetMetadata().GetName(), "").Commit(t.Context()))
	if _, err := join.Join(t.Context(), machine); err != nil {
		t.Errorf("Join after the lock was removed = %v", err)
	}
}

// A relay cannot make a join of a rehearsal.
func TestRehearsalStaysOne(t *testing.T) {
	f := newFixture(t)
	f.token(secret, func(tok *typesv1.Token) { tok.Spec.MaxUses = 1 })
	relay := serve(t, f.localIdentity(types.RoleProxy), &hostile{f: f, onInit: func(i *joinv1.Init) { i.DryRun = false }})
	_, err := join.Rehearse(t.Context(), f.params(func(p *join.Params) { p.Addr, p.Direct = relay, false }))
	if fault.Code(err) != join.CodeTokenProof {
		t.Errorf("Rehearse = %v, want %s", err, join.CodeTokenProof)
	}
	if _, err := join.Join(t.Context(), f.params()); err != nil {
		t.Errorf("Join after the rehearsal = %v", err)
	}
}

// A rehearsal with a copy of a data directory says what would happen, and locks nobody.
func TestRehearsalLocksNobody(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	first, err := join.Join(t.Context(), f.params())
	check(t, err)
	second, err := f.renew(first)
	check(t, err)
	check(t, f.server.SeenGeneration(t.Context(), identity.Host{ID: second.HostID, Generation: second.Generation}))
	locks := func() int {
		all, err := store.All[*typesv1.Lock](t.Context(), f.store, types.KindLock)
		check(t, err)
		return len(all)
	}
	copied := f.params(func(p *join.Params) { p.Current = holderOf(t, first) })
	e, err := join.Rehearse(t.Context(), copied)
	check(t, err)
	if e.GetCode() != join.CodeIdentityCloned || locks() != 0 {
		t.Errorf("rehearsal: code %q and %d locks, want %s and none", e.GetCode(), locks(), join.CodeIdentityCloned)
	}
	if _, err := join.Join(t.Context(), copied); fault.Code(err) != join.CodeIdentityCloned || locks() != 1 {
		t.Errorf("Join = %v and %d locks, want %s and one", err, locks(), join.CodeIdentityCloned)
	}
}

// A host that names its service a thousand times gets one certificate for it.
func TestRenewalHasEachServiceOnce(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	st, err := join.Join(t.Context(), f.params())
	check(t, err)
	pair, err := join.NewKeyPair()
	check(t, err)
	host := identity.Host{ID: st.HostID, Generation: st.Generation, Roles: st.Roles}
	resp, err := f.server.Renew(rpc.WithCaller(t.Context(), rpc.Caller{Identity: &identity.Identity{Cluster: clusterName, Host: &host}}),
		&joinv1.RenewRequest{TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic, Roles: slices.Repeat([]string{"Node"}, 1000)})
	check(t, err)
	if got := resp.GetGrant().GetRoles(); len(got) != 1 {
		t.Errorf("%d roles were granted, want 1", len(got))
	}
}

// One machine that comes several times at once becomes one host, also when the one that
// it was is gone.
func TestOneMachineBecomesOneHost(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken(func(tok *typesv1.Token) { tok.Spec.Rejoin = types.RejoinReplace })
	machine := f.machine(map[string]string{"machine": "vm-1"})
	st, err := join.Join(t.Context(), machine)
	check(t, err)
	check(t, f.store.Tx().Delete(types.KindInstance, st.HostID, "").Commit(t.Context()))
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if _, err := join.Join(context.Background(), machine); err != nil && !errors.Is(err, fault.ErrStale) {
				t.Errorf("Join = %v, want to be told to try again", err)
			}
		})
	}
	wg.Wait()
	instances, err := store.All[*typesv1.Instance](t.Context(), f.store, types.KindInstance)
	check(t, err)
	if len(instances) != 2 {
		t.Errorf("%d instances, want one and Auth's own", len(instances))
	}
}

// Who asks for tokens that there are not and hangs up before it is told so is counted
// like one who listens.
func TestHangingUpIsCounted(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	at := time.Now()
	f.setClock(at)
	pair, err := join.NewKeyPair()
	check(t, err)
	conn, err := rpc.Dial(rpc.DialConfig{Addr: f.addr, TLS: ca.PinnedTLS(f.trust.Pins(), types.RoleAuth)})
	check(t, err)
	defer conn.Close()
	hangUp := func(token string) error {
		stream, err := joinv1.NewJoinServiceClient(conn).Join(t.Context())
		check(t, err)
		init := &joinv1.Init{
			Protocol: join.Protocol, TokenId: token, Roles: []string{"Node"}, Hostname: "n", TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic,
			Clock: timestamppb.New(at),
		}
		_ = stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: init}})
		_ = stream.CloseSend()
		for {
			if _, err := stream.Recv(); err != nil {
				return err
			}
		}
	}
	for range 300 {
		if err := hangUp(keys.TokenID(secret)); !errors.Is(err, io.EOF) {
			t.Fatalf("a machine that lost its connection is counted: %v", err)
		}
	}
	for range 300 {
		if err = hangUp("nothing"); fault.Code(err) == join.CodeTooMany {
			return
		}
	}
	t.Errorf("300 hung up unheard, the last with %v", err)
}

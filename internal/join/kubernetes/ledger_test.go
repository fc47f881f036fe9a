package kubernetes_test

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

// auth is Auth's end of a join, with a store in memory.
type auth struct {
	addr string
	pins []string
	m    method.Method
}

// tokenName is the name of the only join token of an auth.
const tokenName = "kube"

func newAuth(t *testing.T, m method.Method, getenv func(string) string, spec *typesv1.KubernetesJoin) *auth {
	t.Helper()
	db := store.New(store.Config{Backend: memory.New()})
	db.SetCluster(cluster)
	ks := keystore.Software()
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		authority, err := ca.Generate(ks, cluster, typ, time.Now())
		must(t, err)
		cas = append(cas, authority)
	}
	signer, err := ca.NewSigner(ks, cas, time.Now)
	must(t, err)
	trust, err := ca.NewTrust(cas)
	must(t, err)
	server := join.NewServer(join.ServerConfig{
		Store: db, Now: time.Now, Methods: []method.Method{m}, Getenv: getenv,
		Signer: func() *ca.Signer { return signer }, Trust: func() *ca.Trust { return trust }, Cluster: func() string { return cluster },
	})
	token := types.New(types.KindToken, tokenName).(*typesv1.Token)
	token.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "kubernetes", Kubernetes: spec}
	must(t, types.Check(token))
	token.Status = &typesv1.TokenStatus{DerivedId: keys.TokenID(tokenName)}
	must(t, db.Tx().Create(token).Commit(t.Context()))

	pair, err := join.NewKeyPair()
	must(t, err)
	grant, err := server.IssueLocal(t.Context(), join.LocalRequest{
		Hostname: "auth-1", Roles: []types.SystemRole{types.RoleAuth}, TLSKey: pair.TLSPublic, SSHKey: pair.SSHPublic, Principals: []string{"127.0.0.1"},
	})
	must(t, err)
	st, err := join.NewState(grant, pair, "auth-1", nil, "")
	must(t, err)
	holder, err := state.NewHolder(st)
	must(t, err)
	srv := rpc.NewServer(rpc.ServerConfig{
		TLS:       ca.ServerTLS(func() *tls.Certificate { return holder.Certificate(types.RoleAuth) }, func() *ca.Trust { return trust }, tls.VerifyClientCertIfGiven, "h2"),
		Identify:  func(cs tls.ConnectionState) (*identity.Identity, error) { return trust.Identify(cs) },
		Authorize: func(context.Context, rpc.Caller, string) error { return nil },
	})
	joinv1.RegisterJoinServiceServer(srv.Registrar(), server)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ctx, ln)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return &auth{addr: ln.Addr().String(), pins: trust.Pins(), m: m}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// join joins a machine without a data directory; the token of its pod is where the
// environment says.
func (a *auth) join(ctx context.Context, current *state.Holder) (*state.State, error) {
	return join.Join(ctx, join.Params{
		Addr: a.addr, Direct: true, Token: tokenName, Roles: []types.SystemRole{types.RoleNode}, Hostname: "web-0", Pins: a.pins,
		Methods: []method.Method{a.m}, Current: current,
	})
}

// ledger joins for real: a token of a pod admits one machine, whoever comes after it and
// whoever comes with it.
func (r real) ledger(t *testing.T, spec *typesv1.KubernetesJoin) {
	a := newAuth(t, r.m, r.env, spec)
	pod := r.pod(t)
	mount := func() {
		t.Setenv("KUBERNETES_TOKEN_PATH", mounted(t, r.Token(t, pod, cluster, 10*time.Minute))("KUBERNETES_TOKEN_PATH"))
	}
	mount()
	first, err := a.join(t.Context(), nil)
	must(t, err)
	if _, err := a.join(t.Context(), nil); fault.Code(err) != method.CodeProofReplayed {
		t.Errorf("the token again: %v, want code %q", err, method.CodeProofReplayed)
	}
	// The same machine shows its identity, and the token that is still in the file.
	holder, err := state.NewHolder(first)
	must(t, err)
	again, err := a.join(t.Context(), holder)
	must(t, err)
	if again.HostID != first.HostID {
		t.Errorf("a machine that keeps its identity became host %s, and was %s", again.HostID, first.HostID)
	}

	mount()
	const times = 6
	errs := make([]error, times)
	var wg sync.WaitGroup
	for i := range times {
		wg.Go(func() { _, errs[i] = a.join(t.Context(), nil) })
	}
	wg.Wait()
	admitted := 0
	for _, err := range errs {
		switch {
		case err == nil:
			admitted++
		case fault.Code(err) != method.CodeProofReplayed:
			t.Errorf("one token shown at once: %v, want code %q", err, method.CodeProofReplayed)
		}
	}
	if admitted != 1 {
		t.Errorf("one token, shown %d times at once, admitted %d machines, want 1", times, admitted)
	}
}

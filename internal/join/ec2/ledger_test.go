package ec2_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
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
	"teleport/internal/join/ec2"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/test/netns"
)

const (
	clusterName = "ec2.example.com"
	tokenName   = "instances"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// auth is Auth's end of a join, with a store in memory.
type auth struct {
	addr  string
	pins  []string
	store *store.Store
}

func newAuth(t *testing.T, s *jointest.Setup) *auth {
	t.Helper()
	db := store.New(store.Config{Backend: memory.New()})
	db.SetCluster(clusterName)
	ks := keystore.Software()
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		authority, err := ca.Generate(ks, clusterName, typ, time.Now())
		must(t, err)
		cas = append(cas, authority)
	}
	signer, err := ca.NewSigner(ks, cas, time.Now)
	must(t, err)
	trust, err := ca.NewTrust(cas)
	must(t, err)
	server := join.NewServer(join.ServerConfig{
		Store: db, Now: time.Now, Methods: []method.Method{ec2.Method()}, Getenv: s.AuthEnv, Egress: egress.New(s.Auth),
		Signer: func() *ca.Signer { return signer }, Trust: func() *ca.Trust { return trust }, Cluster: func() string { return clusterName },
	})
	token := types.New(types.KindToken, tokenName).(*typesv1.Token)
	token.Spec = s.Spec
	token.Spec.Roles, token.Spec.JoinMethod = []string{"Node"}, "ec2"
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return &auth{addr: l.Addr().String(), pins: trust.Pins(), store: db}
}

// join joins the instance, without a data directory.
func (a *auth) join(ctx context.Context) (*state.State, error) {
	return join.Join(ctx, join.Params{
		Addr: a.addr, Direct: true, Token: tokenName, Roles: []types.SystemRole{types.RoleNode}, Hostname: "node-1", Pins: a.pins,
		Methods: []method.Method{ec2.Method()},
	})
}

// TestLedger: an instance joins over the wire, with its metadata service at the true
// address. Its document admits one machine, whoever comes after it and whoever comes
// with it, also when the host is gone.
func TestLedger(t *testing.T) {
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254/32"}}, func(t *testing.T) {
		w, s := newWorld(t, signerOf(t))
		l, err := net.Listen("tcp", "169.254.169.254:80")
		must(t, err)
		server := &http.Server{Handler: w.metadata, ReadHeaderTimeout: time.Minute}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		defer func() {
			server.Close()
			<-done
		}()
		a := newAuth(t, s)

		const times = 6
		hosts, errs := make([]string, times), make([]error, times)
		var wg sync.WaitGroup
		for i := range times {
			wg.Go(func() {
				st, err := a.join(t.Context())
				if errs[i] = err; err == nil {
					hosts[i] = st.HostID
				}
			})
		}
		wg.Wait()
		want, admitted := account+"-"+w.instance, 0
		for i, err := range errs {
			switch {
			case err == nil && hosts[i] == want:
				admitted++
			case fault.Code(err) != method.CodeProofReplayed:
				t.Errorf("one document shown at once: host %q, %v, want host %q or code %q", hosts[i], err, want, method.CodeProofReplayed)
			}
		}
		if admitted != 1 {
			t.Errorf("one document, shown %d times at once, admitted %d machines, want 1", times, admitted)
		}
		must(t, a.store.Tx().Delete(types.KindInstance, want, "").Commit(t.Context()))
		if _, err := a.join(t.Context()); fault.Code(err) != method.CodeProofReplayed {
			t.Errorf("the document when its host was removed: %v, want code %q", err, method.CodeProofReplayed)
		}
		// After a stop and a start the document is another one. The host that was removed
		// does not come back by it: the instance becomes a new one.
		w.document["pendingTime"] = time.Now().UTC().Format(time.RFC3339)
		w.sign(t)
		st, err := a.join(t.Context())
		must(t, err)
		if st.HostID == want {
			t.Errorf("a host that was removed came back as %s", st.HostID)
		}
	})
}

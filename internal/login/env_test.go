package login_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	auditv1 "teleport/api/audit/v1"
	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/authz"
	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/login"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	cluster  = "example.com"
	password = "correct horse battery"
)

// env is an Auth Service as far as logging in needs one.
type env struct {
	*login.Server
	store *store.Store
	trust *ca.Trust
	log   *lockedBuffer
	// broken makes every write fail.
	broken atomic.Bool
	// meanwhile runs once, just before the next write: somebody else was faster.
	meanwhile atomic.Pointer[func()]
	// offset is how far the clock is from the real one.
	offset atomic.Int64
	tls    []byte
	ssh    []byte
	calls  atomic.Int64
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// breakable is a backend that can be told to refuse writes, or to let somebody
// else write first.
type breakable struct {
	backend.Backend
	env *env
}

func (b breakable) Batch(ctx context.Context, ops ...backend.Op) (uint64, error) {
	if b.env.broken.Load() {
		return 0, errors.New("disk full")
	}
	if f := b.env.meanwhile.Swap(nil); f != nil {
		(*f)()
	}
	return b.Backend.Batch(ctx, ops...)
}

func newEnv(tb testing.TB) *env {
	tb.Helper()
	e := &env{log: &lockedBuffer{}}
	mem := memory.New()
	tb.Cleanup(func() { _ = mem.Close() })
	e.store = store.New(store.Config{Backend: breakable{mem, e}, Now: e.now})
	e.store.SetCluster(cluster)
	ks := keystore.Software()
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		c, err := ca.Generate(ks, cluster, typ, e.now())
		must(tb, err)
		cas = append(cas, c)
	}
	signer, err := ca.NewSigner(ks, cas, e.now)
	must(tb, err)
	e.trust, err = ca.NewTrust(cas)
	must(tb, err)
	tx := e.store.Tx()
	for _, r := range types.PresetRoles() {
		tx.Create(r)
	}
	must(tb, tx.Commit(tb.Context()))
	roles := func(ctx context.Context, names []string) ([]*typesv1.Role, error) {
		var out []*typesv1.Role
		for _, name := range names {
			r, err := store.Get[*typesv1.Role](ctx, e.store, types.KindRole, name)
			if err == nil {
				out = append(out, r)
			}
		}
		return out, nil
	}
	e.Server, err = login.New(login.Config{
		Store: e.store, Signer: func() *ca.Signer { return signer }, Trust: func() *ca.Trust { return e.trust },
		Authorizer: authz.New(roles), Cluster: func() string { return cluster }, ProxyAddr: func() string { return "proxy.example.com:3080" },
		Now: e.now, Log: slog.New(slog.NewJSONHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	must(tb, err)
	must(tb, login.Cheapen(e.Server))
	tlsKey, err := keys.Generate(keys.ECDSAP256)
	must(tb, err)
	e.tls, err = keys.PublicDER(tlsKey.Public())
	must(tb, err)
	sshKey, err := keys.Generate(keys.Ed25519)
	must(tb, err)
	public, err := ssh.NewPublicKey(sshKey.Public())
	must(tb, err)
	e.ssh = public.Marshal()
	return e
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (e *env) now() time.Time { return time.Now().Add(time.Duration(e.offset.Load())) }

// advance moves the clock; codes of the TOTP are different after 90 seconds.
func (e *env) advance(d time.Duration) { e.offset.Add(int64(d)) }

// stranger is the context of a caller without a certificate, each at another
// address, so that no limit of a source is met.
func (e *env) stranger(ctx context.Context) context.Context {
	n := e.calls.Add(1)
	return rpc.WithCaller(ctx, rpc.Caller{Addr: fmt.Sprintf("10.%d.%d.%d:1000", n>>16&255, n>>8&255, n&255), Via: "proxy-1"})
}

func admin(ctx context.Context) context.Context { return rpc.WithCaller(ctx, rpc.Caller{Local: true}) }

func asUser(ctx context.Context, name string, roles ...string) context.Context {
	return rpc.WithCaller(ctx, rpc.Caller{Addr: "192.0.2.1:1", Identity: &identity.Identity{Cluster: cluster, User: &identity.User{Name: name, Roles: roles}}})
}

func newUser(name string, roles []string, logins ...string) *typesv1.User {
	return &typesv1.User{
		Kind: types.KindUser, Metadata: &typesv1.Metadata{Name: name},
		Spec: &typesv1.UserSpec{Roles: roles, Traits: map[string]*typesv1.Strings{"logins": {Values: logins}}},
	}
}

// invite creates a user and returns the secret of the invitation.
func (e *env) invite(tb testing.TB, user *typesv1.User) string {
	tb.Helper()
	resp, err := e.CreateUser(admin(tb.Context()), &userv1.CreateUserRequest{User: user})
	must(tb, err)
	return resp.GetInvitation().GetToken()
}

// enrol redeems an invitation and returns the TOTP secret. The clock then is
// where no code has been used.
func (e *env) enrol(tb testing.TB, secret, password string) string {
	tb.Helper()
	got, err := e.GetInvitation(e.stranger(tb.Context()), &loginv1.GetInvitationRequest{Token: secret})
	must(tb, err)
	_, err = e.RedeemInvitation(e.stranger(tb.Context()), &loginv1.RedeemInvitationRequest{
		Token: secret, Password: password, TotpCode: login.Code(got.GetTotpSecret(), e.now()),
	})
	must(tb, err)
	e.advance(90 * time.Second)
	return got.GetTotpSecret()
}

// person makes a user that can log in.
func (e *env) person(tb testing.TB, name string, roles []string, logins ...string) string {
	tb.Helper()
	return e.enrol(tb, e.invite(tb, newUser(name, roles, logins...)), password)
}

func (e *env) keys() *loginv1.PublicKeys { return &loginv1.PublicKeys{Tls: e.tls, Ssh: e.ssh} }

func (e *env) login(ctx context.Context, user, password, code string, ttl ...time.Duration) (*loginv1.UserCertificates, error) {
	req := &loginv1.LoginRequest{User: user, Password: password, TotpCode: code, Keys: e.keys()}
	if len(ttl) > 0 {
		req.Ttl = durationpb.New(ttl[0])
	}
	resp, err := e.Login(e.stranger(ctx), req)
	return resp.GetCertificates(), err
}

// events returns all events, oldest first.
func (e *env) events(tb testing.TB) []*auditv1.Event {
	tb.Helper()
	var out []*auditv1.Event
	token := ""
	for {
		page, next, err := e.store.SearchEvents(tb.Context(), store.EventQuery{Limit: 1000, Ascending: true, PageToken: token})
		must(tb, err)
		out = append(out, page...)
		if next == "" {
			return out
		}
		token = next
	}
}

// count returns how many events of the kind have the value in the field.
func (e *env) count(tb testing.TB, k audit.Kind, field, value string) int {
	tb.Helper()
	n := 0
	for _, event := range e.events(tb) {
		if got, ok := audit.KindOf(event); ok && got == k && event.GetFields().GetFields()[field].GetStringValue() == value {
			n++
		}
	}
	return n
}

// reasons returns the errors of the failed logins, oldest first.
func (e *env) reasons(tb testing.TB) []string {
	tb.Helper()
	var out []string
	for _, event := range e.events(tb) {
		if event.GetCode() == audit.UserLoginFailure.Code {
			out = append(out, event.GetFields().GetFields()["error"].GetStringValue())
		}
	}
	return out
}

// tlsIdentity returns what a certificate says, as a peer would read it.
func (e *env) tlsIdentity(tb testing.TB, der []byte) *identity.Identity {
	tb.Helper()
	cert, err := x509.ParseCertificate(der)
	must(tb, err)
	id, err := e.trust.VerifyTLS([]*x509.Certificate{cert}, e.now())
	must(tb, err)
	return id
}

// sameRefusal checks that an error is the one answer to a failed login.
func sameRefusal(t *testing.T, err error) {
	t.Helper()
	if err == nil || err.Error() != "invalid username, password or second factor" || !errors.Is(err, fault.ErrUnauthenticated) || fault.Code(err) != "login_failed" {
		t.Errorf("refused with %v (kind %v, code %q), want the constant answer", err, fault.Kind(err), fault.Code(err))
	}
}

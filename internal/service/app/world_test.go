package app_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	appv1 "teleport/api/app/v1"
	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/service/app"
	"teleport/internal/state"
	"teleport/internal/types"
)

const (
	hostID     = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"
	cluster    = "example.com"
	appName    = "web"
	publicAddr = "web.example.com"
	clientAddr = "192.0.2.7:4711"
)

// events is an audit log in memory.
type events struct {
	mu   sync.Mutex
	all  []*auditv1.Event
	fail bool
	more chan struct{}
}

func (e *events) emit(_ context.Context, evs ...*auditv1.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail {
		return errors.New("log is full")
	}
	e.all = append(e.all, evs...)
	close(e.more)
	e.more = make(chan struct{})
	return nil
}

// wait returns the first event of the code that fits, when it comes.
func (e *events) wait(t testing.TB, code string, fits func(map[string]any) bool) map[string]any {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		e.mu.Lock()
		for _, ev := range e.all {
			if f := ev.GetFields().AsMap(); ev.GetCode() == code && (fits == nil || fits(f)) {
				e.mu.Unlock()
				return f
			}
		}
		more, all := e.more, slices.Clone(e.all)
		e.mu.Unlock()
		select {
		case <-more:
		case <-limit:
			t.Fatalf("no event %s came; there are %v", code, all)
		}
	}
}

func (e *events) count(code string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, ev := range e.all {
		if ev.GetCode() == code {
			n++
		}
	}
	return n
}

func (e *events) refuse(fail bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fail = fail
}

// auth is an Auth Service that signs tokens.
type auth struct {
	appv1.AppServiceClient
	calls atomic.Int64
	away  atomic.Bool
	life  atomic.Int64
}

func (a *auth) SignToken(_ context.Context, in *appv1.SignTokenRequest, _ ...grpc.CallOption) (*appv1.SignTokenResponse, error) {
	n := a.calls.Add(1)
	if a.away.Load() {
		return nil, fault.Unreachable("auth is away")
	}
	life := time.Hour
	if l := a.life.Load(); l > 0 {
		life = time.Duration(l)
	}
	return &appv1.SignTokenResponse{Token: "jwt-for-" + in.GetApp() + "-" + string(rune('0'+n%10)), Expires: timestamppb.New(time.Now().Add(life))}, nil
}

// world is a cluster as far as an agent needs one.
type world struct {
	cas       []*typesv1.CertAuthority
	signer    *ca.Signer
	holder    *state.Holder
	cache     *cache.Cache
	events    *events
	auth      *auth
	announced chan *typesv1.AppServer
	withdrawn chan string
	svc       *app.Service
	addr      string
	skew      atomic.Int64
	resource  atomic.Pointer[string]
	client    atomic.Pointer[string]
	stop      func()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func strs(s ...string) *typesv1.Strings { return &typesv1.Strings{Values: s} }

// role allows applications by one label.
func role(name, key, value string) *typesv1.Role {
	r := types.New(types.KindRole, name).(*typesv1.Role)
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{key: strs(value)}}}
	return r
}

// application returns one that role dev may use.
func application(name, uri string, change func(*typesv1.AppSpec)) *typesv1.App {
	a := types.New(types.KindApp, name).(*typesv1.App)
	a.Metadata.Labels = map[string]string{"env": "test"}
	a.Spec = &typesv1.AppSpec{Uri: uri, PublicAddr: name + "." + cluster}
	if change != nil {
		change(a.Spec)
	}
	return a
}

// start runs an Application Service with the applications behind a listener that stands for
// the tunnel.
func start(t testing.TB, change func(*app.Config), apps ...*typesv1.App) *world {
	t.Helper()
	now := time.Now()
	w := &world{
		cache: cache.New(), events: &events{more: make(chan struct{})}, auth: &auth{},
		announced: make(chan *typesv1.AppServer, 256), withdrawn: make(chan string, 256),
	}
	w.client.Store(proto.String(clientAddr))
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		w.cas = append(w.cas, must(ca.Generate(keystore.Software(), cluster, typ, now.Add(-time.Hour))))
	}
	w.signer = must(ca.NewSigner(keystore.Software(), w.cas, time.Now))
	w.holder = must(state.NewHolder(w.join(t)))
	w.cache.Reset()
	for _, r := range []*typesv1.Role{role("dev", "env", "test"), role("ops", "env", "prod"), role("all", "*", "*")} {
		w.setRole(r)
	}
	w.cache.Synced(1)
	w.cache.Heard(now)
	cfg := app.Config{
		Holder: w.holder, Cache: w.cache, Emit: w.events.emit, Hostname: "agent-1", Apps: apps,
		Announce: func(r types.Resource) { w.announced <- proto.CloneOf(r.(*typesv1.AppServer)) },
		Withdraw: func(_, name string) { w.withdrawn <- name },
		Auth:     func() appv1.AppServiceClient { return w.auth },
		Drain:    time.Second,
		Log:      slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		Now:      func() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) },
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.svc, err = app.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.svc.Run(ctx, func() { close(ready) }) }()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	w.addr = ln.Addr().String()
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			about := app.Connection{ClientAddr: *w.client.Load()}
			if r := w.resource.Load(); r != nil {
				about.Resource = *r
			}
			conns.Go(func() { w.svc.HandleConn(context.Background(), &tunnelled{Conn: conn}, about) })
		}
	})
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		_ = ln.Close()
		conns.Wait()
	})
	t.Cleanup(w.stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run = %v before it was ready", err)
	}
	return w
}

func (w *world) setRole(r *typesv1.Role) {
	w.cache.Apply(types.Change{Kind: types.KindRole, Name: r.GetMetadata().GetName(), Resource: r})
}

func (w *world) setApp(a *typesv1.App) {
	w.cache.Apply(types.Change{Kind: types.KindApp, Name: a.GetMetadata().GetName(), Resource: a})
}

func (w *world) lock(name string, target *typesv1.LockTarget) {
	l := types.New(types.KindLock, name).(*typesv1.Lock)
	l.Spec = &typesv1.LockSpec{Target: target, Message: "go home"}
	w.cache.Apply(types.Change{Kind: types.KindLock, Name: name, Resource: l})
}

// announcement waits for the next one of an application that fits.
func (w *world) announcement(t testing.TB, name string, fits func(*typesv1.AppServer) bool) *typesv1.AppServer {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		select {
		case s := <-w.announced:
			if s.GetSpec().GetApp().GetMetadata().GetName() == name && (fits == nil || fits(s)) {
				return s
			}
		case <-limit:
			t.Fatalf("application %s was not announced", name)
		}
	}
}

// join returns the state of a host with the role App.
func (w *world) join(t testing.TB) *state.State {
	t.Helper()
	tlsKey, sshKey := must(keys.Generate(keys.ECDSAP256)), must(keys.Generate(keys.Ed25519))
	roles := []types.SystemRole{types.RoleApp}
	issue := func(service types.SystemRole) *joinv1.ServiceCertificates {
		tlsDER, _, err := w.signer.Host(ca.HostRequest{
			Identity: identity.Identity{Cluster: cluster, Host: &identity.Host{ID: hostID, Name: "agent-1", Roles: roles, Service: service, Generation: 1}},
			TLSKey:   must(keys.PublicDER(tlsKey.Public())),
		})
		if err != nil {
			t.Fatal(err)
		}
		return &joinv1.ServiceCertificates{Tls: tlsDER}
	}
	grant := &joinv1.Grant{
		HostId: hostID, ClusterName: cluster, Roles: []string{"App"}, Generation: 1,
		Certificates: &joinv1.HostCertificates{Tls: issue("").GetTls(), Services: map[string]*joinv1.ServiceCertificates{"App": issue(types.RoleApp)}},
		Authorities:  []*typesv1.CertAuthority{ca.Public(w.cas[0]), ca.Public(w.cas[1])},
	}
	return &state.State{
		Cluster: cluster, HostID: hostID, Hostname: "agent-1", Roles: roles, Generation: 1,
		TLSKey: must(keys.MarshalPrivate(tlsKey)), SSHKey: must(keys.MarshalPrivate(sshKey)), Grant: must(proto.Marshal(grant)),
	}
}

// person is somebody with a certificate.
type person struct {
	w    *world
	cert tls.Certificate
}

// person makes a certificate for the application appName; change may alter it.
func (w *world) person(t testing.TB, name string, change func(*identity.User, *ca.UserRequest), roles ...string) *person {
	t.Helper()
	key := must(keys.Generate(keys.ECDSAP256))
	u := &identity.User{
		Name: name, Roles: roles, Traits: map[string][]string{"email": {name + "@example.com"}, "groups": {"a", "b"}},
		App: &identity.AppRoute{Name: appName, PublicAddr: publicAddr, SessionID: "session-of-" + name},
	}
	req := ca.UserRequest{TLSKey: must(keys.PublicDER(key.Public())), TTL: time.Hour, NoLogins: true}
	if change != nil {
		change(u, &req)
	}
	req.Identity = identity.Identity{Cluster: cluster, User: u}
	der, _, err := w.signer.User(req)
	if err != nil {
		t.Fatal(err)
	}
	return &person{w, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

// alice may use the application.
func (w *world) alice(t testing.TB) *person { return w.person(t, "alice", nil, "dev") }

func (p *person) tls(protos ...string) *tls.Config {
	c := ca.ClientTLS(func() *tls.Certificate { return &p.cert }, p.w.holder.Trust, types.RoleApp)
	c.NextProtos = protos
	return c
}

// dial opens a connection to the agent that speaks one of the protocols.
func (p *person) dial(t testing.TB, protos ...string) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", p.w.addr, p.tls(protos...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// http returns a client of HTTP/1.1, or HTTP/2.
func (p *person) http(t testing.TB, h2 bool) *http.Client {
	proto := "http/1.1"
	if h2 {
		proto = "h2"
	}
	tr := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			d := tls.Dialer{Config: p.tls(proto)}
			return d.DialContext(ctx, network, p.w.addr)
		},
		ForceAttemptHTTP2: h2, DisableCompression: true, ExpectContinueTimeout: 5 * time.Second,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

const site = "https://" + publicAddr

// answer is what came back.
type answer struct {
	*http.Response
	body string
}

func do(t testing.TB, c *http.Client, r *http.Request) answer {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("body of the answer: %v", err)
	}
	return answer{resp, string(b)}
}

func get(t testing.TB, c *http.Client, path string) answer {
	t.Helper()
	return do(t, c, must(http.NewRequest(http.MethodGet, site+path, nil)))
}

// target is an application that records what arrives, to the byte. To each request it gives
// the answer.
type target struct {
	ln net.Listener
	mu sync.Mutex
	// conns are the bytes of each connection.
	conns []*strings.Builder
	open  map[net.Conn]bool
	gone  chan struct{}
}

// record starts one. respond is called with what follows; false ends the connection.
func record(t testing.TB, respond func(r *http.Request, br *bufio.Reader, conn net.Conn) bool) *target {
	t.Helper()
	tg := &target{ln: must(net.Listen("tcp", "127.0.0.1:0")), open: map[net.Conn]bool{}, gone: make(chan struct{}, 1)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := tg.ln.Accept()
			if err != nil {
				return
			}
			tg.mu.Lock()
			b := new(strings.Builder)
			tg.open[conn] = true
			tg.mu.Unlock()
			all.Go(func() {
				defer func() {
					_ = conn.Close()
					tg.mu.Lock()
					delete(tg.open, conn)
					tg.mu.Unlock()
					select {
					case tg.gone <- struct{}{}:
					default:
					}
				}()
				br := bufio.NewReader(io.TeeReader(conn, writerFunc(func(p []byte) (int, error) {
					tg.mu.Lock()
					defer tg.mu.Unlock()
					if b.Len() == 0 {
						tg.conns = append(tg.conns, b)
					}
					b.Write(p)
					return len(p), nil
				})))
				for {
					r, err := http.ReadRequest(br)
					if err != nil || !respond(r, br, conn) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = tg.ln.Close()
		tg.mu.Lock()
		for c := range tg.open {
			_ = c.Close()
		}
		tg.mu.Unlock()
		all.Wait()
	})
	return tg
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (tg *target) uri() string { return "http://" + tg.ln.Addr().String() }

// forget begins anew.
func (tg *target) forget() {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	tg.conns = nil
}

// wait waits until no connection is left.
func (tg *target) wait() {
	for {
		tg.mu.Lock()
		n := len(tg.open)
		tg.mu.Unlock()
		if n == 0 {
			return
		}
		<-tg.gone
	}
}

// got returns what arrived so far.
func (tg *target) got() []string {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	var out []string
	for _, b := range tg.conns {
		out = append(out, b.String())
	}
	return out
}

// ok answers every request with 200 and "ok".
func ok(r *http.Request, _ *bufio.Reader, conn net.Conn) bool {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return false
	}
	_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	return err == nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

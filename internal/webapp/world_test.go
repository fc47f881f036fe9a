package webapp_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	appv1 "teleport/api/app/v1"
	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/types"
	"teleport/internal/webapp"
)

const (
	cluster = "example.com"
	agentID = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"
	// proxyHost resolves to this machine in every browser and in the tests' client.
	proxyHost = "proxy.localhost"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is a Proxy's web port, an agent and as much of Auth as they need.
type world struct {
	t       testing.TB
	signer  *ca.Signer
	trust   *ca.Trust
	cache   *cache.Cache
	handler *webapp.Handler
	// proxy is the web port; agent is what answers behind the tunnel.
	proxy, agent *httptest.Server
	client       *http.Client

	mu sync.Mutex
	// hostID is where the Proxy is told that the tunnel leads.
	hostID  string
	secrets map[string]string // secret of a session: application, or "" at the Proxy
	signed  int
	refuse  error
	entered int
	// from are the addresses that agents were told.
	from []string
	// skew is how far the Proxy's clock goes ahead.
	skew time.Duration
}

func start(t testing.TB, app http.HandlerFunc, apps ...*typesv1.AppServer) *world {
	t.Helper()
	now := time.Now()
	w := &world{t: t, cache: cache.New(), hostID: agentID, secrets: map[string]string{}}
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		cas = append(cas, must(ca.Generate(keystore.Software(), cluster, typ, now.Add(-time.Hour))))
	}
	w.signer = must(ca.NewSigner(keystore.Software(), cas, time.Now))
	w.trust = must(ca.NewTrust([]*typesv1.CertAuthority{ca.Public(cas[0]), ca.Public(cas[1])}))
	w.cache.Reset()
	w.serve(apps...)
	w.cache.Synced(1)

	agentCert := w.hostCert(agentID)
	w.agent = httptest.NewUnstartedServer(app)
	w.agent.EnableHTTP2 = true
	w.agent.TLS = ca.ServerTLS(func() *tls.Certificate { return agentCert }, func() *ca.Trust { return w.trust }, tls.RequireAndVerifyClientCert, "h2", "http/1.1")
	w.agent.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelDebug)
	w.agent.StartTLS()
	t.Cleanup(w.agent.Close)

	w.proxy = httptest.NewUnstartedServer(nil)
	_, port, _ := net.SplitHostPort(w.proxy.Listener.Addr().String())
	var err error
	w.handler, err = webapp.New(webapp.Config{
		PublicAddr: proxyHost + ":" + port, Cache: w.cache, Trust: func() *ca.Trust { return w.trust },
		Login: loginClient{w: w}, Apps: appClient{w: w},
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return time.Now().Add(w.skew)
		},
		Dial: func(ctx context.Context, caller *identity.Identity, app, clientAddr string) (net.Conn, string, error) {
			if caller.User.App.Name != app {
				return nil, "", errors.New("a session of another application")
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.agent.Listener.Addr().String())
			w.mu.Lock()
			defer w.mu.Unlock()
			w.from = append(w.from, clientAddr)
			return conn, w.hostID, err
		},
		Enter: func(*identity.Identity, string, net.Conn) (func(), error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.entered++
			return func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.entered--
			}, nil
		},
		AllowLogin: func(string) bool { return true },
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.handler.Close)
	pages := http.NewServeMux()
	w.handler.Register(pages)
	w.proxy.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.handler.Serves(r.Host) {
			w.handler.ServeHTTP(rw, r)
			return
		}
		pages.ServeHTTP(rw, r)
	})
	w.proxy.EnableHTTP2 = true
	w.proxy.TLS = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	w.proxy.TLS.Certificates = []tls.Certificate{*w.hostCert("proxy-1")}
	w.proxy.TLS.GetConfigForClient = w.handler.RequestCertificates(w.proxy.TLS)
	w.proxy.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelDebug)
	w.proxy.Config.ReadTimeout = time.Second
	w.proxy.StartTLS()
	t.Cleanup(w.proxy.Close)
	w.client = w.browser(nil, false)
	return w
}

// browser is a client with cookies. Every name resolves to the Proxy.
func (w *world) browser(cert *tls.Certificate, http2 bool) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: http2,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.proxy.Listener.Addr().String())
		},
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Jar: must(cookiejar.New(nil)), Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func appServer(name, addr string, change func(*typesv1.AppSpec)) *typesv1.AppServer {
	app := types.New(types.KindApp, name).(*typesv1.App)
	app.Spec = &typesv1.AppSpec{Uri: "http://localhost:1", PublicAddr: addr}
	if change != nil {
		change(app.Spec)
	}
	s := types.New(types.KindAppServer, types.ServerName(name, agentID)).(*typesv1.AppServer)
	s.Spec = &typesv1.AppServerSpec{HostId: agentID, Hostname: "agent", App: app}
	return s
}

func (w *world) serve(apps ...*typesv1.AppServer) {
	for _, s := range apps {
		w.cache.Apply(types.Change{Kind: types.KindAppServer, Name: s.GetMetadata().GetName(), Resource: s})
	}
}

func (w *world) hostCert(id string) *tls.Certificate {
	key := must(keys.Generate(keys.ECDSAP256))
	der, _, err := w.signer.Host(ca.HostRequest{
		Identity: identity.Identity{Cluster: cluster, Host: &identity.Host{ID: id, Name: "agent", Roles: []types.SystemRole{types.RoleApp}, Service: types.RoleApp, Generation: 1}},
		TLSKey:   must(keys.PublicDER(key.Public())),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))}
}

// userCert is what CertifyUser and SignProxy make.
func (w *world) userCert(app, source string, key []byte) []byte {
	user := &identity.User{Name: "alice", Roles: []string{"access"}, SourceIP: source}
	if app != "" {
		user.App = &identity.AppRoute{Name: app, SessionID: "6f1d0f0e-58a6-4e0e-8f6b-0d3a5e1c2b4f"}
	}
	der, _, err := w.signer.User(ca.UserRequest{Identity: identity.Identity{Cluster: cluster, User: user}, TLSKey: key, TTL: time.Hour, NoLogins: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return der
}

// program is a client that shows a certificate for an application.
func (w *world) program(app, source string) *http.Client {
	key := must(keys.Generate(keys.ECDSAP256))
	der := w.userCert(app, source, must(keys.PublicDER(key.Public())))
	return w.browser(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, false)
}

// url is an address at the Proxy's port.
func (w *world) url(host, path string) string {
	_, port, _ := net.SplitHostPort(w.proxy.Listener.Addr().String())
	return "https://" + net.JoinHostPort(host, port) + path
}

type loginClient struct {
	loginv1.LoginServiceClient
	w *world
}

func (c loginClient) CreateWebSession(_ context.Context, req *loginv1.CreateWebSessionRequest, _ ...grpc.CallOption) (*loginv1.CreateWebSessionResponse, error) {
	if req.GetUser() != "alice" || req.GetPassword() != "secret" || req.GetTotpCode() != "123456" || req.GetClientAddr() == "" {
		return nil, fault.Unauthenticated("wrong name, password or code")
	}
	return &loginv1.CreateWebSessionResponse{Token: c.w.secret(""), User: "alice", Expires: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

type appClient struct {
	appv1.AppServiceClient
	w *world
}

func (w *world) secret(app string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Repeat("s", 20) + app + string(rune('a'+len(w.secrets)))
	w.secrets[s] = app
	return s
}

func (c appClient) OpenSession(_ context.Context, req *appv1.OpenSessionRequest, _ ...grpc.CallOption) (*appv1.OpenSessionResponse, error) {
	c.w.mu.Lock()
	app, ok := c.w.secrets[req.GetWebToken()]
	c.w.mu.Unlock()
	if !ok || app != "" {
		return nil, fault.Unauthenticated("no such session")
	}
	return &appv1.OpenSessionResponse{Token: c.w.secret(req.GetApp()), Expires: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

func (c appClient) EndSession(_ context.Context, req *appv1.EndSessionRequest, _ ...grpc.CallOption) (*appv1.EndSessionResponse, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	delete(c.w.secrets, req.GetToken())
	return &appv1.EndSessionResponse{}, nil
}

func (c appClient) SignProxy(_ context.Context, req *appv1.SignProxyRequest, _ ...grpc.CallOption) (*appv1.SignProxyResponse, error) {
	c.w.mu.Lock()
	app, ok := c.w.secrets[req.GetToken()]
	refuse := c.w.refuse
	c.w.signed++
	c.w.mu.Unlock()
	switch {
	case refuse != nil:
		return nil, refuse
	case req.GetUserCertificate() != nil:
	case !ok || app != req.GetApp():
		return nil, fault.Unauthenticated("no such session")
	}
	return &appv1.SignProxyResponse{Certificate: c.w.userCert(req.GetApp(), "", req.GetTlsKey())}, nil
}

// raw sends bytes over TLS to the web port and returns the answer.
func (w *world) raw(host, request string) *http.Response {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.proxy.Listener.Addr().String(), &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func body(t testing.TB, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return string(b)
}

func cookieOf(resp *http.Response, prefix string) *http.Cookie {
	all := resp.Cookies()
	if i := slices.IndexFunc(all, func(c *http.Cookie) bool { return strings.HasPrefix(c.Name, prefix) }); i >= 0 {
		return all[i]
	}
	return nil
}

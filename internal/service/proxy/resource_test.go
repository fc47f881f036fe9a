package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/service/proxy"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// addResources says that the host serves the application and the database, and that the
// role web sees what is labelled env=web.
func (w *world) addResources(name, host, env string) {
	apply := func(r types.Resource) {
		w.cache.Apply(types.Change{Revision: 2, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: r})
	}
	web := map[string]*typesv1.Strings{"env": {Values: []string{"web"}}}
	role := types.New(types.KindRole, "web").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: web, DbLabels: web, NodeLabels: web}}
	apply(role)
	app := types.New(types.KindAppServer, types.ServerName(name, host)).(*typesv1.AppServer)
	app.Metadata.Labels = map[string]string{"env": env}
	app.Spec = &typesv1.AppServerSpec{HostId: host, Hostname: "host-1"}
	apply(app)
	db := types.New(types.KindDatabaseServer, types.ServerName(name, host)).(*typesv1.DatabaseServer)
	db.Metadata.Labels = map[string]string{"env": env}
	db.Spec = &typesv1.DatabaseServerSpec{HostId: host, Hostname: "host-1"}
	apply(db)
}

// resourceAgent starts an agent of applications and databases that says who it is, and
// then echoes.
func (w *world) resourceAgent(t testing.TB, seen chan<- tunnel.Request) (id string, stop func()) {
	t.Helper()
	h := w.join(t, types.RoleApp, types.RoleDB)
	stop = w.tunnel(t, h, func(_ context.Context, conn net.Conn, req tunnel.Request) {
		if seen != nil {
			seen <- req
		}
		echoAs(conn, h.HostID())
	})
	return h.HostID(), stop
}

// echoAs writes the 36 bytes of a host id, and then what comes.
func echoAs(conn net.Conn, id string) {
	_, _ = io.WriteString(conn, id)
	_, _ = io.Copy(conn, conn)
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
}

func appReq(name string) *proxyv1.DialRequest {
	return &proxyv1.DialRequest{Service: "App", Resource: name, Cluster: clusterName}
}

func TestUserReachesResource(t *testing.T) {
	w := newWorld(t)
	seen := make(chan tunnel.Request, 1)
	id, _ := w.resourceAgent(t, seen)
	w.addResources("grafana", id, "web")
	for _, req := range []*proxyv1.DialRequest{
		appReq("grafana"), {Service: "db", Resource: "grafana", Native: true},
	} {
		conn, resp := w.dialUser(t, w.user(t, "web"), req)
		if resp.GetError() != "" || resp.GetHostId() != id {
			t.Fatalf("dial %v = %v", req, resp)
		}
		role, _ := types.ParseSystemRole(req.GetService())
		want := tunnel.Request{Service: role, ClientAddr: conn.LocalAddr().String(), Resource: "grafana", Native: req.GetNative()}
		if got := <-seen; got != want {
			t.Errorf("the agent is asked for %v, want %v", got, want)
		}
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.CloseWrite()
		}()
		back, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(back, append([]byte(id), sent...)) {
			t.Errorf("echo of %d bytes = %d bytes, %v", len(sent), len(back), err)
		}
	}
	if got := w.recorded(); len(got) != 0 {
		t.Errorf("events %v, want none for what was allowed", got)
	}
}

// Two agents serve one application: when one goes, new connections reach the other.
func TestAnotherAgentTakesOver(t *testing.T) {
	w := newWorld(t)
	first, stop := w.resourceAgent(t, nil)
	second, _ := w.resourceAgent(t, nil)
	w.addResources("grafana", first, "web")
	w.addResources("grafana", second, "web")
	alice, met := w.user(t, "web"), map[string]bool{}
	for len(met) < 2 {
		conn, resp := w.dialUser(t, alice, appReq("grafana"))
		if resp.GetError() != "" {
			t.Fatalf("dial = %v", resp)
		}
		id := make([]byte, len(first))
		if _, err := io.ReadFull(conn, id); err != nil || string(id) != resp.GetHostId() {
			t.Fatalf("reached %q (%v), and the answer says %q", id, err, resp.GetHostId())
		}
		met[string(id)] = true
		_ = conn.Close()
	}
	stop()
	for range 10 {
		if _, resp := w.dialUser(t, alice, appReq("grafana")); resp.GetHostId() != second {
			t.Fatalf("dial = %v, want the agent that is left", resp)
		}
	}
}

func TestResourceRefused(t *testing.T) {
	w := newWorld(t)
	id, _ := w.resourceAgent(t, nil)
	w.addResources("grafana", id, "web")
	w.addResources("secret", id, "secret")
	w.addResources("asleep", "11111111-1111-4111-8111-111111111111", "web")
	for _, tt := range []struct {
		name  string
		req   *proxyv1.DialRequest
		kind  error
		says  string
		event bool
	}{
		{"unseen", appReq("secret"), fault.ErrNotFound, "tsh apps ls", true},
		{"unknown", &proxyv1.DialRequest{Service: "Db", Resource: "none"}, fault.ErrNotFound, "tsh db ls", true},
		{"not_connected", appReq("asleep"), fault.ErrUnreachable, "not connected just now", false},
		{"service", &proxyv1.DialRequest{Service: "Node", Resource: "grafana"}, fault.ErrInvalid, "App", true},
		{"no_service", &proxyv1.DialRequest{Service: "?", Resource: "grafana"}, fault.ErrInvalid, "", true},
		{"no_resource", &proxyv1.DialRequest{Service: "App"}, fault.ErrInvalid, "", true},
		{"two_things", &proxyv1.DialRequest{Service: "App", Resource: "grafana", Host: "web-1"}, fault.ErrInvalid, "both", true},
		{"other_cluster", &proxyv1.DialRequest{Service: "App", Resource: "grafana", Cluster: "other"}, fault.ErrNotFound, clusterName, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(w.recorded())
			_, resp := w.dialUser(t, w.user(t, "web"), tt.req)
			if resp.GetErrorKind() != tt.kind.Error() || !strings.Contains(resp.GetError(), tt.says) {
				t.Errorf("dial = %v, want %v with %q", resp, tt.kind, tt.says)
			}
			events := w.recorded()[before:]
			if (len(events) == 1) != tt.event {
				t.Fatalf("events = %v, want one: %t", events, tt.event)
			}
			if tt.event && (events[0].GetCode() != audit.AuthAttemptFailure.Code || events[0].GetFields().GetFields()["target"].GetStringValue() != tt.req.GetResource()) {
				t.Errorf("event = %v, want it to name %q", events[0], tt.req.GetResource())
			}
		})
	}
}

// A certificate that is for one resource opens no connection at the Proxy.
func TestRoutedCertificateIsRefused(t *testing.T) {
	w := newWorld(t)
	w.agent(t, "web-1", "web", nil)
	id, _ := w.resourceAgent(t, nil)
	w.addResources("grafana", id, "web")
	key := must(keys.Generate(keys.ECDSAP256))
	der, _, err := w.signer.User(ca.UserRequest{
		Identity: identity.Identity{Cluster: clusterName, User: &identity.User{
			Name: "alice", Roles: []string{"web"}, App: &identity.AppRoute{Name: "grafana"},
		}},
		TLSKey: must(keys.PublicDER(key.Public())), TTL: time.Hour, NoLogins: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, req := range []*proxyv1.DialRequest{appReq("grafana"), dialReq("web-1")} {
		if _, resp := w.dialUser(t, cert, req); resp.GetErrorKind() != fault.ErrDenied.Error() || !strings.Contains(resp.GetError(), "one application or database") {
			t.Errorf("dial %v = %v, want a refusal", req, resp)
		}
	}
}

// Locks end connections to resources as they end those to nodes; a locked agent is passed
// over when another one serves the same.
func TestLocksEndConnectionsToResources(t *testing.T) {
	w := newWorld(t)
	first, _ := w.resourceAgent(t, nil)
	second, _ := w.resourceAgent(t, nil)
	w.addResources("grafana", first, "web")
	w.addResources("grafana", second, "web")
	alice := w.user(t, "web")
	_, unlock := w.lock(&typesv1.LockTarget{ServerId: first})
	for range 10 {
		if _, resp := w.dialUser(t, alice, appReq("grafana")); resp.GetHostId() != second {
			t.Fatalf("dial = %v, want the agent that is not locked", resp)
		}
	}
	unlock()
	cut, resp := w.dialUser(t, alice, appReq("grafana"))
	if resp.GetError() != "" {
		t.Fatalf("dial = %v", resp)
	}
	text, _ := w.lock(&typesv1.LockTarget{User: "alice"})
	if _, resp := w.dialUser(t, alice, appReq("grafana")); resp.GetErrorKind() != fault.ErrDenied.Error() || resp.GetError() != text {
		t.Errorf("dial = %v, want %q", resp, text)
	}
	if err := w.proxy.EnforceLocks(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = cut.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(cut); errTimeout(err) {
		t.Error("the connection goes on, want its end")
	}
}

// local is a service in the process of the Proxy.
type local struct {
	id   string
	reqs chan tunnel.Request
	from chan string
}

func (l *local) Serves(service types.SystemRole) bool { return service == types.RoleApp }

func (l *local) Handle(_ context.Context, conn net.Conn, req tunnel.Request) {
	l.reqs <- req
	l.from <- conn.RemoteAddr().String()
	if req.Resource == "panics" {
		panic("a bug")
	}
	echoAs(conn, l.id)
}

func TestServiceInTheSameProcess(t *testing.T) {
	l := &local{reqs: make(chan tunnel.Request, 1), from: make(chan string, 1)}
	w := newWorld(t, func(c *proxy.Config) {
		c.Local = l
		l.id = c.Holder.HostID()
	})
	w.addResources("grafana", l.id, "web")
	conn, resp := w.dialUser(t, w.user(t, "web"), appReq("grafana"))
	if resp.GetHostId() != l.id {
		t.Fatalf("dial = %v", resp)
	}
	client := conn.LocalAddr().String()
	if req, from := <-l.reqs, <-l.from; req.Resource != "grafana" || req.ClientAddr != client || from != client {
		t.Errorf("asked for %v from %s, want grafana from %s", req, from, client)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.CloseWrite()
	}()
	if back, err := io.ReadAll(conn); err != nil || !bytes.Equal(back, append([]byte(l.id), sent...)) {
		t.Errorf("echo of %d bytes = %d bytes, %v", len(sent), len(back), err)
	}
	// What does not run here is not here.
	if _, resp := w.dialUser(t, w.user(t, "web"), &proxyv1.DialRequest{Service: "Db", Resource: "grafana"}); resp.GetErrorKind() != fault.ErrUnreachable.Error() {
		t.Errorf("dial of a service that does not run = %v", resp)
	}
	// A panic ends that connection and nothing else.
	w.addResources("panics", l.id, "web")
	conn, resp = w.dialUser(t, w.user(t, "web"), appReq("panics"))
	if resp.GetError() != "" {
		t.Fatalf("dial = %v", resp)
	}
	<-l.reqs
	<-l.from
	if back, err := io.ReadAll(conn); err != nil || len(back) != 0 {
		t.Errorf("Read = %q, %v, want the end", back, err)
	}
	if conn := w.dialTLS(t, w.user(t, "web"), mux.ALPNProxySSH); conn == nil {
		t.Error("the Proxy is gone")
	}
}

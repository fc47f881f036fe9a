package process

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/client"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// login returns a client of the user alice of the hub, whose role lets her use everything
// that is labelled env=prod.
func (s *started) login(t *testing.T) *client.Client {
	t.Helper()
	prod := map[string]*typesv1.Strings{"env": {Values: []string{"prod"}}}
	role := types.New(types.KindRole, "everything").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: prod, DbLabels: prod, DbUsers: []string{"*"}, DbNames: []string{"*"}}}
	user := types.New(types.KindUser, "alice").(*typesv1.User)
	user.Spec = &typesv1.UserSpec{Roles: []string{"everything"}}
	for _, r := range []types.Resource{role, user} {
		if err := types.Check(r); err != nil {
			t.Fatal(err)
		}
		if err := s.auth.Store().Tx().Create(r).Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := rpc.DialLocal(s.config().LocalSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := keys.Public()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := userv1.NewUserServiceClient(conn).SignUser(t.Context(), &userv1.SignUserRequest{User: "alice", Keys: public, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	creds, err := client.NewCredentials(keys, resp.GetCertificates())
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Proxy: s.addrs.Proxy, Credentials: creds})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// get asks an application for a page.
func get(ctx context.Context, c *client.Client, app string) (string, error) {
	cert, err := c.CertifyApp(ctx, app)
	if err != nil {
		return "", err
	}
	conn, err := c.DialRouted(ctx, client.ResourceDial{Service: types.RoleApp, Resource: app}, cert, "http/1.1")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET /some/page HTTP/1.1\r\nHost: %s.example.com\r\nX-Mine: yes\r\nConnection: close\r\n\r\n", app); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(body)), err
}

// reach waits until the application answers with the text.
func reach(t *testing.T, c *client.Client, app, want string) {
	t.Helper()
	last := ""
	within(t, 20*time.Second, "application "+app+" answers "+want, func() bool {
		got, err := get(t.Context(), c, app)
		if now := fmt.Sprint(got, err); now != last {
			last = now
			t.Log(now)
		}
		return err == nil && strings.Contains(got, want)
	})
}

// unreach waits until there is no such application.
func unreach(t *testing.T, c *client.Client, app string) {
	t.Helper()
	within(t, 20*time.Second, "application "+app+" is gone", func() bool {
		_, err := get(t.Context(), c, app)
		return errors.Is(err, fault.ErrNotFound)
	})
}

// page serves a text by HTTP and returns its port.
func page(t *testing.T, text string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + ln.Addr().String()
}

// servingConfig is a process with the sections.
func servingConfig(dir, name, teleport, sections string) string {
	return fmt.Sprintf("version: v3\nteleport:\n  nodename: %s\n  data_dir: %s\n%sssh_service: {enabled: no}\n%s", name, filepath.Join(dir, name), teleport, sections)
}

const hubSections = `auth_service: {enabled: yes, cluster_name: main, listen_addr: "127.0.0.1:0"}
proxy_service: {enabled: yes, web_listen_addr: "127.0.0.1:0"}
`

// One process is the whole cluster: its Proxy reaches its own applications, those of the
// file and those of the cluster, and what is served changes while it runs.
func TestServicesBesideTheProxy(t *testing.T) {
	dir := t.TempDir()
	one, two, three := page(t, "page one"), page(t, "page two"), page(t, "page three")
	sections := func(apps string) string {
		return servingConfig(dir, "hub", "", hubSections+`
app_service:
  enabled: yes
  `+apps)
	}
	hub := start(t, sections(`apps: [{name: one, uri: "`+one+`", labels: {env: prod}}, {name: secret, uri: "`+one+`", labels: {env: secret}}]`))
	c := hub.login(t)
	reach(t, c, "one", "200 page one")
	if got, err := get(t.Context(), c, "secret"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("an application that alice does not see = %q, %v", got, err)
	}

	// The list of the file changes, and with it what there is.
	hub.reload <- parse(t, sections(`apps: [{name: two, uri: "`+two+`", labels: {env: prod}}]`))
	reach(t, c, "two", "200 page two")
	unreach(t, c, "one")

	// Resources of the cluster are matched by their labels, and the matchers change, too.
	dynamic := types.New(types.KindApp, "three").(*typesv1.App)
	dynamic.Metadata.Labels = map[string]string{"env": "prod"}
	dynamic.Spec = &typesv1.AppSpec{Uri: three}
	if err := hub.auth.Store().Tx().Create(dynamic).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	hub.reload <- parse(t, sections(`resources: [{labels: {env: prod}}]`))
	reach(t, c, "three", "200 page three")
	unreach(t, c, "two")
	hub.reload <- parse(t, sections(`resources: [{labels: {env: test}}]`))
	unreach(t, c, "three")

	// The service goes, comes back, and leaves nothing behind.
	hub.reload <- parse(t, servingConfig(dir, "hub", "", hubSections))
	within(t, 10*time.Second, "no application is listed", func() bool {
		all, err := store.All[*typesv1.AppServer](t.Context(), hub.auth.Store(), types.KindAppServer)
		return err == nil && len(all) == 0
	})
	hub.reload <- parse(t, sections(`debug_app: yes`))
	within(t, 10*time.Second, "the debugging application is listed", func() bool {
		_, err := store.Get[*typesv1.AppServer](t.Context(), hub.auth.Store(), types.KindAppServer, types.ServerName("dumper", hub.holder.HostID()))
		return err == nil
	})
}

// An agent behind the Proxy serves applications and databases through its tunnel. It may
// begin with one service and get others later, with a token that has them.
func TestAgentGetsServices(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, map[string]string{"env": "prod"}, "Node", "App", "Db")
	c := hub.login(t)
	text := func(sections string) string {
		return servingConfig(dir, "agent", fmt.Sprintf("  proxy_server: %q\n  ca_pin: %q\n  join_params: {token_name: %s}\n",
			hub.addrs.Proxy, hub.auth.Trust().Pins()[0], secret), "auth_service: {enabled: no}\nproxy_service: {enabled: no}\n"+sections)
	}
	database := "db_service: {enabled: yes, databases: [{name: sales, protocol: postgres, uri: \"127.0.0.1:1\"}]}\n"
	agent := start(t, text(database))
	var cert tls.Certificate
	within(t, 10*time.Second, "the database is listed", func() (ok bool) {
		var err error
		cert, err = c.CertifyDatabase(t.Context(), client.DatabaseLogin{Database: "sales", User: "x", Name: "y"})
		return err == nil
	})
	sales := client.ResourceDial{Service: types.RoleDB, Resource: "sales"}
	dial := func() error {
		conn, err := c.DialRouted(t.Context(), sales, cert)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	within(t, 10*time.Second, "the database is reached", func() bool { return dial() == nil })

	agent.reload <- parse(t, text(database+"app_service: {enabled: yes, debug_app: yes}\n"))
	reach(t, c, "dumper", "GET /some/page HTTP/1.1")
	got, err := get(t.Context(), c, "dumper")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"X-Mine: yes", "Teleport-Jwt-Assertion: ", `"username": "alice"`} {
		if !strings.Contains(got, want) {
			t.Errorf("the debugging application shows no %q:\n%s", want, got)
		}
	}
	if err := dial(); err != nil {
		t.Errorf("the database after the change: %v", err)
	}
	before := agent.holder.Certificate(types.RoleApp)
	if err := agent.renewOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if agent.holder.Certificate(types.RoleApp).Leaf.Equal(before.Leaf) {
		t.Error("the certificate of the service was not renewed")
	}
	reach(t, c, "dumper", "GET /some/page HTTP/1.1")

	// A list that does not work leaves the old one.
	agent.reload <- parse(t, text("db_service: {enabled: yes}\napp_service: {enabled: yes, debug_app: yes}\n"))
	within(t, 10*time.Second, "the database is gone", func() bool { return errors.Is(dial(), fault.ErrNotFound) })
	agent.reload <- parse(t, text("app_service: {enabled: yes, debug_app: yes}\n"))
	within(t, 10*time.Second, "the role is given back", func() bool { return len(agent.holder.State().Roles) == 1 })
	reach(t, c, "dumper", "GET /some/page HTTP/1.1")
}

// Two agents serve one application: when one is gone, users reach the other.
func TestTwoAgentsForOneApplication(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, map[string]string{"env": "prod"}, "App")
	c := hub.login(t)
	agents := map[string]*started{}
	for _, name := range []string{"one", "two"} {
		agents[name] = start(t, servingConfig(dir, name, fmt.Sprintf("  proxy_server: %q\n  ca_pin: %q\n  join_params: {token_name: %s}\n",
			hub.addrs.Proxy, hub.auth.Trust().Pins()[0], secret), "auth_service: {enabled: no}\nproxy_service: {enabled: no}\n"+
			`app_service: {enabled: yes, apps: [{name: wiki, uri: "`+page(t, "from "+name)+`"}]}`+"\n"))
	}
	reach(t, c, "wiki", "from one")
	reach(t, c, "wiki", "from two")
	agents["one"].stop()
	for range 10 {
		if got, err := get(t.Context(), c, "wiki"); err != nil || !strings.Contains(got, "from two") {
			t.Fatalf("after one agent has stopped: %q, %v", got, err)
		}
	}
	agents["two"].stop()
	if _, err := get(t.Context(), c, "wiki"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("without an agent: %v, want ErrNotFound", err)
	}
}

// An agent that is given the address of Auth itself is told that users have no way to it.
func TestAppsNeedAProxy(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, nil, "App", "Db")
	for _, section := range []string{"app_service: {enabled: yes, debug_app: yes}\n", "db_service: {enabled: yes}\n"} {
		cfg := parse(t, servingConfig(dir, "agent", fmt.Sprintf("  auth_server: %q\n  ca_pin: %q\n  join_params: {token_name: %s}\n",
			hub.addrs.Auth, hub.auth.Trust().Pins()[0], secret), "auth_service: {enabled: no}\nproxy_service: {enabled: no}\n"+section))
		cfg.DataDir = t.TempDir()
		err := Run(t.Context(), Options{Config: cfg, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		var coded *Error
		if !errors.As(err, &coded) || coded.Code != ExitUsage || !strings.Contains(err.Error(), "teleport.proxy_server") {
			t.Errorf("Run with %q = %v, want it to ask for a Proxy", section, err)
		}
	}
}

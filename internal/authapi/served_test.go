package authapi_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "teleport/api/agent/v1"
	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keystore"
	"teleport/internal/store"
	"teleport/internal/types"
)

func newApp(name string, labels map[string]string) *typesv1.App {
	a := types.New(types.KindApp, name).(*typesv1.App)
	a.Metadata.Labels = labels
	a.Spec = &typesv1.AppSpec{Uri: "http://127.0.0.1:8080"}
	return a
}

func newDatabase(name string, labels map[string]string) *typesv1.Database {
	d := types.New(types.KindDatabase, name).(*typesv1.Database)
	d.Metadata.Labels = labels
	d.Spec = &typesv1.DatabaseSpec{Protocol: types.ProtocolPostgres, Uri: "127.0.0.1:5432"}
	return d
}

// servesApp is what the agent on the host says of the application.
func servesApp(host string, app *typesv1.App) *typesv1.AppServer {
	s := types.New(types.KindAppServer, types.ServerName(app.GetMetadata().GetName(), host)).(*typesv1.AppServer)
	s.Metadata.Labels = types.AppLabels(app)
	s.Spec = &typesv1.AppServerSpec{HostId: host, Hostname: "name-" + host, App: app}
	return s
}

func servesDatabase(host string, db *typesv1.Database) *typesv1.DatabaseServer {
	s := types.New(types.KindDatabaseServer, types.ServerName(db.GetMetadata().GetName(), host)).(*typesv1.DatabaseServer)
	s.Metadata.Labels = types.DatabaseLabels(db)
	s.Spec = &typesv1.DatabaseServerSpec{HostId: host, Hostname: "name-" + host, Database: db}
	return s
}

// serving returns the names of who serves what.
func serving(t *testing.T, st *store.Store) []string {
	t.Helper()
	var out []string
	apps, err := store.All[*typesv1.AppServer](t.Context(), st, types.KindAppServer)
	check(t, err)
	for _, s := range apps {
		out = append(out, s.GetMetadata().GetName())
	}
	databases, err := store.All[*typesv1.DatabaseServer](t.Context(), st, types.KindDatabaseServer)
	check(t, err)
	for _, s := range databases {
		out = append(out, s.GetMetadata().GetName())
	}
	return out
}

func TestServed(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
		instance.Spec = &typesv1.InstanceSpec{Hostname: "name-h1", Labels: map[string]string{"env": "prod"}}
		b.put(instance)
		s := b.connect("h1", 100, types.RoleApp, types.RoleDB)
		s.hello("", 0)
		s.batch()

		app := newApp("grafana", map[string]string{"env": "dev", "team": "db"})
		app.Spec.PublicAddr = "grafana.example.com"
		app.Spec.Rewrite = &typesv1.AppRewrite{
			Redirect: []string{"localhost"}, JwtClaims: types.JWTClaimsRoles,
			Headers: []*typesv1.AppHeader{{Name: "Authorization", Value: "Basic secret"}},
		}
		said := servesApp("h1", app)
		said.Spec.Hostname = "payroll"
		said.Spec.Health = "healthy"
		s.announce(said, false)
		got, err := store.Get[*typesv1.AppServer](t.Context(), b.store, types.KindAppServer, "grafana@h1")
		check(t, err)
		if l := types.AppServerLabels(got); l["env"] != "prod" || l["team"] != "db" {
			t.Errorf("labels = %v: those of the join token must win", l)
		}
		spec := got.GetSpec()
		if spec.GetHostname() != "name-h1" || spec.GetHostId() != "h1" || spec.GetHealth() != "healthy" {
			t.Errorf("stored %v", spec)
		}
		if rw := spec.GetApp().GetSpec().GetRewrite(); len(rw.GetHeaders()) != 0 || rw.GetJwtClaims() != types.JWTClaimsRoles || len(rw.GetRedirect()) != 1 {
			t.Errorf("rewrite = %v: the headers are the agent's alone", rw)
		}

		db := newDatabase("pg", nil)
		db.Spec.Tls = &typesv1.DatabaseTLS{Mode: types.TLSVerifyCA, CaCert: testCertificate(t)}
		db.Spec.AdminUser = &typesv1.DatabaseAdminUser{Name: "admin"}
		s.announce(servesDatabase("h1", db), false)
		gotDB, err := store.Get[*typesv1.DatabaseServer](t.Context(), b.store, types.KindDatabaseServer, "pg@h1")
		check(t, err)
		if spec := gotDB.GetSpec().GetDatabase().GetSpec(); spec.GetTls().GetCaCert() != "" || spec.GetTls().GetMode() != types.TLSVerifyCA || spec.GetAdminUser().GetName() != "admin" {
			t.Errorf("database = %v", spec)
		}
		if gotDB.GetMetadata().GetLabels()["env"] != "prod" {
			t.Errorf("labels = %v", gotDB.GetMetadata().GetLabels())
		}

		// Each for itself.
		s.announce(servesApp("h1", newApp("wiki", nil)), false)
		if got := serving(t, b.store); !slices.Equal(got, []string{"grafana@h1", "wiki@h1", "pg@h1"}) {
			t.Errorf("serving %v", got)
		}
		s.announce(servesApp("h1", newApp("wiki", nil)), true)
		if got := serving(t, b.store); !slices.Equal(got, []string{"grafana@h1", "pg@h1"}) {
			t.Errorf("serving %v after one was withdrawn", got)
		}
		time.Sleep(time.Hour)
		if got := serving(t, b.store); len(got) != 2 {
			t.Errorf("serving %v after an hour", got)
		}
		s.cancel()
		time.Sleep(11 * time.Minute)
		if got := serving(t, b.store); len(got) != 0 {
			t.Errorf("serving %v after the stream broke", got)
		}
	})
}

// TestServedThatCannotBeListed: one bad resource does not end the stream, which also
// brings the locks.
func TestServedThatCannotBeListed(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		proxy := types.New(types.KindProxy, "p1").(*typesv1.Server)
		proxy.Spec = &typesv1.ServerSpec{Hostname: "p", PublicAddrs: []string{"proxy.example.com:443"}}
		b.put(proxy)
		s := b.connect("h1", 100, types.RoleApp)
		s.hello("", 0)
		s.batch()
		s.announce(servesApp("h1", newApp("good", nil)), false)
		s.announce(servesApp("h1", newApp("turns-bad", nil)), false)
		taken := newApp("taken", nil)
		taken.Spec.PublicAddr = "Proxy.example.com"
		other := servesApp("h1", newApp("other", nil))
		other.Spec.App.Metadata.Name = "another"
		empty := servesApp("h1", newApp("empty", nil))
		empty.Spec.App = nil
		bad := servesApp("h1", newApp("turns-bad", nil))
		bad.Spec.App.Spec.Uri = "gopher://x"
		for _, r := range []*typesv1.AppServer{servesApp("h1", taken), other, empty, bad} {
			s.announce(r, false)
		}
		if got := serving(t, b.store); !slices.Equal(got, []string{"good@h1"}) {
			t.Errorf("serving %v", got)
		}
		s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Ping{Ping: &agentv1.Ping{Sequence: 1}}}
		if s.recv().GetPong() == nil {
			t.Error("no pong")
		}
		s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(t, servesApp("h2", newApp("good", nil)))}}}
		want(t, <-s.done, fault.ErrDenied, "h1")
	})
}

// TestManyServed: as many as a host may serve are listed, no more, and soon.
func TestManyServed(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		const most = 10_000
		s := b.connect("h1", 100, types.RoleDB)
		s.hello("", 0)
		s.batch()
		begin := time.Now()
		for i := range most + 5 {
			r := servesDatabase("h1", newDatabase(fmt.Sprintf("db-%d", i), nil))
			s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(t, r)}}}
		}
		synctest.Wait()
		if n := len(serving(t, b.store)); n != most {
			t.Errorf("%d are listed, want %d", n, most)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %s of waiting", took)
		}
		for i := range most {
			r := servesDatabase("h1", newDatabase(fmt.Sprintf("db-%d", i), nil))
			s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(t, r), Gone: true}}}
		}
		time.Sleep(time.Second) // these are more than come at once
		if n := len(serving(t, b.store)); n != 0 {
			t.Errorf("%d are listed after all were withdrawn", n)
		}
		// Who goes on announcing waits, and is not cut.
		for range 300 {
			s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(t, servesDatabase("h1", newDatabase("pg", nil)))}}}
		}
		time.Sleep(time.Minute)
		if got := serving(t, b.store); !slices.Equal(got, []string{"pg@h1"}) {
			t.Errorf("serving %v", got)
		}
		s.cancel()
		<-s.done
	})
}

// TestResourcesOfAudiences: agents get the resources that they may serve, Proxies who
// serves them.
func TestResourcesOfAudiences(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		b.put(newApp("grafana", nil), newDatabase("pg", nil), servesApp("h9", newApp("grafana", nil)), servesDatabase("h9", newDatabase("pg", nil)))
		for _, tt := range []struct {
			host  string
			roles []types.SystemRole
			want  []string
		}{
			{"n", []types.SystemRole{types.RoleNode}, []string{"role/r1"}},
			{"a", []types.SystemRole{types.RoleApp, types.RoleNode}, []string{"app/grafana", "role/r1"}},
			{"d", []types.SystemRole{types.RoleDB}, []string{"db/pg", "role/r1"}},
			{"ad", []types.SystemRole{types.RoleDB, types.RoleApp}, []string{"app/grafana", "db/pg", "role/r1"}},
			{"p", []types.SystemRole{types.RoleProxy}, []string{"app_server/grafana@h9", "db_server/pg@h9", "node/n1", "role/r1"}},
			{"pa", []types.SystemRole{types.RoleProxy, types.RoleApp}, []string{"app/grafana", "app_server/grafana@h9", "db_server/pg@h9", "node/n1", "role/r1"}},
		} {
			s := b.connect(tt.host, 100, tt.roles...)
			s.hello("", 0)
			if got, _ := s.batch(); !slices.Equal(got, tt.want) {
				t.Errorf("%v got %v, want %v", tt.roles, got, tt.want)
			}
			s.cancel()
			<-s.done
		}

		// A heartbeat is no change; another address is.
		s := b.connect("p", 100, types.RoleProxy)
		s.hello("", 0)
		s.batch()
		same := servesApp("h9", newApp("grafana", nil))
		b.put(same)
		s.quiet()
		same.Spec.Health = "no answer"
		b.put(same)
		s.expect("app_server/grafana@h9")
		s.cancel()

		// Who serves more than before starts over, and misses nothing.
		s = b.connect("h1", 100, types.RoleNode)
		epoch := s.hello("", 0).GetEpoch()
		_, revision := s.batch()
		s.cancel()
		<-s.done
		s = b.connect("h1", 100, types.RoleNode, types.RoleApp)
		if !s.hello(epoch, revision).GetSnapshot() {
			t.Error("a host with a new role resumed where it was")
		}
		s.expect("app/grafana", "role/r1")
		s.cancel()
	})
}

func TestWriteAppsAndDatabases(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	create := func(r types.Resource) error {
		_, err := client.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, r)})
		return err
	}
	upsert := func(r types.Resource) error {
		_, err := client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, r)})
		return err
	}
	proxy := types.New(types.KindProxy, "p1").(*typesv1.Server)
	proxy.Spec = &typesv1.ServerSpec{Hostname: "p", PublicAddrs: []string{"proxy.example.com:443"}}
	e.put(proxy)
	app := newApp("grafana", map[string]string{"env": "dev"})
	app.Spec.PublicAddr = "g.example.com"
	check(t, create(app))
	check(t, upsert(app))
	check(t, create(newDatabase("pg", nil)))
	check(t, upsert(newDatabase("pg", map[string]string{"env": "dev"})))
	second := newApp("second", nil)
	for _, addr := range []string{"G.example.com", "proxy.example.com"} {
		second.Spec.PublicAddr = addr
		want(t, create(second), fault.ErrInvalid, "public_addr")
	}
	want(t, create(servesApp("h1", newApp("x", nil))), fault.ErrUnsupported, "not written by people")
	for _, kind := range []string{types.KindApp, types.KindDatabase} {
		name := map[string]string{types.KindApp: "grafana", types.KindDatabase: "pg"}[kind]
		_, err := client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: kind, Name: name})
		check(t, err)
	}
	if got, want := strings.Join(e.codes(), " "), "TAP03I TAP04I TDB03I TDB04I TAP05I TDB05I"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	err := create(newApp("a", nil))
	check(t, err)
	_, err = resourcev1.NewResourceServiceClient(e.dial(e.user("bob", "access"))).CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, newApp("b", nil))})
	want(t, err, fault.ErrDenied, "")
}

// TestRemovedHostServesNothing: what it served goes with it.
func TestRemovedHostServesNothing(t *testing.T) {
	e := newEnv(t)
	instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "one"}
	e.put(instance, servesApp("h1", newApp("a", nil)), servesApp("h2", newApp("a", nil)), servesDatabase("h1", newDatabase("pg", nil)))
	client := resourcev1.NewResourceServiceClient(e.admin())
	_, err := client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: types.KindInstance, Name: "h1"})
	check(t, err)
	if got := serving(t, e.store); !slices.Equal(got, []string{"a@h2"}) {
		t.Errorf("serving %v", got)
	}
	_, err = client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: types.KindAppServer, Name: "a@h2"})
	check(t, err)
	if _, err := e.store.Get(t.Context(), types.KindAppServer, "a@h2"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("after the deletion: %v", err)
	}
}

// testCertificate returns some certificate, PEM.
func testCertificate(t *testing.T) string {
	t.Helper()
	a, err := ca.Generate(keystore.Software(), cluster, ca.TypeHost, time.Now())
	check(t, err)
	return a.GetSpec().GetActiveKeys().GetTls()[0].GetCert()
}

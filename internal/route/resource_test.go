package route_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/route"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// How an agent of a test behaves.
const (
	answers = iota
	refuses
	silent
)

// agents are the hosts that have a tunnel; what they are asked for is kept.
type agents struct {
	behave map[string]int

	mu    sync.Mutex
	asked []string
	reqs  []tunnel.Request
	open  int
}

func (a *agents) Connected(id string) bool { _, ok := a.behave[id]; return ok }

func (a *agents) Serves(id string, service types.SystemRole) bool {
	return a.Connected(id) && (service == types.RoleApp || service == types.RoleDB)
}

func (a *agents) Dial(ctx context.Context, id string, req tunnel.Request) (net.Conn, error) {
	a.mu.Lock()
	a.asked, a.reqs = append(a.asked, id), append(a.reqs, req)
	a.mu.Unlock()
	switch a.behave[id] {
	case refuses:
		return nil, fault.Unreachable("host %s: too many connections", id)
	case silent:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
	here, there := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, there); a.mu.Lock(); a.open--; a.mu.Unlock() }()
	return here, nil
}

// newAgents returns a Router in whose cluster hosts a, b and c serve what the tests ask
// for, and the roles see what is labelled env=prod.
func newAgents(t testing.TB, behave map[string]int, edit ...func(*route.Config)) (*route.Router, *agents, *cache.Cache) {
	t.Helper()
	c := cache.New()
	add := func(r types.Resource) {
		c.Apply(types.Change{Revision: 1, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: r})
	}
	name := types.New(types.KindClusterName, types.KindClusterName).(*typesv1.ClusterName)
	name.Spec = &typesv1.ClusterNameSpec{ClusterName: "prod"}
	add(name)
	prod := map[string]*typesv1.Strings{"env": {Values: []string{"prod"}}}
	for role, allow := range map[string]*typesv1.RoleConditions{"apps": {AppLabels: prod}, "dbs": {DbLabels: prod}} {
		r := types.New(types.KindRole, role).(*typesv1.Role)
		r.Spec = &typesv1.RoleSpec{Allow: allow}
		add(r)
	}
	serve := func(resource, host, env, health string, expires time.Time) {
		app := types.New(types.KindAppServer, types.ServerName(resource, host)).(*typesv1.AppServer)
		app.Metadata.Labels = map[string]string{"env": env}
		app.Metadata.Expires = timestamppb.New(expires)
		app.Spec = &typesv1.AppServerSpec{HostId: host, Hostname: "host-" + host, Health: health}
		add(app)
		db := types.New(types.KindDatabaseServer, types.ServerName(resource, host)).(*typesv1.DatabaseServer)
		db.Metadata = app.GetMetadata()
		db.Spec = &typesv1.DatabaseServerSpec{HostId: host, Hostname: "host-" + host, Health: health}
		add(db)
	}
	soon := time.Now().Add(time.Hour)
	for _, host := range []string{"a", "b", "c"} {
		serve("shared", host, "prod", "", soon)
	}
	serve("ill", "a", "prod", "connection refused", soon)
	serve("ill", "b", "prod", "healthy", soon)
	serve("hidden", "a", "secret", "", soon)
	serve("mixed", "a", "secret", "", soon)
	serve("mixed", "b", "prod", "", soon)
	serve("past", "a", "prod", "", time.Now().Add(-time.Second))
	serve("lone", "c", "prod", "", soon)
	c.Synced(1)
	live := &agents{behave: behave}
	cfg := route.Config{Cache: c, Tunnels: live}
	for _, e := range edit {
		e(&cfg)
	}
	return route.New(cfg), live, c
}

const from = "192.0.2.7:1"

func TestDialResource(t *testing.T) {
	all := map[string]int{"a": answers, "b": answers}
	for _, tt := range []struct {
		name     string
		behave   map[string]int
		caller   *identity.Identity
		service  types.SystemRole
		resource string
		want     string // hosts that it may be
		err      error
		says     string
	}{
		{name: "app", behave: all, caller: user("apps"), service: types.RoleApp, resource: "shared", want: "ab"},
		{name: "database", behave: all, caller: user("dbs"), service: types.RoleDB, resource: "shared", want: "ab"},
		{name: "the_healthy_one", behave: all, caller: user("apps"), service: types.RoleApp, resource: "ill", want: "b"},
		{name: "an_ill_one_is_better_than_none", behave: map[string]int{"a": answers}, caller: user("apps"), service: types.RoleApp, resource: "ill", want: "a"},
		{name: "only_where_it_is_seen", behave: all, caller: user("apps"), service: types.RoleApp, resource: "mixed", want: "b"},
		{name: "the_next_one", behave: map[string]int{"a": refuses, "b": refuses, "c": answers}, caller: user("apps"), service: types.RoleApp, resource: "shared", want: "c"},
		{name: "roles_of_apps_are_not_those_of_databases", behave: all, caller: user("apps"), service: types.RoleDB, resource: "shared", err: fault.ErrNotFound, says: "tsh db ls"},
		{name: "hidden", behave: all, caller: user("apps"), service: types.RoleApp, resource: "hidden", err: fault.ErrNotFound, says: "tsh apps ls"},
		{name: "unknown", behave: all, caller: user("apps"), service: types.RoleApp, resource: "none", err: fault.ErrNotFound, says: `no application "none"`},
		{name: "expired", behave: all, caller: user("apps"), service: types.RoleApp, resource: "past", err: fault.ErrNotFound},
		{name: "not_connected", caller: user("dbs"), service: types.RoleDB, resource: "shared", err: fault.ErrUnreachable, says: "none of the 3 agents"},
		{name: "the_one_not_connected", behave: all, caller: user("dbs"), service: types.RoleDB, resource: "lone", err: fault.ErrUnreachable, says: `on "host-c", is not connected`},
		{name: "all_refuse", behave: map[string]int{"a": refuses, "b": refuses}, caller: user("apps"), service: types.RoleApp, resource: "shared", err: fault.ErrUnreachable, says: "host a: too many connections"},
		{name: "bad_name", behave: all, caller: user("apps"), service: types.RoleApp, resource: "A@b", err: fault.ErrInvalid},
		{name: "bad_database", behave: all, caller: user("dbs"), service: types.RoleDB, resource: strings.Repeat("x", 2000), err: fault.ErrInvalid},
		{name: "other_service", behave: all, caller: user("apps"), service: types.RoleNode, resource: "shared", err: fault.ErrInvalid},
		{name: "nobody", behave: all, service: types.RoleApp, resource: "shared", err: fault.ErrDenied},
		{name: "a_host", behave: all, caller: &identity.Identity{Host: &identity.Host{ID: "a"}}, service: types.RoleApp, resource: "shared", err: fault.ErrDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, live, _ := newAgents(t, tt.behave)
			conn, host, err := r.DialResource(t.Context(), tt.caller, tt.service, tt.resource, true, from)
			if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("DialResource = %v, want %v with %q", err, tt.err, tt.says)
			}
			if err != nil {
				if len(err.Error()) > 1000 {
					t.Errorf("error of %d bytes", len(err.Error()))
				}
				return
			}
			defer conn.Close()
			if !strings.Contains(tt.want, host) {
				t.Errorf("DialResource reached %q, want one of %q", host, tt.want)
			}
			want := tunnel.Request{Service: tt.service, ClientAddr: from, Resource: tt.resource, Native: true}
			if got := live.reqs[0]; got != want {
				t.Errorf("the agent was asked for %v, want %v", got, want)
			}
		})
	}
}

func TestLoadIsSpread(t *testing.T) {
	r, _, _ := newAgents(t, map[string]int{"a": answers, "b": answers, "c": answers})
	first := map[string]int{}
	for range 300 {
		hosts, err := r.FindResource(user("apps"), types.RoleApp, "shared")
		if err != nil || len(hosts) != 3 {
			t.Fatalf("FindResource = %q, %v", hosts, err)
		}
		first[hosts[0]]++
	}
	for host, n := range first {
		if n < 50 {
			t.Errorf("host %s is first %d times of 300, want about 100: %v", host, n, first)
		}
	}
}

func TestUnusableAgents(t *testing.T) {
	locked := func(bad string) func(*route.Config) {
		return func(c *route.Config) {
			c.Usable = func(host string) error {
				if strings.Contains(bad, host) {
					return fault.Denied("host %s is locked", host)
				}
				return nil
			}
		}
	}
	all := map[string]int{"a": answers, "b": answers, "c": answers}
	r, _, _ := newAgents(t, all, locked("ac"))
	for range 20 {
		if hosts, err := r.FindResource(user("apps"), types.RoleApp, "shared"); err != nil || len(hosts) != 1 || hosts[0] != "b" {
			t.Fatalf("FindResource = %q, %v, want the one that is not locked", hosts, err)
		}
	}
	r, _, _ = newAgents(t, all, locked("abc"))
	if _, err := r.FindResource(user("apps"), types.RoleApp, "shared"); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("FindResource = %v, want the lock as the reason", err)
	}
}

// The host of an agent that was removed is not asked, although its record is there.
func TestRemovedAgent(t *testing.T) {
	r, _, c := newAgents(t, map[string]int{"a": answers, "b": answers, "c": answers})
	c.Apply(types.Change{Kind: types.KindInstance, Name: "b", Resource: &typesv1.Instance{Kind: types.KindInstance}})
	if hosts, err := r.FindResource(user("apps"), types.RoleApp, "shared"); err != nil || len(hosts) != 1 || hosts[0] != "b" {
		t.Errorf("FindResource = %q, %v, want b alone", hosts, err)
	}
}

// An agent that says nothing costs a moment and not the connection, and leaves nothing
// behind.
func TestSilentAgents(t *testing.T) {
	for silents := range 3 {
		t.Run(fmt.Sprint(silents), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				behave := map[string]int{"a": silent, "b": silent, "c": answers}
				for _, host := range []string{"a", "b"}[silents:] {
					behave[host] = answers
				}
				r, live, _ := newAgents(t, behave)
				begin := time.Now()
				conn, host, err := r.DialResource(t.Context(), user("apps"), types.RoleApp, "shared", false, from)
				if err != nil || behave[host] != answers {
					t.Fatalf("DialResource = %q, %v", host, err)
				}
				if took := time.Since(begin); took > time.Duration(silents)*2*time.Second {
					t.Errorf("it took %s with %d silent agents", took, silents)
				}
				synctest.Wait()
				if live.open != 1 {
					t.Errorf("%d connections are open, want one", live.open)
				}
				_ = conn.Close()
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := newAgents(t, map[string]int{"a": silent, "b": silent, "c": silent})
		begin := time.Now()
		_, _, err := r.DialResource(t.Context(), user("apps"), types.RoleApp, "shared", false, from)
		if !errors.Is(err, fault.ErrUnreachable) || time.Since(begin) > 15*time.Second {
			t.Errorf("DialResource = %v after %s, want an end in time", err, time.Since(begin))
		}
	})
}

func FuzzFindResource(f *testing.F) {
	f.Add("App", "shared")
	f.Add("Db", "a@b")
	f.Add("", "\x00")
	r, _, _ := newAgents(f, map[string]int{"a": answers})
	f.Fuzz(func(t *testing.T, service, name string) {
		hosts, err := r.FindResource(user("apps"), types.SystemRole(service), name)
		if (len(hosts) == 0) == (err == nil) {
			t.Fatalf("FindResource = %v, %v", hosts, err)
		}
		if err != nil && (fault.Kind(err) == nil || len(err.Error()) > 1000) {
			t.Fatalf("error without a kind or too long: %v", err)
		}
	})
}

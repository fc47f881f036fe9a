package route_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
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

const (
	web1 = "11111111-1111-4111-8111-111111111111"
	web2 = "22222222-2222-4222-8222-222222222222"
	db   = "33333333-3333-4333-8333-333333333333"
	gone = "44444444-4444-4444-8444-444444444444"
	twin = "55555555-5555-4555-8555-555555555555"
	fake = "66666666-6666-4666-8666-666666666666"
	past = "77777777-7777-4777-8777-777777777777"
)

// tunnels are the hosts that have one.
type tunnels map[string]bool

func (t tunnels) Connected(id string) bool { return t[id] }

func (t tunnels) Serves(string, types.SystemRole) bool { return false }

func (t tunnels) Dial(_ context.Context, id string, req tunnel.Request) (net.Conn, error) {
	if !t[id] || req != (tunnel.Request{Service: types.RoleNode, ClientAddr: "192.0.2.7:1"}) {
		return nil, fault.Unreachable("no tunnel of %s", id)
	}
	a, b := net.Pipe()
	_ = b.Close()
	return a, nil
}

func newRouter(t *testing.T, live tunnels, edit ...func(*route.Config)) *route.Router {
	t.Helper()
	c := cache.New()
	add := func(r types.Resource) {
		c.Apply(types.Change{Revision: 1, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: r})
	}
	name := types.New(types.KindClusterName, types.KindClusterName).(*typesv1.ClusterName)
	name.Spec = &typesv1.ClusterNameSpec{ClusterName: "prod"}
	add(name)
	for role, env := range map[string]string{"web": "web", "all": "*", "none": ""} {
		r := types.New(types.KindRole, role).(*typesv1.Role)
		r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Logins: []string{"root"}}}
		if env != "" {
			r.Spec.Allow.NodeLabels = map[string]*typesv1.Strings{"env": {Values: []string{env}}}
		}
		add(r)
	}
	joiner := types.New(types.KindRole, "joiner").(*typesv1.Role)
	joiner.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{JoinSessions: []*typesv1.SessionJoinPolicy{
		{Name: "watch", Roles: []string{"*"}, Kinds: []string{"ssh"}, Modes: []string{"observer"}},
	}}}
	add(joiner)
	node := func(id, host, env string, tunnel bool) {
		n := types.New(types.KindNode, id).(*typesv1.Server)
		n.Metadata.Labels = map[string]string{"env": env}
		n.Spec = &typesv1.ServerSpec{Hostname: host, UseTunnel: tunnel, Addr: "node.test:3022"}
		add(n)
	}
	node(web1, "web", "web", true)
	node(web2, "web", "web", true)
	node(db, "DB", "db", false)
	node(gone, "gone", "web", true)
	node(twin, "gone.prod", "twin", false)
	node(fake, db, "fake", false) // has another's id for its name
	node(past, "past", "web", false)
	n, _ := c.Node(past)
	n.Metadata.Expires = timestamppb.New(time.Now().Add(-time.Second))
	c.Synced(1)
	cfg := route.Config{Cache: c, Tunnels: live}
	for _, e := range edit {
		e(&cfg)
	}
	return route.New(cfg)
}

func user(roles ...string) *identity.Identity {
	return &identity.Identity{Cluster: "prod", User: &identity.User{Name: "alice", Roles: roles}}
}

func TestFind(t *testing.T) {
	one := tunnels{web2: true}
	both := tunnels{web1: true, web2: true}
	tests := []struct {
		name   string
		live   tunnels
		caller *identity.Identity
		target route.Target
		want   string
		err    error
		says   string
	}{
		{name: "by_name", live: one, caller: user("all"), target: route.Target{Host: "db"}, want: db},
		{name: "any_case", live: one, caller: user("all"), target: route.Target{Host: "dB"}, want: db},
		{name: "with_cluster", live: one, caller: user("all"), target: route.Target{Host: "db.prod", Cluster: "prod"}, want: db},
		{name: "by_id", live: both, caller: user("all"), target: route.Target{Host: web1}, want: web1},
		{name: "by_id_with_cluster", live: both, caller: user("all"), target: route.Target{Host: web1 + ".prod"}, want: web1},
		{name: "the_available_one", live: one, caller: user("web"), target: route.Target{Host: "web"}, want: web2},
		{name: "several", live: both, caller: user("web"), target: route.Target{Host: "web"}, err: fault.ErrInvalid, says: web1 + ", " + web2},
		{name: "none_of_several", live: tunnels{}, caller: user("web"), target: route.Target{Host: "web"}, err: fault.ErrUnreachable, says: "none of the 2"},
		{name: "unseen_by_name", live: one, caller: user("web"), target: route.Target{Host: "db"}, err: fault.ErrNotFound, says: "tsh ls"},
		{name: "joins_by_id", live: one, caller: user("joiner"), target: route.Target{Host: db, Join: true}, want: db},
		{name: "joins_by_name", live: one, caller: user("joiner"), target: route.Target{Host: "db", Join: true}, err: fault.ErrNotFound},
		{name: "joins_nothing", live: one, caller: user("web"), target: route.Target{Host: db, Join: true}, err: fault.ErrNotFound},
		{name: "does_not_join", live: one, caller: user("joiner"), target: route.Target{Host: db}, err: fault.ErrNotFound},
		{name: "unseen_by_id", live: one, caller: user("web"), target: route.Target{Host: db}, err: fault.ErrNotFound},
		{name: "no_labels_allowed", live: one, caller: user("none"), target: route.Target{Host: "db"}, err: fault.ErrNotFound},
		{name: "unknown_role", live: one, caller: user("made-up"), target: route.Target{Host: "db"}, err: fault.ErrNotFound},
		{name: "unknown_host", live: one, caller: user("all"), target: route.Target{Host: "10.0.0.1"}, err: fault.ErrNotFound},
		{name: "other_cluster", live: one, caller: user("all"), target: route.Target{Host: "db", Cluster: "test"}, err: fault.ErrNotFound, says: `"prod", not "test"`},
		{name: "any_case_cluster", live: one, caller: user("all"), target: route.Target{Host: "db.PROD", Cluster: "Prod"}, want: db},
		{name: "id_before_name", live: one, caller: user("all"), target: route.Target{Host: db}, want: db},
		{name: "upper_case_id", live: one, caller: user("all"), target: route.Target{Host: strings.ToUpper(db)}, want: db},
		{name: "name_that_ends_in_cluster", live: tunnels{gone: true}, caller: user("all"), target: route.Target{Host: "gone.prod"}, err: fault.ErrInvalid, says: gone + ", " + twin},
		{name: "expired", live: one, caller: user("all"), target: route.Target{Host: "past"}, err: fault.ErrNotFound},
		{name: "expired_id", live: one, caller: user("all"), target: route.Target{Host: past}, err: fault.ErrNotFound},
		{name: "control_characters", live: one, caller: user("all"), target: route.Target{Host: "db\x1b[31m"}, err: fault.ErrInvalid, says: `\x1b`},
		{name: "port", live: one, caller: user("all"), target: route.Target{Host: "db", Port: 70000}, err: fault.ErrInvalid, says: "port 70000"},
		{name: "other_port", live: one, caller: user("all"), target: route.Target{Host: "db", Port: 443}, want: db},
		{name: "empty", live: one, caller: user("all"), err: fault.ErrInvalid},
		{name: "huge", live: one, caller: user("all"), target: route.Target{Host: strings.Repeat("a", 1000)}, err: fault.ErrInvalid},
		{name: "not_a_user", live: one, caller: &identity.Identity{Host: &identity.Host{ID: web1}}, target: route.Target{Host: "db"}, err: fault.ErrDenied},
		{name: "nobody", live: one, target: route.Target{Host: "db"}, err: fault.ErrDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newRouter(t, tt.live).Find(tt.caller, tt.target)
			if !errors.Is(err, tt.err) || (err != nil && !strings.Contains(err.Error(), tt.says)) {
				t.Fatalf("Find = %v, want %v with %q", err, tt.err, tt.says)
			}
			if id := got.GetMetadata().GetName(); id != tt.want {
				t.Errorf("Find = %q, want %q", id, tt.want)
			}
		})
	}
}

// The node of a host that was removed is not found, by name or by id, even while
// its resource is there.
func TestFindRemoved(t *testing.T) {
	var c *cache.Cache
	r := newRouter(t, tunnels{web1: true, web2: true}, func(cfg *route.Config) { c = cfg.Cache })
	for _, id := range []string{web2, db} {
		c.Apply(types.Change{Kind: types.KindInstance, Name: id, Resource: &typesv1.Instance{Kind: types.KindInstance}})
	}
	if node, err := r.Find(user("web"), route.Target{Host: "web"}); err != nil || node.GetMetadata().GetName() != web2 {
		t.Errorf("Find(web) = %v, %v, want the one whose host is left", node, err)
	}
	if node, err := r.Find(user("web"), route.Target{Host: web1}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("Find(%s) = %v, %v, want ErrNotFound", web1, node, err)
	}
}

func TestDialThroughTunnel(t *testing.T) {
	r := newRouter(t, tunnels{web2: true})
	conn, node, err := r.Dial(t.Context(), user("web"), route.Target{Host: "web"}, "192.0.2.7:1")
	if err != nil || node.GetMetadata().GetName() != web2 {
		t.Fatalf("Dial = %v, %v", node, err)
	}
	_ = conn.Close()
	if _, node, err = r.Dial(t.Context(), user("web"), route.Target{Host: "gone"}, "192.0.2.7:1"); !errors.Is(err, fault.ErrUnreachable) || node == nil || !strings.HasPrefix(err.Error(), `node "gone" cannot be reached just now: `) {
		t.Errorf("Dial of a node without tunnel = %v, %v", node, err)
	}
}

// pretend is a connection that says it is to another address.
type pretend struct {
	net.Conn
	remote net.Addr
}

func (p pretend) RemoteAddr() net.Addr { return p.remote }

func TestDialRefusesAddressesThatNoNodeHas(t *testing.T) {
	for _, addr := range []string{
		"169.254.169.254", "fe80::1", "224.0.0.1", "fd00:ec2::254", "0.0.0.0", "::", "::ffff:169.254.169.254", "100.100.100.200",
		"168.63.129.16", "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1",
	} {
		t.Run(addr, func(t *testing.T) {
			r := newRouter(t, nil, func(c *route.Config) {
				c.DialTCP = func(context.Context, string, string) (net.Conn, error) {
					a, _ := net.Pipe()
					return pretend{a, &net.TCPAddr{IP: net.ParseIP(addr), Port: 3022}}, nil
				}
			})
			if _, _, err := r.Dial(t.Context(), user("all"), route.Target{Host: "db"}, "192.0.2.7:1"); !errors.Is(err, fault.ErrDenied) {
				t.Errorf("Dial = %v, want a refusal", err)
			}
		})
	}
}

// listener is a node on this machine that is not behind a tunnel.
func listener(t *testing.T) (addr string, accepted func() bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String(), func() bool {
		_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond))
		c, err := ln.Accept()
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
}

func TestLoopbackIsForTheOwnNode(t *testing.T) {
	addr, accepted := listener(t)
	edit := func(may bool) func(*route.Config) {
		return func(c *route.Config) {
			n, _ := c.Cache.Node(db)
			n.Spec.Addr = addr
			c.Certificate = func() *tls.Certificate { return nil }
			c.Loopback = func(id string) bool { return may && id == db }
		}
	}
	_, _, err := newRouter(t, nil, edit(false)).Dial(t.Context(), user("all"), route.Target{Host: "db"}, "192.0.2.7:1")
	if !errors.Is(err, fault.ErrDenied) || accepted() {
		t.Errorf("Dial = %v, want a refusal before anything is connected", err)
	}
	// Allowed, it connects; without a certificate it cannot say who the client is.
	_, _, err = newRouter(t, nil, edit(true)).Dial(t.Context(), user("all"), route.Target{Host: "db"}, "192.0.2.7:1")
	if !errors.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") || !accepted() {
		t.Errorf("Dial = %v, want an error about the certificate, after connecting", err)
	}
}

func TestBadRegisteredAddress(t *testing.T) {
	for _, addr := range []string{"", "nowhere", "unix:///var/run/docker.sock"} {
		r := newRouter(t, nil, func(c *route.Config) {
			n, _ := c.Cache.Node(db)
			n.Spec.Addr = addr
		})
		if _, _, err := r.Dial(t.Context(), user("all"), route.Target{Host: "db"}, "192.0.2.7:1"); !errors.Is(err, fault.ErrUnreachable) {
			t.Errorf("Dial with address %q = %v, want ErrUnreachable", addr, err)
		}
	}
}

func FuzzFind(f *testing.F) {
	for _, s := range []string{"web", "db.prod", web1, ".prod", "a b", "\x00"} {
		f.Add(s, "prod", uint32(22))
	}
	r := newRouter(&testing.T{}, tunnels{web1: true})
	f.Fuzz(func(t *testing.T, host, cluster string, port uint32) {
		n, err := r.Find(user("web"), route.Target{Host: host, Cluster: cluster, Port: port})
		if (n == nil) == (err == nil) {
			t.Fatalf("Find = %v, %v", n, err)
		}
		if err != nil && (fault.Kind(err) == nil || len(err.Error()) > 1000) {
			t.Fatalf("error without a kind or too long: %v", err)
		}
		if n != nil && n.GetMetadata().GetLabels()["env"] != "web" {
			t.Fatalf("found %v, which the user may not see", n)
		}
	})
}

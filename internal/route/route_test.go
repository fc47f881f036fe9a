package route_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/route"
	"teleport/internal/types"
)

const (
	web1 = "11111111-1111-4111-8111-111111111111"
	web2 = "22222222-2222-4222-8222-222222222222"
	db   = "33333333-3333-4333-8333-333333333333"
	gone = "44444444-4444-4444-8444-444444444444"
)

// tunnels are the hosts that have one.
type tunnels map[string]bool

func (t tunnels) Connected(id string) bool { return t[id] }

func (t tunnels) Dial(_ context.Context, id string, service types.SystemRole, addr string) (net.Conn, error) {
	if !t[id] || service != types.RoleNode || addr != "192.0.2.7:1" {
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
		{name: "unseen_by_id", live: one, caller: user("web"), target: route.Target{Host: db}, err: fault.ErrNotFound},
		{name: "no_labels_allowed", live: one, caller: user("none"), target: route.Target{Host: "db"}, err: fault.ErrNotFound},
		{name: "unknown_role", live: one, caller: user("made-up"), target: route.Target{Host: "db"}, err: fault.ErrNotFound},
		{name: "unknown_host", live: one, caller: user("all"), target: route.Target{Host: "10.0.0.1"}, err: fault.ErrNotFound},
		{name: "other_cluster", live: one, caller: user("all"), target: route.Target{Host: "db", Cluster: "test"}, err: fault.ErrNotFound, says: `"prod", not "test"`},
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

func TestDialThroughTunnel(t *testing.T) {
	r := newRouter(t, tunnels{web2: true})
	conn, node, err := r.Dial(t.Context(), user("web"), route.Target{Host: "web"}, "192.0.2.7:1")
	if err != nil || node.GetMetadata().GetName() != web2 {
		t.Fatalf("Dial = %v, %v", node, err)
	}
	_ = conn.Close()
	if _, node, err = r.Dial(t.Context(), user("web"), route.Target{Host: "gone"}, "192.0.2.7:1"); !errors.Is(err, fault.ErrUnreachable) || node == nil {
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
	for _, addr := range []string{"169.254.169.254", "fe80::1", "224.0.0.1", "fd00:ec2::254", "0.0.0.0", "::ffff:169.254.169.254"} {
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

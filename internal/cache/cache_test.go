package cache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/types"
)

func role(name string) types.Change {
	return types.Change{Kind: types.KindRole, Name: name, Resource: &typesv1.Role{Metadata: &typesv1.Metadata{Name: name}}}
}

func node(id, hostname string) types.Change {
	return types.Change{Kind: types.KindNode, Name: id, Resource: &typesv1.Server{
		Metadata: &typesv1.Metadata{Name: id}, Spec: &typesv1.ServerSpec{Hostname: hostname},
	}}
}

func gone(kind, name string) types.Change { return types.Change{Kind: kind, Name: name} }

func names(servers []*typesv1.Server) []string {
	var out []string
	for _, s := range servers {
		out = append(out, s.GetMetadata().GetName())
	}
	return out
}

func TestApply(t *testing.T) {
	c := cache.New()
	for _, ch := range []types.Change{
		node("b", "x"), node("a", "y"), node("c", "z"), gone(types.KindNode, "c"), gone(types.KindNode, "never"),
		role("r1"), role("r2"),
		{Kind: types.KindProxy, Name: "p", Resource: &typesv1.Server{Metadata: &typesv1.Metadata{Name: "p"}}},
		{Kind: types.KindClusterName, Name: "cluster_name", Resource: &typesv1.ClusterName{Spec: &typesv1.ClusterNameSpec{ClusterName: "main"}}},
		{Kind: types.KindCertAuthority, Name: "host", Resource: &typesv1.CertAuthority{Metadata: &typesv1.Metadata{Name: "host"}}},
	} {
		c.Apply(ch)
	}
	if diff := cmp.Diff([]string{"a", "b"}, names(c.Nodes())); diff != "" {
		t.Errorf("Nodes: %s", diff)
	}
	if diff := cmp.Diff([]string{"p"}, names(c.Proxies())); diff != "" {
		t.Errorf("Proxies: %s", diff)
	}
	if n, ok := c.Node("b"); !ok || n.GetSpec().GetHostname() != "x" {
		t.Errorf("Node(b) = %v, %t", n, ok)
	}
	if n, ok := c.Node("c"); ok {
		t.Errorf("Node(c) = %v, want none: it was deleted", n)
	}
	roles := c.Roles([]string{"r2", "missing", "r1"})
	if len(roles) != 2 || roles[0].GetMetadata().GetName() != "r2" || roles[1].GetMetadata().GetName() != "r1" {
		t.Errorf("Roles = %v, want r2 and r1", roles)
	}
	if got := c.ClusterName().GetSpec().GetClusterName(); got != "main" {
		t.Errorf("ClusterName = %q, want main", got)
	}
	if got := len(c.Authorities()); got != 1 {
		t.Errorf("Authorities = %d, want 1", got)
	}
	c.Apply(node("b", "renamed"))
	if got := c.Nodes()[1].GetSpec().GetHostname(); got != "renamed" {
		t.Errorf("hostname after a change = %q, want renamed", got)
	}
}

func TestEmpty(t *testing.T) {
	c := cache.New()
	if c.ClusterName() != nil || len(c.Nodes()) != 0 || len(c.Roles([]string{"x"})) != 0 || c.Revision() != 0 {
		t.Error("a new cache holds something")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.WaitSynced(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitSynced = %v, want context.Canceled", err)
	}
}

func TestSnapshotReplacesWhole(t *testing.T) {
	c := cache.New()
	c.Reset()
	c.Apply(node("a", "x"))
	c.Apply(role("old"))
	if len(c.Nodes()) != 0 {
		t.Error("half a snapshot is visible")
	}
	c.Synced(7)
	if err := c.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Revision() != 7 || len(c.Nodes()) != 1 {
		t.Errorf("revision %d with %d nodes, want 7 with 1", c.Revision(), len(c.Nodes()))
	}
	nodes, roles, users := c.Changed(types.KindNode), c.Changed(types.KindRole), c.Changed(types.KindUser)
	c.Reset()
	c.Apply(node("b", "y"))
	if len(c.Nodes()) != 1 || c.Nodes()[0].GetMetadata().GetName() != "a" {
		t.Error("readers lost the old state before the new one was whole")
	}
	c.Synced(5)
	if diff := cmp.Diff([]string{"b"}, names(c.Nodes())); diff != "" {
		t.Error(diff)
	}
	if len(c.Roles([]string{"old"})) != 0 {
		t.Error("a role that is not in the snapshot is still there")
	}
	if c.Revision() != 5 {
		t.Errorf("revision = %d, want that of the snapshot, 5", c.Revision())
	}
	<-nodes
	<-roles
	select {
	case <-users:
		t.Error("users changed although there were none")
	default:
	}
}

func TestChanged(t *testing.T) {
	c := cache.New()
	roles, nodes := c.Changed(types.KindRole), c.Changed(types.KindNode)
	c.Apply(role("r"))
	<-roles
	select {
	case <-nodes:
		t.Error("a change of roles woke those who wait for nodes")
	default:
	}
	select {
	case <-c.Changed(types.KindRole):
		t.Error("the next channel is closed already")
	default:
	}
	c.Synced(3)
	c.Synced(2)
	if c.Revision() != 3 {
		t.Errorf("revision = %d, want 3: it went back without a snapshot", c.Revision())
	}
}

func TestConcurrentUse(t *testing.T) {
	c := cache.New()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				c.Apply(node(fmt.Sprintf("%d-%d", w, i), "h"))
				_ = c.Nodes()
				_ = c.Roles([]string{"r"})
				_ = c.Changed(types.KindNode)
				if i%50 == 0 {
					c.Reset()
					c.Apply(node("s", "h"))
					c.Synced(uint64(i))
				}
			}
		})
	}
	wg.Wait()
}

func TestRemoved(t *testing.T) {
	instance := func(id string) types.Change {
		return types.Change{Kind: types.KindInstance, Name: id, Resource: &typesv1.Instance{Kind: types.KindInstance}}
	}
	c := cache.New()
	expect := func(when, id string, want bool) {
		t.Helper()
		if got := c.Removed(id); got != want {
			t.Errorf("%s: Removed(%s) = %v, want %v", when, id, got, want)
		}
	}
	expect("empty", "h1", false)
	c.Reset()
	c.Apply(instance("proxy"))
	expect("during the first snapshot", "h1", false)
	c.Apply(instance("h1"))
	c.Synced(1)
	expect("known", "h1", false)
	expect("never known", "h2", true)
	c.Apply(gone(types.KindInstance, "h1"))
	expect("deleted", "h1", true)
	c.Apply(instance("h1"))
	expect("back", "h1", false)
	c.Reset()
	expect("during another snapshot", "h1", false)
	c.Apply(instance("proxy"))
	c.Synced(2)
	expect("not in the snapshot", "h1", true)
	c.Apply(gone(types.KindInstance, "proxy"))
	expect("no hosts at all", "h1", false)
}

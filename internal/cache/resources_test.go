package cache_test

import (
	"fmt"
	"slices"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/types"
)

func appServer(app, host, health string) types.Change {
	name := types.ServerName(app, host)
	return types.Change{Kind: types.KindAppServer, Name: name, Resource: &typesv1.AppServer{
		Metadata: &typesv1.Metadata{Name: name}, Spec: &typesv1.AppServerSpec{HostId: host, Health: health},
	}}
}

func hosts(servers []*typesv1.AppServer) []string {
	var out []string
	for _, s := range servers {
		out = append(out, s.GetSpec().GetHostId()+s.GetSpec().GetHealth())
	}
	slices.Sort(out)
	return out
}

func TestServersOf(t *testing.T) {
	c := cache.New()
	expect := func(app string, want ...string) {
		t.Helper()
		if got := hosts(c.AppServersOf(app)); !slices.Equal(got, want) {
			t.Errorf("AppServersOf(%q) = %q, want %q", app, got, want)
		}
	}
	expect("grafana")
	for _, ch := range []types.Change{
		appServer("grafana", "a", ""), appServer("grafana", "b", ""), appServer("other", "a", ""),
		gone(types.KindAppServer, "grafana@never"), gone(types.KindAppServer, "nothing"),
	} {
		c.Apply(ch)
	}
	expect("grafana", "a", "b")
	held := c.AppServersOf("grafana")
	c.Apply(appServer("grafana", "a", " ill"))
	expect("grafana", "a ill", "b")
	c.Apply(gone(types.KindAppServer, "grafana@b"))
	expect("grafana", "a ill")
	c.Apply(gone(types.KindAppServer, "grafana@a"))
	expect("grafana")
	expect("other", "a")
	if got := hosts(held); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("a list that a reader has changed to %q", got)
	}
	// A snapshot replaces all.
	c.Reset()
	c.Apply(appServer("third", "c", ""))
	expect("other", "a")
	c.Synced(1)
	expect("other")
	expect("third", "c")
	if got := c.DatabaseServersOf("third"); len(got) != 0 {
		t.Errorf("DatabaseServersOf = %v, want none of another kind", got)
	}
}

// 10,000 applications with two agents each, as a Proxy has them.
func BenchmarkAppServersOf(b *testing.B) {
	c := cache.New()
	for i := range 10_000 {
		for _, host := range []string{"a", "b"} {
			c.Apply(appServer(fmt.Sprintf("app-%d", i), host, ""))
		}
	}
	c.Synced(1)
	for b.Loop() {
		if len(c.AppServersOf("app-7777")) != 2 {
			b.Fatal("not found")
		}
		c.Apply(appServer("app-7777", "a", "")) // between two heartbeats
	}
}

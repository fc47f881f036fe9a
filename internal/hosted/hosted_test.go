package hosted_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/hosted"
	"teleport/internal/types"
)

// thing is an application that is served; the health of the one whose uri says so is bad.
type thing struct{ *hosted.Entry[*typesv1.App] }

func (h *thing) Self() types.Resource {
	r := types.New(types.KindAppServer, h.Resource().GetMetadata().GetName())
	r.GetMetadata().Labels = h.Labels()
	r.GetMetadata().Description = h.Health()
	return r
}

func (h *thing) Watch(ctx context.Context) {
	health := hosted.Healthy
	if strings.HasSuffix(h.Resource().GetSpec().GetUri(), "/down") {
		health = "down"
	}
	h.SetHealth(ctx, health)
}

func app(name, uri string, labels map[string]string) *typesv1.App {
	a, _ := types.New(types.KindApp, name).(*typesv1.App)
	a.Metadata.Labels = labels
	a.Spec = &typesv1.AppSpec{Uri: uri}
	return a
}

// host is what the cluster knows of a table, and what the service is told.
type host struct {
	*hosted.Table[*typesv1.App, *thing]
	cache   *cache.Cache
	healthy *prometheus.GaugeVec

	mu    sync.Mutex
	known map[string]*typesv1.AppServer
	gone  map[string]bool
}

func newHost(t *testing.T, leave bool) *host {
	t.Helper()
	h := &host{cache: cache.New(), known: map[string]*typesv1.AppServer{}, gone: map[string]bool{}, healthy: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "healthy", Help: "h"}, []string{"app"})}
	h.Table = hosted.New(hosted.Config[*typesv1.App, *thing]{
		Kind: types.KindApp, ServerKind: types.KindAppServer, Noun: "application", Key: "app",
		HostID: func() string { return "id" }, Cache: h.cache, List: h.cache.Apps, Log: slog.New(slog.DiscardHandler), Healthy: h.healthy, Leave: leave,
		Labels:   map[string]string{"host": "token"},
		Matchers: []map[string]*typesv1.Strings{{"env": {Values: []string{"test"}}}},
		Announce: func(r types.Resource) {
			s, _ := r.(*typesv1.AppServer)
			h.mu.Lock()
			defer h.mu.Unlock()
			h.known[s.GetMetadata().GetName()] = s
		},
		Withdraw: func(_, name string) {
			name, _, _ = strings.Cut(name, "@")
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.known, name)
		},
		Commands: func(a *typesv1.App) map[string]*typesv1.CommandLabel { return a.GetSpec().GetDynamicLabels() },
		Same:     func(old, next *typesv1.App) bool { return proto.Equal(old.GetSpec(), next.GetSpec()) },
		Make: func(e *hosted.Entry[*typesv1.App]) (*thing, error) {
			if strings.HasSuffix(e.Resource().GetSpec().GetUri(), "/never") {
				return nil, errors.New("never")
			}
			return &thing{e}, nil
		},
		Gone: func(name string, again bool) { h.gone[name] = again },
	})
	return h
}

// set changes the cluster and waits until the table has followed.
func (h *host) set(a *typesv1.App) {
	h.cache.Apply(types.Change{Kind: types.KindApp, Name: a.GetMetadata().GetName(), Resource: a})
	synctest.Wait()
}

// expect holds the applications that the cluster knows, with their health, against want.
func (h *host) expect(t *testing.T, want map[string]string) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	got := map[string]string{}
	for name, s := range h.known {
		got[name] = s.GetMetadata().GetDescription()
	}
	if !maps.Equal(got, want) {
		t.Errorf("the cluster knows %v, want %v", got, want)
	}
}

// metrics returns the healthy ones.
func (h *host) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	if err := r.Register(h.healthy); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return got
}

func TestTable(t *testing.T) {
	for name, leave := range map[string]bool{"stays": false, "leaves": true} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testTable(t, leave) }) })
	}
}

func testTable(t *testing.T, leave bool) {
	h := newHost(t, leave)
	labels := map[string]string{"env": "test", "host": "own"}
	if err := h.SetStatic([]*typesv1.App{app("static", "http://one", nil)}); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.Find("static"); ok {
		t.Error("something is served before Begin")
	}
	ctx, cancel := context.WithCancel(t.Context())
	h.Begin(ctx)
	var run sync.WaitGroup
	run.Go(func() { h.Run(ctx) })
	h.WaitReady(ctx)
	h.expect(t, map[string]string{"static": hosted.Healthy})

	h.set(app("match", "http://one", labels))
	h.set(app("down", "http://one/down", labels))
	h.set(app("other", "http://one", map[string]string{"env": "prod"}))
	h.set(app("never", "http://one/never", labels))
	h.set(app("static", "http://hidden/down", labels))
	h.expect(t, map[string]string{"static": hosted.Healthy, "match": hosted.Healthy, "down": "down"})
	if got := h.known["match"].GetMetadata().GetLabels(); got["host"] != "token" || got["env"] != "test" {
		t.Errorf("labels = %v, want the resource's, and the token's over them", got)
	}
	if got := h.metrics(t); !maps.Equal(got, map[string]float64{"static": 1, "match": 1, "down": 0}) {
		t.Errorf("the metric is %v", got)
	}

	// Another label: the same thing goes on. Another uri: another thing.
	first, _ := h.Find("match")
	h.set(app("match", "http://one", map[string]string{"env": "test", "more": "x"}))
	if again, _ := h.Find("match"); again != first || h.known["match"].GetMetadata().GetLabels()["more"] != "x" || len(h.gone) > 0 {
		t.Errorf("after another label: %v, gone %v", h.known["match"], h.gone)
	}
	h.set(app("match", "http://two", labels))
	if again, ok := h.Find("match"); !ok || again == first || !h.gone["match"] {
		t.Errorf("after another uri: again %v, gone %v", again == first, h.gone)
	}
	// One that cannot be served any more, is not matched, or is taken away.
	h.set(app("match", "http://two/never", labels))
	h.expect(t, map[string]string{"static": hosted.Healthy, "down": "down"})
	if again, told := h.gone["match"]; again || !told {
		t.Errorf("gone = %v, want match, and not again", h.gone)
	}
	h.Match(nil)
	h.expect(t, map[string]string{"static": hosted.Healthy})
	if err := h.SetStatic([]*typesv1.App{app("new", "http://one", nil)}); err != nil {
		t.Fatal(err)
	}
	h.expect(t, map[string]string{"new": hosted.Healthy})
	if got := h.metrics(t); !maps.Equal(got, map[string]float64{"new": 1}) {
		t.Errorf("the metric is %v at last", got)
	}

	cancel()
	run.Wait()
	if left := len(h.known); (left == 0) != leave {
		t.Errorf("at the end the cluster knows %d, and Leave is %v", left, leave)
	}
}

func TestSetStaticRefuses(t *testing.T) {
	h := newHost(t, false)
	command := func(period string, command ...string) *typesv1.App {
		a := app("a", "http://one", nil)
		a.Spec.DynamicLabels = map[string]*typesv1.CommandLabel{"x": {Command: command, Period: period}}
		return a
	}
	for name, list := range map[string][]*typesv1.App{
		"twice": {app("a", "http://one", nil), app("a", "http://two", nil)}, "never": {app("a", "http://one/never", nil)},
		"no_command": {command("1m")}, "often": {command("1s", "true")},
	} {
		if err := h.SetStatic(list); err == nil {
			t.Errorf("%s: SetStatic = nil, want an error", name)
		}
	}
	if err := h.SetStatic([]*typesv1.App{command("", "true")}); err != nil {
		t.Errorf("a command without a period: %v", err)
	}
}

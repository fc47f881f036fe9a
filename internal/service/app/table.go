package app

import (
	"context"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/label"
	"teleport/internal/types"
	"teleport/internal/version"
)

// table is the applications that this host serves: the static ones, and those of the
// cluster that a matcher matches. A static one hides another of its name.
type table struct {
	s       *Service
	matches *access.Checker

	mu     sync.Mutex
	static map[string]*typesv1.App
	served map[string]*served
	// running is nil before and after run.
	running *running
	warned  map[string]string
}

// running is what the watchers of applications need.
type running struct {
	ctx  func() context.Context
	work *sync.WaitGroup
}

// served is an application that is served.
type served struct {
	t      *table
	name   string
	static bool
	target *target
	labels *label.Set
	cancel context.CancelFunc
	// ready is closed once the labels are known: before that nobody gets in.
	ready chan struct{}
	// check has a value when the target is to be looked at soon.
	check chan struct{}

	mu     sync.Mutex
	app    *typesv1.App
	health string
}

func newTable(s *Service) *table {
	return &table{s: s, matches: matcher(s.cfg.Matchers), static: map[string]*typesv1.App{}, served: map[string]*served{}, warned: map[string]string{}}
}

// setStatic replaces the static applications.
func (t *table) setStatic(apps []*typesv1.App) error {
	static := make(map[string]*typesv1.App, len(apps))
	for _, a := range apps {
		name := a.GetMetadata().GetName()
		if err := types.Check(a); err != nil {
			return fault.Invalid("application %q: %w", name, err)
		}
		if _, twice := static[name]; twice {
			return fault.Invalid("application %q is configured twice", name)
		}
		if _, err := newTarget(a); err != nil {
			return err
		}
		if _, err := t.commands(a, true); err != nil {
			return fault.Invalid("application %q: %w", name, err)
		}
		static[name] = proto.CloneOf(a)
	}
	t.mu.Lock()
	t.static = static
	t.mu.Unlock()
	t.reconcile()
	return nil
}

// commands makes the labels of an application that programs print. They run only for those
// of this host's own configuration: who may write resources of the cluster may not run
// programs on its hosts.
func (t *table) commands(a *typesv1.App, static bool) (*label.Set, error) {
	var list []label.Command
	if static {
		for name, c := range a.GetSpec().GetDynamicLabels() {
			period := time.Minute
			if text := c.GetPeriod(); text != "" {
				var err error
				if period, err = types.ParseDuration(text); err != nil {
					return nil, err
				}
			}
			list = append(list, label.Command{Name: name, Command: c.GetCommand(), Period: period})
		}
	}
	return label.New(a.GetMetadata().GetLabels(), list, t.s.cfg.Log)
}

// find returns an application that is served, or nil.
func (t *table) find(name string) *served {
	t.mu.Lock()
	sv := t.served[name]
	t.mu.Unlock()
	if sv == nil {
		return nil
	}
	select {
	case <-sv.ready:
		return sv
	default:
		return nil
	}
}

// begin lets run begin to serve what is configured.
func (t *table) begin(ctx context.Context) {
	t.mu.Lock()
	t.running = &running{ctx: func() context.Context { return ctx }, work: new(sync.WaitGroup)}
	t.mu.Unlock()
	t.reconcile() //nolint:contextcheck // what is served lives as long as the table, whoever calls
}

// run keeps the table until ctx ends; then nothing is watched any more. What was
// announced stays so: who announces knows when the host goes.
func (t *table) run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := t.s.cfg.Cache.Changed(types.KindApp)
		t.reconcile() //nolint:contextcheck // see begin
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	t.mu.Lock()
	work := t.running.work
	t.running = nil
	t.mu.Unlock()
	work.Wait()
}

// waitReady waits until the applications of the beginning are served.
func (t *table) waitReady(ctx context.Context) {
	t.mu.Lock()
	all := maps.Clone(t.served)
	t.mu.Unlock()
	for _, sv := range all {
		select {
		case <-sv.ready:
		case <-ctx.Done():
			return
		}
	}
}

// reconcile makes what is served what should be.
func (t *table) reconcile() {
	t.mu.Lock()
	var gone []string
	if t.running != nil && t.running.ctx().Err() == nil {
		gone = t.reconcileLocked()
	}
	t.mu.Unlock()
	for _, name := range gone {
		t.s.live.endApp(name)
	}
}

func (t *table) reconcileLocked() (gone []string) {
	wanted := t.wantedLocked()
	for name, old := range t.served {
		next := wanted[name]
		if next != nil && old.keeps(next, t.static[name] != nil) {
			continue
		}
		old.cancel()
		delete(t.served, name)
		gone = append(gone, name)
		if next == nil {
			t.s.metrics.healthy.DeleteLabelValues(name)
			t.s.cfg.Withdraw(types.KindAppServer, types.ServerName(name, t.s.cfg.Holder.HostID()))
		}
	}
	for name, a := range wanted {
		if t.served[name] == nil {
			t.serveLocked(name, a)
		}
	}
	return gone
}

// keeps takes the new version of an application over, if connections may go on with it.
func (sv *served) keeps(next *typesv1.App, static bool) bool {
	sv.mu.Lock()
	same, known := proto.Equal(sv.app, next), proto.Equal(sv.app.GetSpec(), next.GetSpec())
	fixed := maps.Equal(sv.app.GetMetadata().GetLabels(), next.GetMetadata().GetLabels()) || len(next.GetSpec().GetDynamicLabels()) == 0
	if !same && known && fixed && static == sv.static {
		sv.app = next
	}
	sv.mu.Unlock()
	switch {
	case static != sv.static || !known || !fixed:
		return false
	case !same:
		sv.t.s.cfg.Announce(sv.self())
		sv.t.s.live.recheck()
	}
	return true
}

// wantedLocked returns the applications that should be served.
func (t *table) wantedLocked() map[string]*typesv1.App {
	out := maps.Clone(t.static)
	for _, a := range t.s.cfg.Cache.Apps() {
		name := a.GetMetadata().GetName()
		if out[name] != nil || !t.matches.App(a.GetMetadata().GetLabels()).Allowed {
			continue
		}
		out[name] = a
	}
	return out
}

// serveLocked begins to serve an application.
func (t *table) serveLocked(name string, a *typesv1.App) {
	static := t.static[name] != nil
	target, err := newTarget(a)
	var labels *label.Set
	if err == nil {
		labels, err = t.commands(a, static)
	}
	if err != nil {
		if t.warned[name] != err.Error() {
			t.warned[name] = err.Error()
			t.s.cfg.Log.Warn("an application of the cluster is not served", "app", name, "error", err)
		}
		return
	}
	delete(t.warned, name)
	ctx, cancel := context.WithCancel(t.running.ctx())
	sv := &served{
		t: t, name: name, static: static, target: target, labels: labels, cancel: cancel, app: a,
		ready: make(chan struct{}), check: make(chan struct{}, 1),
	}
	if !static && len(a.GetSpec().GetDynamicLabels()) > 0 {
		t.s.cfg.Log.Warn("commands for labels are not run: only teleport.yaml of this host may have them", "app", name)
	}
	t.served[name] = sv
	t.running.work.Go(func() { sv.watch(ctx) })
}

// watch keeps labels and health of the application up to date until ctx ends.
func (sv *served) watch(ctx context.Context) {
	sv.labels.RunAll(ctx)
	if ctx.Err() != nil {
		return
	}
	close(sv.ready)
	sv.announce(ctx)
	sv.t.s.live.recheck()
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		sv.labels.Run(ctx, func() {
			sv.announce(ctx)
			sv.t.s.live.recheck()
		})
	})
	sv.watchHealth(ctx)
}

// announce tells the cluster, unless the application is not served any more.
func (sv *served) announce(ctx context.Context) {
	sv.t.mu.Lock()
	defer sv.t.mu.Unlock()
	if ctx.Err() == nil {
		sv.t.s.cfg.Announce(sv.self())
	}
}

// resource is the application as it is configured now.
func (sv *served) resource() *typesv1.App {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.app
}

// labelMap returns the labels that decide: the application's, the results of its commands,
// and what the join token says of this host, which nothing replaces.
func (sv *served) labelMap() map[string]string {
	out := sv.labels.Results()
	maps.Copy(out, sv.resource().GetMetadata().GetLabels())
	maps.Copy(out, sv.t.s.cfg.Labels)
	return out
}

// self describes the application on this host to the cluster.
func (sv *served) self() *typesv1.AppServer {
	cfg := sv.t.s.cfg
	id := cfg.Holder.HostID()
	r, ok := types.New(types.KindAppServer, types.ServerName(sv.name, id)).(*typesv1.AppServer)
	if !ok {
		return nil
	}
	r.Metadata.Labels = sv.labelMap()
	a := proto.CloneOf(sv.resource())
	a.Metadata.Revision = ""
	a.Spec.DynamicLabels = nil
	if a.GetSpec().GetRewrite() != nil {
		// Headers may hold what only the application is to know.
		a.Spec.Rewrite.Headers = nil
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	r.Spec = &typesv1.AppServerSpec{HostId: id, Hostname: cfg.Hostname, SoftwareVersion: version.Version, App: a, Health: sv.health}
	return r
}

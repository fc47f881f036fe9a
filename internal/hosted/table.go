// Package hosted is what a host serves to the cluster, of one kind of resource: those of
// its own configuration and those of the cluster that a matcher matches. It keeps the
// list while either changes, runs the commands that make labels, and announces each to
// the cluster with its labels and its health. What it means to serve one is the business
// of the services.
package hosted

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Thing is what a service keeps of a resource that it serves.
type Thing interface {
	// Self describes the resource on this host to the cluster.
	Self() types.Resource
	// Watch looks after the health of the resource until ctx ends. It may return before.
	Watch(ctx context.Context)
}

// Config says what a Table is of.
type Config[T types.Resource, S Thing] struct {
	// Kind is that of the resources, ServerKind the one by which hosts announce them.
	Kind, ServerKind string
	// Noun is what people call a resource, and Key its name in logs.
	Noun, Key string
	HostID    func() string
	// Cache has the dynamic resources, and List returns them.
	Cache *cache.Cache
	List  func() []T
	// Labels are those that the join token gives the host: nothing replaces them.
	Labels map[string]string
	// Matchers say which dynamic resources are served.
	Matchers []map[string]*typesv1.Strings
	// Announce and Withdraw are told which resources the host serves.
	Announce func(types.Resource)
	Withdraw func(kind, name string)
	// Leave withdraws everything at the end, when ctx of Run does. Otherwise what was
	// announced stays so: who announces knows when the host goes.
	Leave bool
	Log   *slog.Logger
	// Healthy is 1 for each resource that can be reached, else 0.
	Healthy *prometheus.GaugeVec
	// Commands are the labels of a resource that programs print.
	Commands func(T) map[string]*typesv1.CommandLabel
	// Same reports whether a resource that has changed is served as before, and only
	// announced anew. Both are static or neither.
	Same func(old, next T) bool
	// Make makes what the service keeps of a resource; an error says why the resource
	// cannot be served. It is also called to find that out, and has no effects.
	Make func(e *Entry[T]) (S, error)
	// Gone is told of a resource that is not served as it was: again if it still is, but
	// otherwise. Nothing begins to be served meanwhile.
	Gone func(name string, again bool)
	// Changed is told that labels have changed; nil is nobody.
	Changed func()
}

// Table is the resources that a host serves. A static one hides another of its name.
type Table[T types.Resource, S Thing] struct {
	cfg Config[T, S]

	// turn is held by who changes what is served, until Gone has been told.
	turn sync.Mutex

	mu      sync.Mutex
	matches *access.Checker
	static  map[string]T
	served  map[string]*row[T, S]
	// running is nil before Begin and after Run.
	running *running
	// warned is why resources of the cluster are not served.
	warned map[string]string
}

// row is a resource that is served, with what the service keeps of it.
type row[T types.Resource, S Thing] struct {
	entry *Entry[T]
	thing S
}

// running is what the watchers of resources need.
type running struct {
	ctx  func() context.Context
	work *sync.WaitGroup
}

// New returns a table that serves nothing yet.
func New[T types.Resource, S Thing](cfg Config[T, S]) *Table[T, S] {
	return &Table[T, S]{cfg: cfg, matches: matcher(cfg.Matchers), static: map[string]T{}, served: map[string]*row[T, S]{}}
}

// matcher matches as the labels of a role do.
func matcher(matchers []map[string]*typesv1.Strings) *access.Checker {
	var roles []*typesv1.Role
	for _, m := range matchers {
		// The labels are those of whatever the table is of; any kind does to match them.
		roles = append(roles, &typesv1.Role{Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: m}}})
	}
	return access.NewChecker(access.Subject{Roles: roles})
}

// Match replaces Config.Matchers.
func (t *Table[T, S]) Match(matchers []map[string]*typesv1.Strings) {
	t.mu.Lock()
	t.matches = matcher(matchers)
	t.mu.Unlock()
	t.reconcile()
}

// SetStatic replaces the static resources, if all are good.
func (t *Table[T, S]) SetStatic(list []T) error {
	static := make(map[string]T, len(list))
	for _, r := range list {
		name := r.GetMetadata().GetName()
		if _, twice := static[name]; twice {
			return fault.Invalid("%s %q is configured twice", t.cfg.Noun, name)
		}
		if _, err := t.build(r, true); err != nil {
			return err
		}
		static[name] = proto.CloneOf(r)
	}
	t.mu.Lock()
	t.static = static
	t.mu.Unlock()
	t.reconcile()
	return nil
}

// Find returns a resource that is served. Until its Entry is Ready, its labels are not
// all there, and nobody should be let in.
func (t *Table[T, S]) Find(name string) (found S, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.served[name]; r != nil {
		return r.thing, true
	}
	return found, false
}

// Begin begins to serve what is configured, as long as ctx lasts. Run is to follow.
func (t *Table[T, S]) Begin(ctx context.Context) {
	t.mu.Lock()
	t.running = &running{ctx: func() context.Context { return ctx }, work: new(sync.WaitGroup)}
	t.mu.Unlock()
	t.reconcile()
}

// Run keeps the table until ctx ends; then nothing is watched any more.
func (t *Table[T, S]) Run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := t.cfg.Cache.Changed(t.cfg.Kind)
		t.reconcile()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	t.mu.Lock()
	work := t.running.work
	t.running = nil
	if t.cfg.Leave {
		for name := range t.served {
			t.withdraw(name)
		}
	}
	t.mu.Unlock()
	work.Wait()
}

// WaitReady waits until the resources of the beginning are Ready.
func (t *Table[T, S]) WaitReady(ctx context.Context) {
	t.mu.Lock()
	all := maps.Clone(t.served)
	t.mu.Unlock()
	for _, r := range all {
		select {
		case <-r.entry.ready:
		case <-ctx.Done():
			return
		}
	}
}

// reconcile makes what is served what should be.
func (t *Table[T, S]) reconcile() {
	t.turn.Lock()
	defer t.turn.Unlock()
	t.mu.Lock()
	var gone map[string]bool
	if t.running != nil && t.running.ctx().Err() == nil {
		gone = t.reconcileLocked()
	}
	t.mu.Unlock()
	for name, again := range gone {
		t.cfg.Gone(name, again)
	}
}

func (t *Table[T, S]) reconcileLocked() (gone map[string]bool) {
	served, warned := map[string]*row[T, S]{}, map[string]string{}
	for name, r := range t.wantedLocked() {
		_, static := t.static[name]
		if old := t.served[name]; old != nil && t.keepLocked(old, r, static) {
			served[name] = old
			continue
		}
		made, err := t.build(r, static)
		if err == nil {
			served[name] = made
			continue
		}
		warned[name] = err.Error()
		if t.warned[name] != warned[name] {
			t.cfg.Log.Warn("a resource of the cluster is not served", "kind", t.cfg.Kind, t.cfg.Key, name, "error", err)
		}
	}
	before := t.served
	t.served, t.warned = served, warned
	gone = map[string]bool{}
	for name, old := range before {
		if served[name] == old {
			continue
		}
		old.entry.cancel()
		gone[name] = served[name] != nil
		if served[name] == nil {
			t.cfg.Healthy.DeleteLabelValues(name)
			t.withdraw(name)
		}
	}
	for name, r := range served {
		if before[name] != r {
			t.startLocked(name, r)
		}
	}
	return gone
}

func (t *Table[T, S]) withdraw(name string) {
	t.cfg.Withdraw(t.cfg.ServerKind, types.ServerName(name, t.cfg.HostID()))
}

// wantedLocked returns the resources that should be served.
func (t *Table[T, S]) wantedLocked() map[string]T {
	out := maps.Clone(t.static)
	for _, r := range t.cfg.List() {
		name := r.GetMetadata().GetName()
		if _, hidden := out[name]; !hidden && t.matches.App(r.GetMetadata().GetLabels()).Allowed {
			out[name] = r
		}
	}
	return out
}

// keepLocked takes the new version of a resource over, if it is served as before.
func (t *Table[T, S]) keepLocked(r *row[T, S], next T, static bool) bool {
	old := r.entry.Resource()
	switch {
	case static != r.entry.static || !t.cfg.Same(old, next):
		return false
	case !proto.Equal(old, next):
		r.entry.set(next)
		t.cfg.Announce(r.thing.Self())
		t.changed()
	}
	return true
}

func (t *Table[T, S]) changed() {
	if t.cfg.Changed != nil {
		t.cfg.Changed()
	}
}

// build makes what is needed to serve a resource.
func (t *Table[T, S]) build(r T, static bool) (*row[T, S], error) {
	e := &Entry[T]{static: static, token: t.cfg.Labels, ready: make(chan struct{}), r: r}
	thing, err := t.cfg.Make(e)
	if err != nil {
		return nil, err
	}
	if e.labels, err = t.labels(r, static); err != nil {
		return nil, fault.Invalid("%s %q: %w", t.cfg.Noun, r.GetMetadata().GetName(), err)
	}
	return &row[T, S]{e, thing}, nil
}

// startLocked begins to serve a resource.
func (t *Table[T, S]) startLocked(name string, r *row[T, S]) {
	if !r.entry.static && len(t.cfg.Commands(r.entry.Resource())) > 0 {
		t.cfg.Log.Warn("commands for labels are not run: only teleport.yaml of this host may have them", t.cfg.Key, name)
	}
	ctx, cancel := context.WithCancel(t.running.ctx()) //nolint:gosec // called when the entry goes, or by the parent
	r.entry.cancel = cancel
	r.entry.announce = func(ctx context.Context) { t.announce(ctx, name, r) }
	t.running.work.Go(func() { t.watch(ctx, r) })
}

// watch keeps labels and health of a resource up to date until ctx ends.
func (t *Table[T, S]) watch(ctx context.Context, r *row[T, S]) {
	e := r.entry
	e.labels.RunAll(ctx)
	if ctx.Err() != nil {
		return
	}
	close(e.ready)
	tell := func() {
		e.announce(ctx)
		t.changed()
	}
	tell()
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() { e.labels.Run(ctx, tell) })
	r.thing.Watch(ctx)
}

// announce tells the cluster, unless the resource is not served any more.
func (t *Table[T, S]) announce(ctx context.Context, name string, r *row[T, S]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil || t.served[name] != r {
		return
	}
	switch r.entry.Health() {
	case "":
	case Healthy:
		t.cfg.Healthy.WithLabelValues(name).Set(1)
	default:
		t.cfg.Healthy.WithLabelValues(name).Set(0)
	}
	t.cfg.Announce(r.thing.Self())
}

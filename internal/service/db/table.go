package db

import (
	"context"
	"maps"
	"sync"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/label"
	"teleport/internal/types"
	"teleport/internal/version"
)

// table is the databases that this host serves: the static ones, and those of the
// cluster that a matcher matches. A static one hides another of its name.
type table struct {
	s       *Service
	matches *access.Checker

	mu     sync.Mutex
	static map[string]*typesv1.Database
	served map[string]*served
	// ctx is that of run, nil before and after it.
	running *running
}

// running is what the watchers of databases need.
type running struct {
	ctx  func() context.Context
	work *sync.WaitGroup
}

// served is a database that is served.
type served struct {
	t      *table
	db     *typesv1.Database
	static bool
	cancel context.CancelFunc

	commands *label.Set

	mu     sync.Mutex
	health string
	// addrs counts the connections to each address of the database.
	addrs map[string]int
}

func newTable(s *Service) *table {
	return &table{s: s, matches: matcher(s.cfg.Matchers), static: map[string]*typesv1.Database{}, served: map[string]*served{}}
}

// setStatic replaces the static databases.
func (t *table) setStatic(dbs []*typesv1.Database) error {
	static := make(map[string]*typesv1.Database, len(dbs))
	for _, d := range dbs {
		name := d.GetMetadata().GetName()
		if _, twice := static[name]; twice {
			return fault.Invalid("database %q is configured twice", name)
		}
		if t.s.engines[d.GetSpec().GetProtocol()] == nil {
			return fault.Unsupported("database %q: there is no engine for the protocol %q", name, d.GetSpec().GetProtocol())
		}
		if _, err := t.commandsOf(d, true); err != nil {
			return err
		}
		static[name] = d
	}
	t.mu.Lock()
	t.static = static
	t.mu.Unlock()
	t.reconcile()
	return nil
}

// find returns a database that is served, or nil.
func (t *table) find(name string) *served {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.served[name]
}

// run keeps the table until ctx ends. Then nothing is watched any more, and the cluster is
// told at once: who comes now finds another agent.
func (t *table) run(ctx context.Context) {
	var work sync.WaitGroup
	t.mu.Lock()
	t.running = &running{ctx: func() context.Context { return ctx }, work: &work}
	t.mu.Unlock()
	for ctx.Err() == nil {
		changed := t.s.cfg.Cache.Changed(types.KindDatabase)
		t.reconcile() //nolint:contextcheck // what it starts has the context of run, which may be another call's
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	t.mu.Lock()
	t.running = nil
	for name := range t.served {
		t.s.cfg.Withdraw(types.KindDatabaseServer, types.ServerName(name, t.s.cfg.Holder.HostID()))
	}
	t.mu.Unlock()
	work.Wait()
}

// reconcile makes what is served what should be.
func (t *table) reconcile() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil {
		return
	}
	wanted := t.wantedLocked()
	for name, old := range t.served {
		if d := wanted[name]; d != nil && proto.Equal(d, old.db) && old.static == (t.static[name] != nil) {
			continue
		}
		old.cancel()
		delete(t.served, name)
		if wanted[name] == nil {
			t.s.metrics.healthy.DeleteLabelValues(name)
			t.s.cfg.Withdraw(types.KindDatabaseServer, types.ServerName(name, t.s.cfg.Holder.HostID()))
			t.s.live.endDatabase(name)
		}
	}
	for name, d := range wanted {
		if t.served[name] == nil {
			t.serveLocked(name, d)
		}
	}
}

// wantedLocked returns the databases that should be served.
func (t *table) wantedLocked() map[string]*typesv1.Database {
	out := maps.Clone(t.static)
	for _, d := range t.s.cfg.Cache.Databases() {
		name := d.GetMetadata().GetName()
		if out[name] != nil || !t.matches.SeesDatabase(d.GetMetadata().GetLabels()).Allowed {
			continue
		}
		if t.s.engines[d.GetSpec().GetProtocol()] == nil {
			t.s.cfg.Log.Warn("a database of the cluster is not served: there is no engine for its protocol", "db", name, "protocol", d.GetSpec().GetProtocol())
			continue
		}
		out[name] = d
	}
	return out
}

// serveLocked begins to serve a database.
func (t *table) serveLocked(name string, d *typesv1.Database) {
	ctx, cancel := context.WithCancel(t.running.ctx())
	static := t.static[name] != nil
	commands, err := t.commandsOf(d, static)
	if err != nil {
		cancel()
		t.s.cfg.Log.Error("a database is not served", "db", name, "error", err)
		return
	}
	sv := &served{t: t, db: d, static: static, cancel: cancel, commands: commands, addrs: map[string]int{}}
	t.served[name] = sv
	t.running.work.Go(func() { sv.watch(ctx) })
}

// name is the resource's.
func (sv *served) name() string { return sv.db.GetMetadata().GetName() }

// labels are those that decide: the database's, the results of its commands, and what
// the join token says of this host, which nothing replaces.
func (sv *served) labels() map[string]string {
	out := sv.commands.Results()
	maps.Copy(out, sv.db.GetMetadata().GetLabels())
	maps.Copy(out, sv.t.s.cfg.Labels)
	return out
}

// self describes the database on this host to the cluster.
func (sv *served) self() *typesv1.DatabaseServer {
	cfg := sv.t.s.cfg
	id := cfg.Holder.HostID()
	r, ok := types.New(types.KindDatabaseServer, types.ServerName(sv.name(), id)).(*typesv1.DatabaseServer)
	if !ok {
		return nil
	}
	r.Metadata.Labels = sv.labels()
	d := proto.CloneOf(sv.db)
	d.Spec.Tls, d.Spec.DynamicLabels = nil, nil
	d.Metadata.Revision = ""
	sv.mu.Lock()
	defer sv.mu.Unlock()
	r.Spec = &typesv1.DatabaseServerSpec{HostId: id, Hostname: cfg.Hostname, SoftwareVersion: version.Version, Database: d, Health: sv.health}
	return r
}

// reached notes a connection to an address of the database, until the function that it
// returns is called.
func (sv *served) reached(addr string) func() {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.addrs[addr]++
	return sync.OnceFunc(func() {
		sv.mu.Lock()
		defer sv.mu.Unlock()
		if sv.addrs[addr]--; sv.addrs[addr] <= 0 {
			delete(sv.addrs, addr)
		}
	})
}

// connected reports whether there is a connection to the address.
func (sv *served) connected(addr string) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.addrs[addr] > 0
}

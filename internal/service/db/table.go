package db

import (
	"sync"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/hosted"
	"teleport/internal/types"
	"teleport/internal/version"
)

// table is the databases that this host serves.
type table = hosted.Table[*typesv1.Database, *served]

// served is a database that is served. One that is changed is another, and sessions with
// the old one go on.
type served struct {
	*hosted.Entry[*typesv1.Database]
	s  *Service
	db *typesv1.Database

	mu sync.Mutex
	// addrs counts the connections to each address of the database.
	addrs map[string]int
}

func newTable(s *Service) *table {
	return hosted.New(hosted.Config[*typesv1.Database, *served]{
		Kind: types.KindDatabase, ServerKind: types.KindDatabaseServer, Noun: "database", Key: "db",
		HostID: s.cfg.Holder.HostID, Cache: s.cfg.Cache, List: s.cfg.Cache.Databases,
		Labels: s.cfg.Labels, Matchers: s.cfg.Matchers, Announce: s.cfg.Announce, Withdraw: s.cfg.Withdraw,
		// Who comes when this host stops finds another agent.
		Leave: true,
		Log:   s.cfg.Log, Healthy: s.metrics.healthy,
		Commands: func(d *typesv1.Database) map[string]*typesv1.CommandLabel { return d.GetSpec().GetDynamicLabels() },
		Same:     func(old, next *typesv1.Database) bool { return proto.Equal(old, next) },
		Make:     s.newServed,
		Gone: func(name string, again bool) {
			if !again {
				s.live.endDatabase(name)
			}
		},
	})
}

func (s *Service) newServed(e *hosted.Entry[*typesv1.Database]) (*served, error) {
	d := e.Resource()
	if protocol := d.GetSpec().GetProtocol(); s.engines[protocol] == nil {
		return nil, fault.Unsupported("database %q: there is no engine for the protocol %q", d.GetMetadata().GetName(), protocol)
	}
	return &served{Entry: e, s: s, db: d, addrs: map[string]int{}}, nil
}

// find returns a database that is served, or nil. Before its labels are known nobody is
// let in: a role may deny by one of them.
func (s *Service) find(name string) *served {
	if sv, ok := s.table.Find(name); ok && sv.Ready() {
		return sv
	}
	return nil
}

// name is the resource's.
func (sv *served) name() string { return sv.db.GetMetadata().GetName() }

// Self describes the database on this host to the cluster.
func (sv *served) Self() types.Resource {
	cfg := sv.s.cfg
	id := cfg.Holder.HostID()
	r, ok := types.New(types.KindDatabaseServer, types.ServerName(sv.name(), id)).(*typesv1.DatabaseServer)
	if !ok {
		return nil
	}
	r.Metadata.Labels = sv.Labels()
	d := proto.CloneOf(sv.db)
	d.Spec.Tls, d.Spec.DynamicLabels = nil, nil
	d.Metadata.Revision = ""
	r.Spec = &typesv1.DatabaseServerSpec{HostId: id, Hostname: cfg.Hostname, SoftwareVersion: version.Version, Database: d, Health: sv.Health()}
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

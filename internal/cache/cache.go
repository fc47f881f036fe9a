// Package cache is the copy of the cluster's state that a service decides with:
// authorities, roles, and at the Proxy the servers. It is fed by the control
// stream (package control) or by a watch of the store, and answers from memory, so
// that sessions go on while Auth is away. It fetches nothing and never writes back.
//
// What it returns is shared: callers must not change it.
package cache

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Cache is a copy of some kinds of resource. It is safe for concurrent use.
type Cache struct {
	mu      sync.RWMutex
	current map[string]*table
	// staging collects a snapshot, nil when none is under way: readers keep the
	// old state until the new one is whole.
	staging  map[string]*table
	revision uint64
	synced   chan struct{}
	isSynced bool
	changed  map[string]chan struct{}
	// heard is when Auth was last known to have nothing newer.
	heard time.Time
	// lockout is why Auth refuses this process.
	lockout string
}

// table holds the resources of one kind; sorted is made on demand.
type table struct {
	byName map[string]types.Resource
	sorted []types.Resource
	// served has those whose names types.ServerName made, by what they serve. The lists
	// do not change: a reader may have one.
	served map[string][]types.Resource
}

// New returns an empty cache.
func New() *Cache {
	return &Cache{current: map[string]*table{}, synced: make(chan struct{}), changed: map[string]chan struct{}{}}
}

// Reset begins a snapshot: what is applied from now on replaces everything at the
// next Synced. Until then readers see what was there before.
func (c *Cache) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.staging = map[string]*table{}
}

// Apply takes one change, into the snapshot under way if there is one.
func (c *Cache) Apply(ch types.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tables := c.current
	if c.staging != nil {
		tables = c.staging
	}
	t := tables[ch.Kind]
	if t == nil {
		t = &table{byName: map[string]types.Resource{}}
		tables[ch.Kind] = t
	}
	t.sorted = nil
	t.index(ch)
	if ch.Resource == nil {
		delete(t.byName, ch.Name)
	} else {
		t.byName[ch.Name] = ch.Resource
	}
	if c.staging == nil {
		c.notifyLocked(ch.Kind)
	}
}

// Synced ends a snapshot or a batch of changes: the cache is at revision rev.
func (c *Cache) Synced(rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.staging != nil {
		before := c.current
		c.current, c.staging = c.staging, nil
		for kind := range before {
			c.notifyLocked(kind)
		}
		for kind := range c.current {
			c.notifyLocked(kind)
		}
		// After a restore of Auth the revision may be lower than it was.
		c.revision = rev
	}
	c.revision = max(c.revision, rev)
	if !c.isSynced {
		c.isSynced = true
		close(c.synced)
	}
}

// WaitSynced waits until the cache was whole for the first time.
func (c *Cache) WaitSynced(ctx context.Context) error {
	select {
	case <-c.synced:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Revision returns the revision that the cache is at; 0 before the first Synced.
func (c *Cache) Revision() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// Changed returns a channel that is closed at the next change of the kind.
func (c *Cache) Changed(kind string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.changed[kind]
	if ch == nil {
		ch = make(chan struct{})
		c.changed[kind] = ch
	}
	return ch
}

func (c *Cache) notifyLocked(kind string) {
	if ch := c.changed[kind]; ch != nil {
		close(ch)
		delete(c.changed, kind)
	}
}

// Roles returns the roles of those names that exist, in the order asked for.
func (c *Cache) Roles(names []string) []*typesv1.Role {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]*typesv1.Role, 0, len(names))
	for _, name := range names {
		if r, ok := getLocked[*typesv1.Role](c, types.KindRole, name); ok {
			out = append(out, r)
		}
	}
	return out
}

// Authorities returns the public halves of the certificate authorities by name.
func (c *Cache) Authorities() []*typesv1.CertAuthority {
	return list[*typesv1.CertAuthority](c, types.KindCertAuthority)
}

// Nodes returns the SSH servers by host id.
func (c *Cache) Nodes() []*typesv1.Server { return list[*typesv1.Server](c, types.KindNode) }

// Proxies returns the Proxies by host id.
func (c *Cache) Proxies() []*typesv1.Server { return list[*typesv1.Server](c, types.KindProxy) }

// Node returns the SSH server with the host id.
func (c *Cache) Node(id string) (*typesv1.Server, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return getLocked[*typesv1.Server](c, types.KindNode, id)
}

// Removed reports whether the host is not, or no longer, a process of the cluster.
// Only the cache of a Proxy knows, and it has at least the Proxy itself: while it
// has no host at all, before the first Synced or with an Auth Service that does not
// tell, nobody was removed.
func (c *Cache) Removed(hostID string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := c.current[types.KindInstance]
	if !c.isSynced || t == nil || len(t.byName) == 0 {
		return false
	}
	_, ok := t.byName[hostID]
	return !ok
}

// ClusterName returns the cluster's name resource, or nil before it is known.
func (c *Cache) ClusterName() *typesv1.ClusterName {
	if all := list[*typesv1.ClusterName](c, types.KindClusterName); len(all) > 0 {
		return all[0]
	}
	return nil
}

func getLocked[T types.Resource](c *Cache, kind, name string) (T, bool) {
	var none T
	t := c.current[kind]
	if t == nil {
		return none, false
	}
	r, ok := t.byName[name].(T)
	return r, ok
}

// list returns the resources of a kind sorted by name.
func list[T types.Resource](c *Cache, kind string) []T {
	all := c.sorted(kind)
	out := make([]T, 0, len(all))
	for _, r := range all {
		if typed, ok := r.(T); ok {
			out = append(out, typed)
		}
	}
	return out
}

func (c *Cache) sorted(kind string) []types.Resource {
	c.mu.RLock()
	t := c.current[kind]
	if t == nil || t.sorted != nil || len(t.byName) == 0 {
		defer c.mu.RUnlock()
		if t == nil {
			return nil
		}
		return t.sorted
	}
	c.mu.RUnlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	if t = c.current[kind]; t == nil {
		return nil
	}
	if t.sorted == nil {
		t.sorted = make([]types.Resource, 0, len(t.byName))
		for _, r := range t.byName {
			t.sorted = append(t.sorted, r)
		}
		slices.SortFunc(t.sorted, func(a, b types.Resource) int {
			return cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
		})
	}
	return t.sorted
}

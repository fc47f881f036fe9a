package cache

import (
	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Apps returns the dynamic applications by name.
func (c *Cache) Apps() []*typesv1.App { return list[*typesv1.App](c, types.KindApp) }

// AppServers returns who serves which application, by name.
func (c *Cache) AppServers() []*typesv1.AppServer {
	return list[*typesv1.AppServer](c, types.KindAppServer)
}

// Databases returns the dynamic databases by name.
func (c *Cache) Databases() []*typesv1.Database {
	return list[*typesv1.Database](c, types.KindDatabase)
}

// DatabaseServers returns who serves which database, by name.
func (c *Cache) DatabaseServers() []*typesv1.DatabaseServer {
	return list[*typesv1.DatabaseServer](c, types.KindDatabaseServer)
}

// AppServersOf returns who serves the application, in no order.
func (c *Cache) AppServersOf(app string) []*typesv1.AppServer {
	return served[*typesv1.AppServer](c, types.KindAppServer, app)
}

// DatabaseServersOf returns who serves the database, in no order.
func (c *Cache) DatabaseServersOf(database string) []*typesv1.DatabaseServer {
	return served[*typesv1.DatabaseServer](c, types.KindDatabaseServer, database)
}

func served[T types.Resource](c *Cache, kind, resource string) []T {
	c.mu.RLock()
	var all []types.Resource
	if t := c.current[kind]; t != nil {
		all = t.served[resource]
	}
	c.mu.RUnlock()
	out := make([]T, 0, len(all))
	for _, r := range all {
		if typed, ok := r.(T); ok {
			out = append(out, typed)
		}
	}
	return out
}

// index takes a change of who serves what; it comes before the change itself. A user
// waits for the answer, so that nothing is searched for among all.
func (t *table) index(ch types.Change) {
	if ch.Kind != types.KindAppServer && ch.Kind != types.KindDatabaseServer {
		return
	}
	resource, _, ok := types.SplitServerName(ch.Name)
	if !ok {
		return
	}
	before := t.byName[ch.Name]
	list := make([]types.Resource, 0, len(t.served[resource])+1)
	for _, r := range t.served[resource] {
		if r != before {
			list = append(list, r)
		}
	}
	if ch.Resource != nil {
		list = append(list, ch.Resource)
	}
	switch {
	case len(list) == 0:
		delete(t.served, resource)
	case t.served == nil:
		t.served = map[string][]types.Resource{resource: list}
	default:
		t.served[resource] = list
	}
}

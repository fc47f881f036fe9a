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

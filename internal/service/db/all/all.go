// Package all lists the engines of the Database Service.
package all

import (
	"teleport/internal/service/db/clickhouse"
	"teleport/internal/service/db/engine"
	"teleport/internal/service/db/mongodb"
	"teleport/internal/service/db/mysql"
	"teleport/internal/service/db/passthrough"
	"teleport/internal/service/db/postgres"
	"teleport/internal/service/db/redis"
)

// Engines returns one of each.
func Engines() []engine.Engine {
	return []engine.Engine{
		postgres.New(),
		mysql.New(),
		redis.New(),
		mongodb.New(),
		clickhouse.New(),
		passthrough.New(),
	}
}

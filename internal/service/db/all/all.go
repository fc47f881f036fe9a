// Package all lists the engines of the Database Service.
package all

import (
	"teleport/internal/service/db/engine"
	"teleport/internal/service/db/postgres"
)

// Engines returns one of each.
func Engines() []engine.Engine {
	return []engine.Engine{
		postgres.New(),
	}
}

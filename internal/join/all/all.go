// Package all lists the join methods, for the process that offers them.
package all

import (
	"teleport/internal/join/method"
	"teleport/internal/join/token"
)

// Methods returns every join method.
func Methods() []method.Method {
	return []method.Method{token.Method()}
}

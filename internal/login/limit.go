package login

import (
	"teleport/internal/budget"
	"teleport/internal/rpc"
)

// sourceOf returns what stands for the caller in the limits.
func sourceOf(c rpc.Caller) string {
	if c.Local {
		return "local"
	}
	return budget.Source(c.Addr)
}

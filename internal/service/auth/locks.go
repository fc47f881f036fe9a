package auth

import (
	typesv1 "teleport/api/types/v1"
)

// lockView shows the authorizer what the agents' streams know of locks. The
// authorizer is made first.
type lockView struct{ s *Service }

// Locks returns the locks.
func (v lockView) Locks() []*typesv1.Lock { return v.s.agents.Locks() }

// JoinToken returns the id of the token that the host joined with.
func (v lockView) JoinToken(hostID string) string { return v.s.agents.JoinToken(hostID) }

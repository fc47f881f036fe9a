package db

import (
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
)

// Match replaces Config.Matchers while the service runs. Sessions with a database of the
// cluster that none of them matches end.
func (s *Service) Match(matchers []map[string]*typesv1.Strings) {
	s.table.mu.Lock()
	s.table.matches = matcher(matchers)
	s.table.mu.Unlock()
	s.table.reconcile()
}

// matcher matches as the labels of a role do.
func matcher(matchers []map[string]*typesv1.Strings) *access.Checker {
	var roles []*typesv1.Role
	for _, m := range matchers {
		roles = append(roles, &typesv1.Role{Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{DbLabels: m}}})
	}
	return access.NewChecker(access.Subject{Roles: roles})
}

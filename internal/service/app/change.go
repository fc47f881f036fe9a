package app

import (
	"context"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
)

// Match replaces Config.Matchers while the service runs. Connections to an application of
// the cluster that none of them matches end.
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
		roles = append(roles, &typesv1.Role{Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: m}}})
	}
	return access.NewChecker(access.Subject{Roles: roles})
}

// Drain takes no more connections and lets those that are open end by themselves: those
// of HTTP that carry no request at once, the others after it. It does not wait, and ctx
// does not end it.
func (s *Service) Drain(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, w := range []*web{s.h1, s.h2} {
		go w.shutdown(ctx)
	}
}

package app

import (
	"context"

	typesv1 "teleport/api/types/v1"
)

// Match replaces Config.Matchers while the service runs. Connections to an application of
// the cluster that none of them matches end.
func (s *Service) Match(matchers []map[string]*typesv1.Strings) { s.table.Match(matchers) }

// Drain takes no more connections and lets those that are open end by themselves: those
// of HTTP that carry no request at once, the others after it. It does not wait, and ctx
// does not end it.
func (s *Service) Drain(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, w := range []*web{s.h1, s.h2} {
		go w.shutdown(ctx)
	}
}

package db

import typesv1 "teleport/api/types/v1"

// Match replaces Config.Matchers while the service runs. Sessions with a database of the
// cluster that none of them matches end.
func (s *Service) Match(matchers []map[string]*typesv1.Strings) { s.table.Match(matchers) }

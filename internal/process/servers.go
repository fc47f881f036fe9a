package process

import (
	"maps"
	"slices"
	"sync"

	"teleport/internal/types"
)

// servers is what the process announces: a resource for a service, or for each thing that
// a service serves.
type servers struct {
	mu      sync.Mutex
	byKey   map[serverKey]types.Resource
	frozen  bool
	changed chan struct{}
}

type serverKey struct{ kind, name string }

func newServers() *servers {
	return &servers{byKey: map[serverKey]types.Resource{}, changed: make(chan struct{}, 1)}
}

// announce sets a resource.
func (s *servers) announce(r types.Resource) {
	s.change(func() { s.byKey[serverKey{r.GetKind(), r.GetMetadata().GetName()}] = r })
}

// withdraw takes a resource back.
func (s *servers) withdraw(kind, name string) {
	s.change(func() { delete(s.byKey, serverKey{kind, name}) })
}

// withdrawAll takes all resources of a kind back.
func (s *servers) withdrawAll(kind string) {
	s.change(func() { maps.DeleteFunc(s.byKey, func(k serverKey, _ types.Resource) bool { return k.kind == kind }) })
}

// freeze leaves what is announced as it is from now on: another process of the host says
// what is new.
func (s *servers) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = true
}

func (s *servers) change(make func()) {
	s.mu.Lock()
	frozen := s.frozen
	if !frozen {
		make()
	}
	s.mu.Unlock()
	if !frozen {
		nudge(s.changed)
	}
}

// list returns the resources.
func (s *servers) list() []types.Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.byKey))
}

package process

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// enforcers are the services of the process that end what locks forbid. One that
// starts later has nothing to end yet.
type enforcers struct {
	mu     sync.Mutex
	byName map[string]func(context.Context) error
}

// set notes a service, in the place of one of the name that was before it.
func (e *enforcers) set(name string, enforce func(context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byName == nil {
		e.byName = map[string]func(context.Context) error{}
	}
	e.byName[name] = enforce
}

// enforce returns when no service has anything open that a lock forbids.
func (e *enforcers) enforce(ctx context.Context) error {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.byName))
	e.mu.Unlock()
	failed := make([]error, len(list))
	var work sync.WaitGroup
	for i, enforce := range list {
		work.Go(func() { failed[i] = enforce(ctx) })
	}
	work.Wait()
	return errors.Join(failed...)
}

package hosted

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"teleport/internal/label"
	"teleport/internal/types"
)

// Healthy is the health of a resource that can be reached. Any other is why it cannot.
const Healthy = "healthy"

// Entry is a resource in a Table.
type Entry[T types.Resource] struct {
	static bool
	labels *label.Set
	// token are the labels of the host.
	token    map[string]string
	ready    chan struct{}
	cancel   context.CancelFunc
	announce func(ctx context.Context)

	mu     sync.Mutex
	r      T
	health string
}

// Resource is the resource as it is configured now.
func (e *Entry[T]) Resource() T {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.r
}

func (e *Entry[T]) set(r T) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.r = r
}

// Ready reports whether the labels are known.
func (e *Entry[T]) Ready() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

// Labels returns the labels that decide: the resource's, the results of its commands, and
// what the join token says of this host, which nothing replaces.
func (e *Entry[T]) Labels() map[string]string {
	out := e.labels.Results()
	maps.Copy(out, e.Resource().GetMetadata().GetLabels())
	maps.Copy(out, e.token)
	return out
}

// Health is what was found when somebody last tried to reach the resource; empty before.
func (e *Entry[T]) Health() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.health
}

// SetHealth notes whether the resource could be reached. It tells the cluster what is new
// while ctx lasts, and returns whether it is.
func (e *Entry[T]) SetHealth(ctx context.Context, health string) (changed bool) {
	e.mu.Lock()
	changed = e.health != health
	e.health = health
	e.mu.Unlock()
	if changed {
		e.announce(ctx)
	}
	return changed
}

// defaultPeriod is how often a command for a label runs that does not say so.
const defaultPeriod = time.Minute

// labels makes the labels of a resource that programs print. They run only for those of
// this host's own configuration: who may write resources of the cluster may not run
// programs on its hosts.
func (t *Table[T, S]) labels(r T, static bool) (*label.Set, error) {
	var list []label.Command
	if static {
		for name, c := range t.cfg.Commands(r) {
			period := defaultPeriod
			if text := c.GetPeriod(); text != "" {
				var err error
				if period, err = types.ParseDuration(text); err != nil {
					return nil, fmt.Errorf("dynamic label %q: %w", name, err)
				}
			}
			list = append(list, label.Command{Name: name, Command: c.GetCommand(), Period: period})
		}
	}
	return label.New(r.GetMetadata().GetLabels(), list, t.cfg.Log)
}

package sshaccess

import (
	"context"
	"sync"
	"time"

	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// longestLook is the pause between two looks at the connections when none of them is
	// due earlier and nothing changes.
	longestLook = 30 * time.Second
	// shortestLook keeps connections that are due now, but do not go, from being looked
	// at all the time.
	shortestLook = 250 * time.Millisecond
)

// Open is what a Registry keeps: a *Connection, or something that has one.
type Open interface{ Base() *Connection }

// Base returns c.
func (c *Connection) Base() *Connection { return c }

// Registry knows the connections that are open now.
type Registry[C Open] struct {
	g     *Guard
	mu    sync.Mutex
	conns map[*sshd.Conn]C
	// more has a value when a connection was added.
	more chan struct{}
}

// NewRegistry returns one without connections.
func NewRegistry[C Open](g *Guard) *Registry[C] {
	return &Registry[C]{g: g, conns: map[*sshd.Conn]C{}, more: make(chan struct{}, 1)}
}

// Add adds a connection.
func (r *Registry[C]) Add(c C) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c.Base().SSH] = c
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// Remove takes a connection out.
func (r *Registry[C]) Remove(c C) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c.Base().SSH)
}

// Find returns the connection, unless it has ended.
func (r *Registry[C]) Find(c *sshd.Conn) (own C, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	own, ok = r.conns[c]
	return own, ok
}

// Count returns how many there are.
func (r *Registry[C]) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

func (r *Registry[C]) list() []C {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]C, 0, len(r.conns))
	for _, c := range r.conns {
		out = append(out, c)
	}
	return out
}

// CloseLocked closes every connection that a lock forbids, all at the same time, and
// returns how many there were, once they are closed. A connection that logs in meanwhile
// is decided about once more when it is added.
func (r *Registry[C]) CloseLocked(ctx context.Context) int {
	var closing sync.WaitGroup
	n := 0
	for _, c := range r.list() {
		if text := c.Base().Locked(); text != "" {
			n++
			closing.Go(func() { c.Base().Close(ctx, text) })
		}
	}
	closing.Wait()
	return n
}

// FollowLocks ends what new locks forbid, whoever else asks for it, until ctx ends.
func (r *Registry[C]) FollowLocks(ctx context.Context) {
	var closing sync.WaitGroup
	defer closing.Wait()
	for {
		changed := r.g.cfg.Cache.Changed(types.KindLock)
		// On its own: a connection that takes its time does not delay the next lock.
		closing.Go(func() { r.CloseLocked(ctx) })
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// EnforceLimits closes connections that are due until ctx ends: due returns why one is
// now, or when to look again; it is asked when roles or nodes change.
func (r *Registry[C]) EnforceLimits(ctx context.Context, due func(C) (reason string, wait time.Duration)) {
	var closing sync.WaitGroup
	defer closing.Wait()
	timer := time.NewTimer(longestLook)
	defer timer.Stop()
	for {
		roles, nodes := r.g.cfg.Cache.Changed(types.KindRole), r.g.cfg.Cache.Changed(types.KindNode)
		timer.Reset(r.look(ctx, &closing, due))
		select {
		case <-ctx.Done():
			return
		case <-roles:
		case <-nodes:
		case <-r.more:
		case <-timer.C:
		}
	}
}

// look closes what is due and returns how long it is until the next is.
func (r *Registry[C]) look(ctx context.Context, closing *sync.WaitGroup, due func(C) (string, time.Duration)) time.Duration {
	next := longestLook
	for _, c := range r.list() {
		reason, wait := due(c)
		if reason == "" {
			next = min(next, wait)
			continue
		}
		// Once closed it goes from the list; it is not waited for here.
		if !c.Base().limited.Swap(true) {
			closing.Go(func() { c.Base().Close(ctx, reason) })
		}
	}
	return max(next, shortestLook)
}

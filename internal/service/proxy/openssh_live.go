package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// longestLook is the pause between two looks at the visits when none of them is due
	// earlier and no role changes; shortestLook keeps those that are due, but do not go,
	// from being looked at all the time.
	longestLook  = 30 * time.Second
	shortestLook = 250 * time.Millisecond
	// refusalWindow is how long the same refusal is only counted.
	refusalWindow = time.Minute
	maxRefusals   = 1000
)

// visitCounts are the connections of each user to each server.
type visitCounts struct {
	mu    sync.Mutex
	count map[string]int64
}

// take counts one more, unless there are limit of them; 0 is no limit.
func (c *visitCounts) take(key string, limit int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit > 0 && c.count[key] >= limit {
		return false
	}
	if c.count == nil {
		c.count = map[string]int64{}
	}
	c.count[key]++
	return true
}

func (c *visitCounts) give(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[key]--; c.count[key] <= 0 {
		delete(c.count, key)
	}
}

// connected notes a visit that has logged in. It decides again first: what changed
// meanwhile closed those that were noted, and this one was not.
func (v *visit) connected(ctx context.Context, c *sshd.Conn) func() {
	g, err := guestOf(c.Login())
	if err != nil {
		c.Disconnect(err.Error())
		return func() {}
	}
	v.conn, v.user = c, g.id
	v.o.add(v)
	if d := v.decide(g.id, c.User()); !d.Allowed {
		v.close(ctx, v.told(c.User(), d))
	}
	return func() {
		v.o.remove(v)
		if events := v.stops(); len(events) > 0 {
			v.o.emitLate(ctx, events...)
		}
	}
}

// close tells the user the reason, records it and ends the connection; the first reason
// counts.
func (v *visit) close(ctx context.Context, reason string) {
	v.once.Do(func() {
		v.reason.Store(&reason)
		v.conn.Disconnect(reason)
		v.o.emitLate(ctx, audit.New(audit.ClientDisconnect, v.fields(v.conn, v.user, map[string]any{"reason": reason})))
		v.log.InfoContext(ctx, "connection closed", "user", v.user.User.Name, "login", v.conn.User(), "reason", reason)
	})
}

// enforceLocks closes the visits that a lock forbids, and returns how many there were,
// once they are closed.
func (o *servers) enforceLocks(ctx context.Context) int {
	var closing sync.WaitGroup
	n := 0
	for _, v := range o.list() {
		if text := v.locked(v.user, v.conn.User()); text != "" {
			n++
			closing.Go(func() { v.close(ctx, text) })
		}
	}
	closing.Wait()
	return n
}

// watch closes the visits that locks, limits of time or the removal of their server end,
// and reports refusals that were repeated, until ctx ends.
func (o *servers) watch(ctx context.Context) error {
	var closing sync.WaitGroup
	defer closing.Wait()
	closing.Go(func() { o.reportRefusals(ctx) })
	timer := time.NewTimer(longestLook)
	defer timer.Stop()
	for {
		locks, roles, nodes := o.s.cfg.Cache.Changed(types.KindLock), o.s.cfg.Cache.Changed(types.KindRole), o.s.cfg.Cache.Changed(types.KindNode)
		closing.Go(func() { o.enforceLocks(ctx) })
		timer.Reset(o.look(ctx, &closing))
		select {
		case <-ctx.Done():
			return nil
		case <-locks:
		case <-roles:
		case <-nodes:
		case <-o.more:
		case <-timer.C:
		}
	}
}

// look closes what is due and returns how long it is until the next is.
func (o *servers) look(ctx context.Context, closing *sync.WaitGroup) time.Duration {
	next := longestLook
	for _, v := range o.list() {
		reason, wait := v.due()
		if reason == "" {
			next = min(next, wait)
			continue
		}
		if !v.limited.Swap(true) {
			closing.Go(func() { v.close(ctx, reason) })
		}
	}
	return max(next, shortestLook)
}

// due returns why the visit is to end now, or when to look again.
func (v *visit) due() (reason string, wait time.Duration) {
	if _, ok := v.o.node(v.id); !ok {
		return "connection closed: the server was removed from the cluster", 0
	}
	o := v.options(v.user)
	wait = longestLook
	if o.DisconnectExpired {
		left := time.Until(v.user.Expires)
		if left <= 0 {
			return "connection closed: your certificate has expired, log in again", 0
		}
		wait = min(wait, left)
	}
	if o.IdleTimeout > 0 {
		left := o.IdleTimeout - time.Since(v.conn.LastActive())
		if left <= 0 {
			return fmt.Sprintf("connection closed: nothing was done on it for %s", o.IdleTimeout), 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

// refusalLog remembers the refusals of the last minute: a program that tries again and
// again must not flood the audit log.
type refusalLog struct {
	mu   sync.Mutex
	seen map[string]*pastRefusal
}

type pastRefusal struct {
	event *auditv1.Event
	at    time.Time
	// more counts those after the event.
	more int
}

func newRefusalLog() *refusalLog { return &refusalLog{seen: map[string]*pastRefusal{}} }

// note gives e its uid and returns true, unless the same was refused within the window:
// then it counts, gives e the uid of the first, and returns false.
func (r *refusalLog) note(key string, e *auditv1.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.seen[key]; old != nil && time.Since(old.at) < refusalWindow {
		old.more++
		e.Uid = old.event.GetUid()
		return false
	}
	e.Uid = uuid.NewString()
	if len(r.seen) < maxRefusals {
		r.seen[key] = &pastRefusal{event: proto.CloneOf(e), at: time.Now()}
	}
	return true
}

// expired forgets what is older than the window, or everything, and returns an event
// with the count for each that was repeated.
func (r *refusalLog) expired(all bool) []*auditv1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*auditv1.Event
	for key, old := range r.seen {
		if !all && time.Since(old.at) < refusalWindow {
			continue
		}
		delete(r.seen, key)
		if old.more == 0 {
			continue
		}
		e := proto.CloneOf(old.event)
		first := e.GetUid()
		e.Uid, e.Time = "", nil
		e.Fields.Fields["repeated"] = structpb.NewNumberValue(float64(old.more))
		e.Fields.Fields["first_event"] = structpb.NewStringValue(first)
		out = append(out, e)
	}
	return out
}

// reportRefusals writes the counts to the audit log now and then, and at the end.
func (o *servers) reportRefusals(ctx context.Context) {
	tick := time.NewTicker(refusalWindow)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		if events := o.refusals.expired(ended); len(events) > 0 {
			o.emitLate(ctx, events...)
		}
	}
}

// emitLate stores events even if ctx has ended.
func (o *servers) emitLate(ctx context.Context, events ...*auditv1.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emitTimeout)
	defer cancel()
	if err := o.s.cfg.Emit(ctx, events...); err != nil {
		o.s.cfg.Log.ErrorContext(ctx, "events are not in the audit log", "error", err, "count", len(events), "first", events[0].GetEvent())
	}
}

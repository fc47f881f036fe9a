package proxy

import (
	"context"
	"sync"
	"time"

	"teleport/internal/audit"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// connected notes a visit that has logged in. It decides again first: what changed
// meanwhile closed those that were noted, and this one was not.
func (v *visit) connected(ctx context.Context, c *sshd.Conn) func() {
	g, err := sshaccess.GuestOf(c.Login())
	if err != nil {
		c.Disconnect(err.Error())
		return func() {}
	}
	v.Connection = v.o.guard.Connected(ctx, v.place, c, g.ID)
	v.o.visits.Add(v)
	if d := v.decide(g.ID, c.User()); !d.Allowed {
		v.Close(ctx, v.told(c.User(), d))
	}
	return func() {
		v.o.visits.Remove(v)
		v.Ended(ctx)
	}
}

// watch closes the visits that locks, limits of time or the removal of their server end,
// and reports refusals that were repeated, until ctx ends.
func (o *servers) watch(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { o.guard.ReportRefusals(ctx) })
	work.Go(func() { o.visits.FollowLocks(ctx) })
	o.visits.EnforceLimits(ctx, (*visit).Due)
	return nil
}

// Due returns why the visit is to end now, or when to look again.
func (v *visit) Due() (reason string, wait time.Duration) {
	if _, ok := v.o.node(v.place.ID); !ok {
		return "connection closed: the server was removed from the cluster", 0
	}
	return v.Connection.Due()
}

// session is asked when a user has said what to run: it decides again, and records that
// the session begins. Without that there is no session.
func (v *visit) session(ctx context.Context, se *sshd.Session) (func(sshd.Exit), error) {
	r := v.o.guard.NewRecord(v.place, se, v.ID)
	if d := v.decide(v.ID, v.Login()); !d.Allowed {
		reason := sshaccess.ReasonOf(d)
		e := r.Event(audit.SessionRejected, map[string]any{"reason": reason, "success": false})
		return nil, v.o.guard.Refuse(ctx, e, v.ID, v.told(v.Login(), d), reason)
	}
	if err := r.MayCopy(ctx, v.mayNot); err != nil {
		return nil, err
	}
	var labels map[string]string
	if node, ok := v.o.node(v.place.ID); ok {
		labels = types.ServerLabels(node)
	}
	if err := r.Start(ctx, labels); err != nil {
		return nil, err
	}
	return func(exit sshd.Exit) {
		more := map[string]any{}
		if reason := v.Closed(); reason != "" {
			more["reason"] = reason
		}
		r.End(ctx, exit, sshaccess.Ending{More: more})
	}, nil
}

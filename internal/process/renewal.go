package process

import (
	"context"
	"slices"
	"time"

	"teleport/internal/retry"
	"teleport/internal/types"
)

// renewLoop renews until ctx ends. A failure is tried again: two thirds of the
// life of the identity are left for it.
func (p *process) renewLoop(ctx context.Context) error {
	wait := p.untilRenewal()
	if p.auth == nil && slices.ContainsFunc(p.holder.State().Roles, func(r types.SystemRole) bool { return !slices.Contains(p.roles(), r) }) {
		wait = 0
	}
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-p.renewNow:
			timer.Stop()
		}
		err := p.renewOnce(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.ErrorContext(ctx, "identity could not be renewed, will try again", "error", err, "expires", p.holder.Expires())
			p.health.Degraded("renewal", err)
			wait = jitter(renewRetry)
			continue
		}
		p.health.Ready("renewal")
		wait = p.untilRenewal()
	}
}

// untilRenewal is the time to a third of the life of the identity, with jitter.
func (p *process) untilRenewal() time.Duration {
	issued, expires := p.holder.Certificate("").Leaf.NotBefore, p.holder.Expires()
	due := issued.Add(jitter(expires.Sub(issued) / 3))
	return max(0, time.Until(due))
}

// jitter spreads d over 90 to 110 per cent of it.
func jitter(d time.Duration) time.Duration { return d - d/10 + retry.Jitter(d/5) }

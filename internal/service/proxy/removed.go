package proxy

import (
	"context"
	"time"

	"teleport/internal/fault"
	"teleport/internal/retry"
	"teleport/internal/types"
)

// settle is how long further removals may follow before tunnels are looked at again.
const settle = 200 * time.Millisecond

// admit refuses the tunnels of hosts that are not of the cluster any more, whose
// certificates are good until they expire, and of those that are locked.
func (s *Service) admit(hostID string) error {
	if s.cfg.Cache.Removed(hostID) {
		return fault.Denied("host %s was removed from the cluster, or joined a moment ago", hostID)
	}
	if err := s.lockedOut(); err != nil {
		return err
	}
	return s.lockedHost(hostID)
}

// closeRemoved closes the tunnels of hosts that are removed, until ctx ends.
func (s *Service) closeRemoved(ctx context.Context) error {
	for {
		changed := s.cfg.Cache.Changed(types.KindInstance)
		s.tunnels.Recheck(ctx)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		if retry.Sleep(ctx, settle) != nil {
			return nil
		}
	}
}

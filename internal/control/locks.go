package control

import (
	"context"
	"time"

	"teleport/internal/retry"
)

// acknowledgePause is the least time between two acknowledgements: when many locks
// change at once, one stands for all of them.
const acknowledgePause = time.Second

// lockbox carries the revision of the locks of one stream from the receiver, who
// applied them, to the enforcer, and from there to the sender.
type lockbox struct {
	// wanted says that Auth takes acknowledgements, dirty that one is due.
	wanted, dirty bool
	// revision is the highest of the locks that were applied. A batch is marked with
	// a lower one while the rest of its last transaction may still come.
	revision uint64
	changed  chan uint64
	enforced chan uint64
}

// applied notes a change of a lock.
func (b *lockbox) applied(revision uint64) {
	b.revision = max(b.revision, revision)
	b.dirty = true
}

// synced tells the enforcer at the end of a batch, if it has something to do.
func (b *lockbox) synced(revision uint64) {
	if !b.dirty {
		return
	}
	b.dirty = false
	select {
	case <-b.changed: // replace a value that was not taken yet
	default:
	}
	b.changed <- max(b.revision, revision)
}

// enforceLocks has the locks enforced whenever they changed, until ctx ends.
func (in *inbox) enforceLocks(ctx context.Context) {
	for {
		var revision uint64
		select {
		case revision = <-in.locks.changed:
		case <-ctx.Done():
			return
		}
		if in.cfg.Enforce != nil {
			if err := in.cfg.Enforce(ctx); err != nil {
				if ctx.Err() == nil {
					in.cfg.Log.ErrorContext(ctx, "the locks of the cluster are not enforced in full", "error", err)
				}
				continue
			}
		}
		if !in.locks.wanted {
			continue
		}
		select {
		case in.locks.enforced <- revision:
		case <-ctx.Done():
			return
		}
		if retry.Sleep(ctx, acknowledgePause) != nil {
			return
		}
	}
}

package store

import (
	"context"
	"fmt"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// CheckLocks refuses what a lock is about: fault.ErrDenied with access.CodeLocked. It
// reads the locks as they are at this moment.
func (s *Store) CheckLocks(ctx context.Context, f access.Facts) error {
	locks, err := All[*typesv1.Lock](ctx, s, types.KindLock)
	if err != nil {
		return fmt.Errorf("read the locks: %w", err)
	}
	return access.CheckLocks(locks, f, s.now())
}

// Revision returns the revision at which a stored resource was last written.
func Revision(r types.Resource) (uint64, error) {
	revision, err := parseRevision(r.GetMetadata().GetRevision())
	if err != nil {
		return 0, fault.Invalid("%s: %q is not a revision", title(r.GetKind(), r.GetMetadata().GetName()), r.GetMetadata().GetRevision())
	}
	return revision, nil
}

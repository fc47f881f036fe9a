package store

import (
	"context"
	"fmt"
	"slices"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// CheckLocks refuses what a lock is about: fault.ErrDenied with access.CodeLocked, by
// the locks as they are at this moment.
func (s *Store) CheckLocks(ctx context.Context, f access.Facts) error {
	locks, err := Kept(ctx, s, types.KindLock, sortLocks)
	if err != nil {
		return fmt.Errorf("read the locks: %w", err)
	}
	return access.CheckLocks(locks.about(f), f, s.now())
}

// locks are locks by what they ask for, so that many of them cost those nothing whom
// they are not about: each is under one value of its target, or in rest.
type locks struct {
	byHost, byToken, byUser map[string][]*typesv1.Lock
	rest                    []*typesv1.Lock
}

func sortLocks(all []*typesv1.Lock) *locks {
	out := &locks{byHost: map[string][]*typesv1.Lock{}, byToken: map[string][]*typesv1.Lock{}, byUser: map[string][]*typesv1.Lock{}}
	for _, l := range all {
		switch target := l.GetSpec().GetTarget(); {
		case target.GetServerId() != "":
			out.byHost[target.GetServerId()] = append(out.byHost[target.GetServerId()], l)
		case target.GetJoinToken() != "":
			out.byToken[target.GetJoinToken()] = append(out.byToken[target.GetJoinToken()], l)
		case target.GetUser() != "":
			out.byUser[target.GetUser()] = append(out.byUser[target.GetUser()], l)
		default:
			out.rest = append(out.rest, l)
		}
	}
	return out
}

// about returns every lock that the facts may match.
func (l *locks) about(f access.Facts) []*typesv1.Lock {
	return slices.Concat(l.byHost[f.ServerID], l.byToken[f.JoinToken], l.byUser[f.User], l.rest)
}

// Revision returns the revision at which a stored resource was last written.
func Revision(r types.Resource) (uint64, error) {
	revision, err := parseRevision(r.GetMetadata().GetRevision())
	if err != nil {
		return 0, fault.Invalid("%s: %q is not a revision", title(r.GetKind(), r.GetMetadata().GetName()), r.GetMetadata().GetRevision())
	}
	return revision, nil
}

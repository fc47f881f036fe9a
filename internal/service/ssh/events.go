package ssh

import (
	"context"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/identity"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// record writes the events of one session.
type record struct {
	*sshaccess.Record
	s     *Service
	files *transfers
	// party is the company of a session on a terminal, or nil.
	party *party
}

func (s *Service) newRecord(se *sshd.Session, id *identity.Identity) *record {
	r := &record{Record: s.guard.NewRecord(s.place(), se, id), s: s}
	r.files = &transfers{record: r}
	return r
}

// end records how the session ended.
func (r *record) end(ctx context.Context, exit sshd.Exit, failure error) {
	more := map[string]any{}
	if sum := r.files.summary(); sum != nil {
		more["transfers"] = sum
	}
	if r.party != nil {
		names, why := r.party.everybody()
		more["participants"] = append([]string{r.ID.User.Name}, names...)
		if why != "" {
			more["reason"] = why
		}
	}
	if reason := r.s.endedBy(r.Session.Conn()); reason != "" {
		more["reason"] = reason
	}
	r.End(ctx, exit, sshaccess.Ending{Failure: failure, Before: r.files.events(), More: more})
}

// emitLate stores events even if ctx has ended.
func (s *Service) emitLate(ctx context.Context, events ...*auditv1.Event) {
	s.guard.EmitLate(ctx, events...)
}

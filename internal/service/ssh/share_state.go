package ssh

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// await returns when the company is there that the roles of the owner ask for.
func (p *party) await(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != types.SessionPending {
		return nil
	}
	text := string(notice(fmt.Sprintf("session %s waits for %s. Others join it with: tsh join --mode=MODE %s. Ctrl-C gives up.",
		p.se.ID(), p.missingLocked(), p.se.ID())))
	p.mu.Unlock()
	_, err := io.WriteString(p.se, text)
	p.mu.Lock()
	for err == nil && p.state == types.SessionPending && !p.ended {
		p.changed.Wait()
	}
	switch {
	case err != nil:
		return err
	case p.ended && context.Cause(ctx) == nil:
		return errOver
	case p.ended:
		return fault.Denied("the session did not begin: %s", p.why)
	}
	return nil
}

// missingLocked says in a line who is missing.
func (p *party) missingLocked() string {
	parts := make([]string, 0, len(p.standing.Needs))
	for _, n := range p.standing.Needs {
		if p.verbose {
			parts = append(parts, n.Verbose())
			continue
		}
		parts = append(parts, n.String())
	}
	return strings.Join(parts, ", and for ")
}

// judgeLocked goes by who is there now.
func (p *party) judgeLocked() {
	company := make([]access.Attendee, len(p.company))
	for i, a := range p.company {
		company[i] = a.Attendee
	}
	before := p.standing
	p.standing = p.needs.Check(company)
	switch {
	case p.ended || p.needs.None():
	case p.standing.Met && p.state == types.SessionPending:
		p.state = types.SessionRunning
		p.sayLocked("everybody who is needed is here: the session begins")
	case p.standing.Met && p.state == types.SessionPaused:
		p.state = types.SessionRunning
		p.sayLocked("everybody who is needed is here again: the session goes on")
	case !p.standing.Met && p.state != types.SessionRunning:
		p.sayLocked("the session waits for " + p.missingLocked())
	case !p.standing.Met && p.needs.Pauses(before, p.standing):
		p.state = types.SessionPaused
		p.sayLocked("the session is paused: it waits for " + p.missingLocked())
	case !p.standing.Met:
		p.endLocked("somebody left who is needed in it: " + p.missingLocked())
	}
	p.changed.Broadcast()
}

// end ends the session for everybody.
func (p *party) end(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(why)
}

func (p *party) endLocked(why string) {
	if p.ended {
		return
	}
	p.ended, p.why = true, why
	if why != "" {
		p.sayLocked("the session is ended: " + why)
	}
	for _, a := range p.company {
		close(a.over)
	}
	p.company = nil
	p.changed.Broadcast()
	if p.typing != nil {
		p.typing.close()
	}
	p.cancel(fault.Denied("%s", why))
}

// tracker is what others may know of the session.
func (p *party) tracker() *typesv1.SessionTracker {
	t, ok := types.New(types.KindSessionTracker, p.se.ID()).(*typesv1.SessionTracker)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Spec = &typesv1.SessionTrackerSpec{
		SessionKind: types.KindSSH, State: p.state, Created: timestamppb.New(p.r.Began),
		Hostname: p.s.cfg.Hostname, ServerId: p.s.cfg.Holder.HostID(), Login: p.se.Conn().User(), Command: line(p.se.Command()),
		Owner: p.r.ID.User.Name, OwnerRoles: p.roles, Reason: p.reason, Invited: p.invited,
	}
	for _, a := range p.company {
		t.Spec.Participants = append(t.Spec.Participants, &typesv1.SessionParticipant{User: a.User, Mode: a.Mode, Joined: timestamppb.New(a.joined)})
	}
	for _, n := range p.standing.Needs {
		t.Spec.Needs = append(t.Spec.Needs, line(n.String()))
	}
	return t
}

// gathering is what is decided by.
func (p *party) gathering() access.Gathering {
	return access.Gathering{Kind: types.KindSSH, Owner: p.r.ID.User.Name, OwnerRoles: p.roles}
}

// everybody returns the names of all who were there, and why the company ended the
// session.
func (p *party) everybody() (names []string, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.names), p.why
}

// alone decides whether the user may do what company could not follow.
func (s *Service) alone(id *identity.Identity) access.Decision {
	return access.Alone(s.subject(id), types.KindSSH)
}

// mayBeAlone refuses what company could not follow to those who may not be alone.
func (s *Service) mayBeAlone(ctx context.Context, r *record) error {
	d := s.alone(r.ID)
	if d.Allowed || r.Session.Interactive() && r.Session.Kind() != sshd.KindSubsystem {
		return nil
	}
	what := "a command without a terminal"
	if r.Session.Kind() == sshd.KindSubsystem {
		what = "a file transfer"
	}
	text := fmt.Sprintf("access denied: your roles ask for others to be in your sessions, and %s cannot be followed: use a terminal, as in tsh ssh -t", what)
	e := r.Event(audit.SessionRejected, map[string]any{"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule})
	return s.refuse(ctx, e, r.ID, text, d.Reason)
}

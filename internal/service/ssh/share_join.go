package ssh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// subsystemJoin begins the name of the subsystem that joins a session: after it come
// the mode, a colon and the session's id, as in join:peer:7c9a2d7e-...
const subsystemJoin = "join:"

// parseJoin reads what a client asked for.
func parseJoin(se *sshd.Session) (mode, id string, ok bool) {
	rest, ok := strings.CutPrefix(se.Command(), subsystemJoin)
	if !ok || se.Kind() != sshd.KindSubsystem {
		return "", "", false
	}
	mode, id, _ = strings.Cut(rest, ":")
	return mode, id, true
}

// decideConn decides about a connection: to log in as a user of this host, or to join
// sessions of others.
func (s *Service) decideConn(id *identity.Identity, login string) access.Decision {
	if login != types.LoginJoin {
		return s.decide(id, login)
	}
	if d, refused := s.guard.LockRefuses(s.place(), id, login); refused {
		return d
	}
	if d, expired := s.guard.Expired(id); expired {
		return d
	}
	return s.stays(id, login)
}

// stays decides by the roles alone whether the user may be here as the login.
func (s *Service) stays(id *identity.Identity, login string) access.Decision {
	switch {
	case login != types.LoginJoin:
		return access.Login(s.subject(id), login, s.labelMap())
	case s.ownSession(id.User.Name):
		return access.Decision{Allowed: true, Rule: access.RuleOwner, Reason: fmt.Sprintf("%q has a session here", id.User.Name)}
	}
	d := access.NewChecker(s.subject(id)).JoinsSome(types.KindSSH)
	if !d.Allowed && s.hasSiblings() {
		// It decides itself, and nothing else is done on such a connection.
		return access.Decision{Allowed: true, Rule: access.RuleOwner, Reason: fmt.Sprintf("%q may have a session in another process of this host", id.User.Name)}
	}
	return d
}

// ownSession reports whether the user has a session that could be joined.
func (s *Service) ownSession(user string) bool {
	return slices.ContainsFunc(s.parties.list(), func(p *party) bool { return p.r.ID.User.Name == user })
}

// join attaches somebody to a session until they leave, or it ends.
func (s *Service) join(ctx context.Context, se *sshd.Session, id *identity.Identity, mode, sid string) sshd.Exit {
	if s.parties.find(sid) == nil {
		if exit, ok := s.joinElsewhere(ctx, se, mode, sid); ok {
			return exit
		}
	}
	p, err := s.admitTo(ctx, se, id, mode, sid)
	if err != nil {
		return s.say(se, err)
	}
	a := &attendee{
		Attendee: access.Attendee{Subject: s.subject(id), Mode: mode},
		id:       id, se: se, joined: s.cfg.Now(), out: newOutlet(), over: make(chan struct{}),
	}
	if err := s.cfg.Emit(ctx, p.joinEvent(audit.SessionJoin, a, nil)); err != nil {
		s.cfg.Log.ErrorContext(ctx, "nobody joins: it cannot be recorded", "error", err, "user", id.User.Name)
		return s.say(se, sshaccess.ErrUnrecorded())
	}
	if err := p.attend(a); err != nil {
		s.emitLate(ctx, p.joinEvent(audit.SessionLeave, a, map[string]any{"reason": err.Error()}))
		return s.say(se, err)
	}
	left := make(chan struct{})
	se.Go(func() { p.listen(a, left) })
	select {
	case <-a.over:
	case <-left:
	case <-ctx.Done():
	}
	p.leave(a)
	more := map[string]any{}
	if reason := s.endedBy(se.Conn()); reason != "" {
		more["reason"] = reason
	}
	s.emitLate(ctx, p.joinEvent(audit.SessionLeave, a, more))
	a.out.flush(parting)
	return sshd.Exit{}
}

// admitTo returns the session if the user may join it in the mode. One that does not
// exist, and one that is not the user's to join, look the same.
func (s *Service) admitTo(ctx context.Context, se *sshd.Session, id *identity.Identity, mode, sid string) (*party, error) {
	if err := types.ValidMode(mode); err != nil {
		return nil, err
	}
	if err := types.ValidSessionID(sid); err != nil {
		return nil, err
	}
	d := s.decideConn(id, types.LoginJoin)
	p := s.parties.find(sid)
	if d.Allowed && p != nil {
		d = access.NewChecker(s.subject(id)).MayJoin(p.gathering(), mode)
	}
	if d.Allowed && p != nil {
		return p, nil
	}
	text := fmt.Sprintf("access denied: there is no session %s here that you may join as %s: see tsh sessions ls", sid, mode)
	reason := d.Reason
	switch {
	case d.Rule == access.RuleLock:
		text = d.Reason
	case p == nil:
		reason = "there is no such session"
	}
	e := audit.New(audit.SessionRejected, s.fields(se.Conn(), id, map[string]any{
		"success": false, "error": text, "reason": reason, "role": d.Role, "rule": d.Rule, "sid": sid, "mode": mode,
	}))
	return nil, s.refuse(ctx, e, id, text, reason)
}

// joinEvent makes an event about somebody who joined.
func (p *party) joinEvent(k audit.Kind, a *attendee, more map[string]any) *auditv1.Event {
	fields := map[string]any{
		"sid": p.se.ID(), "interactive": true, "mode": a.Mode, "login": p.se.Conn().User(), "session_owner": p.r.ID.User.Name,
	}
	for name, value := range more {
		fields[name] = value
	}
	e := audit.New(k, p.s.fields(a.se.Conn(), a.id, fields))
	p.r.Number(e)
	return e
}

// attend adds somebody to the company.
func (p *party) attend(a *attendee) error {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return errOver
	}
	if len(p.company) >= maxCompany {
		p.mu.Unlock()
		return fault.Limit("%d people have joined this session, and no more can: wait until somebody leaves", maxCompany)
	}
	if p.owner == nil {
		p.owner = newOutlet()
		p.run(p.owner, p.se, nil)
	}
	p.run(a.out, a.se, a.se.Go)
	a.out.put(p.past.screen())
	if a.Mode == types.ModePeer && p.typing == nil {
		p.typing = newTyping()
		p.se.Go(func() { p.typing.run(p.terminal, p.runs) })
	}
	p.company = append(p.company, a)
	if !slices.Contains(p.names, a.User) {
		p.names = append(p.names, a.User)
	}
	p.sayLocked(fmt.Sprintf("%s joined as %s", a.User, a.Mode))
	a.out.put(notice(p.helpLocked(a)))
	p.judgeLocked()
	full := p.past.full
	p.mu.Unlock()
	p.rearrange(full)
	return nil
}

// helpLocked says what somebody who joined may do.
func (p *party) helpLocked(a *attendee) string {
	text := fmt.Sprintf("session of %s on %s as %s.", p.r.ID.User.Name, p.s.cfg.Hostname, p.se.Conn().User())
	switch a.Mode {
	case types.ModePeer:
		text += " What you type is run there. To leave: ~. at the start of a line."
	case types.ModeModerator:
		text += " You see what happens. t ends the session for everybody, Ctrl-C leaves it."
	default:
		text += " You see what happens. Ctrl-C leaves the session."
	}
	if size := p.se.Size(); a.se.Interactive() && a.Mode != types.ModePeer && (a.se.Size().Columns < size.Columns || a.se.Size().Rows < size.Rows) {
		text += fmt.Sprintf(" Its terminal has %d columns and %d rows: yours is smaller.", size.Columns, size.Rows)
	}
	return text
}

// rearrange gives the terminal the size that fits who is there now, and has a program
// that fills the screen draw it anew.
func (p *party) rearrange(full bool) {
	p.se.Refit()
	if full {
		p.se.Redraw()
	}
	p.s.sessionsChanged()
}

// leave takes somebody from the company.
func (p *party) leave(a *attendee) {
	p.mu.Lock()
	i := slices.Index(p.company, a)
	if i >= 0 {
		p.company = slices.Delete(p.company, i, i+1)
		close(a.over)
		p.sayLocked(fmt.Sprintf("%s left (%s)", a.User, a.Mode))
		p.judgeLocked()
	}
	if a.se.Interactive() {
		a.out.put(p.past.leave())
	}
	full := p.past.full
	p.mu.Unlock()
	if p.typing != nil {
		p.typing.wake()
	}
	if i >= 0 {
		p.rearrange(full)
	}
}

// run carries an outlet to a session.
func (p *party) run(o *outlet, se *sshd.Session, start func(func())) {
	if start == nil {
		start = p.se.Go
	}
	start(func() {
		o.run(se, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			text := append(notice("you did not take the output in time, and some of it was left out"), p.past.screen()...)
			o.resume(text)
		})
	})
}

// listen acts on what somebody who joined types, and closes left when they leave.
func (p *party) listen(a *attendee, left chan<- struct{}) {
	buf := make([]byte, 1<<10)
	var own keyboard
	for {
		n, err := a.se.Read(buf)
		keys := buf[:n]
		switch {
		case n == 0 || a.gone():
		case a.Mode == types.ModePeer:
			if p.runs() {
				p.typing.put(keys, a.gone)
			}
		case a.Mode == types.ModeModerator && bytes.IndexByte(bytes.ToLower(own.typed(keys)), keyTerminate) >= 0:
			p.end(fmt.Sprintf("%s, who moderates it, ended it", a.User))
		case bytes.IndexByte(keys, ctrlC) >= 0:
			close(left)
			// What comes now means nothing any more.
			_, _ = io.Copy(io.Discard, a.se)
			return
		}
		if err != nil {
			return
		}
	}
}

// withoutSession leaves out of an environment what is for the node.
func withoutSession(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, envPrefix) })
}

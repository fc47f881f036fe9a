package ssh

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// Sessions on a terminal may have company. Whoever joins has a connection of their own,
// asks for the session on it (share_join.go), and is attached to the terminal here:
//
//	shell's output -> party.Write -> the owner, and an outlet for each who joined
//	the owner      -> party.Read  -> the terminal
//	peers          -> typing      -> the terminal
//
// If the roles of the owner ask for company, the shell does not start before it is
// there, and when it goes the session is paused or ended: see access.Requirements.

// maxCompany bounds those who join one session.
const maxCompany = 32

// Variables with which the owner of a session says something about it. They are for the
// node and not for the shell.
const (
	envPrefix  = "TELEPORT_SESSION_"
	envReason  = envPrefix + "REASON"
	envInvited = envPrefix + "INVITED"
	envVerbose = envPrefix + "PARTICIPANT_REQ"
)

// errOver: the session has ended.
var errOver = fault.NotFound("the session has ended")

// party is a session on a terminal with its company.
type party struct {
	s  *Service
	r  *record
	se *sshd.Session
	// roles are the names of the owner's, needs what they ask for.
	roles    []string
	needs    access.Requirements
	reason   string
	invited  []string
	verbose  bool
	terminal *sshd.Terminal
	// cancel ends what runs in the terminal.
	cancel context.CancelCauseFunc
	// keys is what the owner types, if the owner may not be alone: it does not arrive
	// while the others are not there.
	keys *io.PipeReader

	mu       sync.Mutex
	changed  *sync.Cond
	state    string
	ended    bool
	why      string
	standing access.Standing
	company  []*attendee
	// names are those of everybody who was there.
	names []string
	past  past
	// owner is what the owner sees, once somebody joined.
	owner *outlet
	// typing is there once a peer is.
	typing *typing
}

// attendee is somebody who joined a session.
type attendee struct {
	access.Attendee
	id     *identity.Identity
	se     *sshd.Session
	joined time.Time
	out    *outlet
	// over is closed when they are to go.
	over chan struct{}
}

// gone reports whether the attendee has left or is to leave.
func (a *attendee) gone() bool {
	select {
	case <-a.over:
		return true
	default:
		return false
	}
}

// parties knows the sessions that may be joined.
type parties struct {
	mu  sync.Mutex
	all map[string]*party
}

func (l *parties) add(p *party) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]*party{}
	}
	l.all[p.se.ID()] = p
}

func (l *parties) remove(p *party) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, p.se.ID())
}

func (l *parties) find(id string) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[id]
}

func (l *parties) list() []*party {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*party, 0, len(l.all))
	for _, p := range l.all {
		out = append(out, p)
	}
	return out
}

// Sessions returns the sessions that others may see or join, in the order of their ids.
func (s *Service) Sessions() []*typesv1.SessionTracker {
	list := s.parties.list()
	out := make([]*typesv1.SessionTracker, 0, len(list))
	for _, p := range list {
		out = append(out, p.tracker())
	}
	slices.SortFunc(out, func(a, b *typesv1.SessionTracker) int {
		return cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	return out
}

// sessionsChanged says that Sessions has something else to say.
func (s *Service) sessionsChanged() {
	if s.cfg.SessionsChanged != nil {
		s.cfg.SessionsChanged()
	}
}

// gather opens a session on a terminal to company. The context that it returns ends
// when the company ends the session.
func (s *Service) gather(ctx context.Context, r *record, t *sshd.Terminal) (*party, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	owner := s.subject(r.ID)
	p := &party{
		s: s, r: r, se: r.Session, cancel: cancel, needs: access.RequirementsOf(owner, types.KindSSH), state: types.SessionRunning, terminal: t,
	}
	p.changed = sync.NewCond(&p.mu)
	for _, role := range owner.Roles {
		p.roles = append(p.roles, role.GetMetadata().GetName())
	}
	p.readEnv()
	if p.standing = p.needs.Check(nil); !p.standing.Met {
		p.state = types.SessionPending
		p.keys = p.pump()
	}
	r.party = p
	r.Session.Fit(p.fit)
	s.parties.add(p)
	s.sessionsChanged()
	// Writing does not wait for company any longer when there is nobody to write for.
	context.AfterFunc(ctx, func() { p.end("") })
	return p, ctx
}

func (p *party) readEnv() {
	for _, v := range p.se.Env() {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case envReason:
			p.reason = line(value)
		case envInvited:
			if names := strings.Split(value, ","); types.ValidInvitation(names) == nil {
				p.invited = names
			}
		case envVerbose:
			p.verbose = value == "1"
		}
	}
}

// line makes a short line of text from elsewhere.
func line(s string) string {
	const most = 512
	s = strings.ToValidUTF8(strings.ReplaceAll(clean(s), "\n", " "), "?")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// pump reads what the owner types, and drops it while the session does not run. Whoever
// waits for company gets out with Ctrl-C.
func (p *party) pump() *io.PipeReader {
	r, w := io.Pipe()
	p.se.Go(func() {
		buf := make([]byte, 1<<10)
		for {
			n, err := p.se.Read(buf)
			switch {
			case n > 0 && p.runs():
				if _, werr := w.Write(buf[:n]); werr != nil {
					err = errors.Join(err, werr)
				}
			case bytes.IndexByte(buf[:n], ctrlC) >= 0 && p.pending():
				p.end("the owner did not wait for company")
			}
			if err != nil {
				_ = w.CloseWithError(err)
				return
			}
		}
	})
	return r
}

// Keys that mean something to whoever cannot type.
const (
	ctrlC        = 0x03
	keyTerminate = 't'
)

func (p *party) runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == types.SessionRunning && !p.ended
}

func (p *party) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == types.SessionPending
}

// Read reads what the owner types.
func (p *party) Read(b []byte) (int, error) {
	if p.keys != nil {
		return p.keys.Read(b)
	}
	return p.se.Read(b)
}

// Write shows what the terminal shows to everybody. It waits while the session is
// paused, and for the owner; the others are not waited for.
func (p *party) Write(b []byte) (int, error) {
	p.mu.Lock()
	for p.state == types.SessionPaused && !p.ended {
		p.changed.Wait()
	}
	p.past.add(b)
	owner := p.owner
	for _, a := range p.company {
		a.out.put(b)
	}
	p.mu.Unlock()
	if owner == nil {
		return p.se.Write(b)
	}
	owner.putPatiently(b, ownerPatience)
	return len(b), nil
}

// sayLocked tells everybody.
func (p *party) sayLocked(text string) {
	b := notice(text)
	if p.owner != nil {
		p.owner.put(b)
	}
	for _, a := range p.company {
		a.out.put(b)
	}
}

// notice is a line of ours in a terminal.
func notice(text string) []byte { return []byte("\r\nTeleport > " + clean(text) + "\r\n") }

// finish is called when what ran in the terminal has ended. It waits until the owner
// has seen everything, if it takes it.
func (p *party) finish() {
	p.s.parties.remove(p)
	p.s.sessionsChanged()
	p.mu.Lock()
	if !p.ended {
		for _, a := range p.company {
			a.out.put(notice("the session has ended"))
		}
		p.endLocked("")
	}
	owner := p.owner
	p.mu.Unlock()
	if p.keys != nil {
		_ = p.keys.Close()
	}
	if owner != nil {
		owner.flush(ownerPatience)
	}
	p.se.Fit(nil)
}

// fit is the size of the terminal: the smallest of those who type. Who only sees makes
// nobody's smaller, and nobody makes it so small that others cannot work.
func (p *party) fit(size sshd.Size) sshd.Size {
	const leastColumns, leastRows = 40, 10
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.company {
		if a.Mode != types.ModePeer || !a.se.Interactive() {
			continue
		}
		own := a.se.Size()
		if own.Columns > 0 && own.Columns < size.Columns {
			size.Columns, size.Width = min(size.Columns, max(own.Columns, leastColumns)), 0
		}
		if own.Rows > 0 && own.Rows < size.Rows {
			size.Rows, size.Height = min(size.Rows, max(own.Rows, leastRows)), 0
		}
	}
	return size
}

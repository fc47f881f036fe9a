package sshaccess

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// maxResizes bounds the changes of a terminal's size that get an event of their own.
const maxResizes = 100

// Record writes the events of one session.
type Record struct {
	Session *sshd.Session
	ID      *identity.Identity
	Began   time.Time

	g     *Guard
	place Place
	mu    sync.Mutex
	index int64
	// resizes are those that got an event of their own; last is the size after more of
	// them, or "".
	resizes int
	last    string
}

// NewRecord returns the record of a session that is about to begin.
func (g *Guard) NewRecord(p Place, se *sshd.Session, id *identity.Identity) *Record {
	return &Record{g: g, place: p, Session: se, ID: id, Began: g.cfg.Now()}
}

// Event makes the session's next event.
func (r *Record) Event(k audit.Kind, more map[string]any) *auditv1.Event {
	f := map[string]any{"sid": r.Session.ID(), "interactive": r.Session.Interactive()}
	maps.Copy(f, more)
	e := audit.New(k, r.place.Fields(r.Session.Conn(), r.ID, f))
	r.Number(e)
	return e
}

// Number gives an event the session's next number.
func (r *Record) Number(e *auditv1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Ei = r.index
	r.index++
}

// Start records that the session begins, on a server with the labels. Without this event
// there is no session: the error is for the user.
func (r *Record) Start(ctx context.Context, labels map[string]string) error {
	more := map[string]any{"session_recording": "off"}
	if labels != nil {
		more["server_labels"] = labels
	}
	if r.Session.Interactive() {
		more["size"] = sizeText(r.Session.Size())
	}
	if r.Session.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.Session.Command()}
	}
	events := []*auditv1.Event{r.Event(audit.SessionStart, more)}
	if r.Session.Kind() == sshd.KindSubsystem {
		events = append(events, r.Event(audit.Subsystem, map[string]any{"name": r.Session.Command()}))
	}
	if err := r.g.cfg.Emit(ctx, events...); err != nil {
		r.g.cfg.Log.ErrorContext(ctx, "session refused: it cannot be recorded", "error", err, "user", r.ID.User.Name)
		return fault.Unreachable("session refused: the audit log cannot take it, tell an administrator")
	}
	r.Session.OnResize(func(size sshd.Size) { r.resized(ctx, size) })
	return nil
}

// resized records that the terminal has another size: the first changes one by one,
// of the others the last one at the end.
func (r *Record) resized(ctx context.Context, size sshd.Size) {
	text := sizeText(size)
	r.mu.Lock()
	r.resizes++
	single := r.resizes <= maxResizes
	if !single {
		r.last = text
	}
	r.mu.Unlock()
	if single {
		r.g.EmitLate(ctx, r.Event(audit.SessionResize, map[string]any{"size": text}))
	}
}

func (r *Record) lastResize() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func sizeText(s sshd.Size) string { return fmt.Sprintf("%d:%d", s.Columns, s.Rows) }

// Ending is how a session ended, beside its exit.
type Ending struct {
	// Failure is why a command could not be run.
	Failure error
	// Before are events of what the session did, More fields of the last one.
	Before []*auditv1.Event
	More   map[string]any
}

// End records how a session ended that Start recorded. It does so even if ctx has ended.
func (r *Record) End(ctx context.Context, exit sshd.Exit, how Ending) {
	r.Session.OnResize(nil)
	events := how.Before
	if r.Session.Kind() == sshd.KindExec {
		events = append(events, r.execEvents(exit, how.Failure)...)
	}
	received, sent := r.Session.Traffic()
	more := map[string]any{
		"session_start": r.Began, "session_stop": r.g.cfg.Now(), "enhanced_recording": false, "session_recording": "off",
		"participants": []string{r.ID.User.Name}, "tx": sent, "rx": received, "exitCode": exitText(exit),
	}
	if exit.Signal != "" {
		more["exitSignal"] = exit.Signal
	}
	if r.Session.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.Session.Command()}
	}
	maps.Copy(more, how.More)
	if size := r.lastResize(); size != "" {
		events = append(events, r.Event(audit.SessionResize, map[string]any{"size": size}))
	}
	events = append(events,
		r.Event(audit.SessionData, map[string]any{"tx": sent, "rx": received}), r.Event(audit.SessionLeave, nil), r.Event(audit.SessionEnd, more))
	r.g.EmitLate(ctx, events...)
}

// execEvents tell what was run, and which files the old scp protocol moved.
func (r *Record) execEvents(exit sshd.Exit, failure error) []*auditv1.Event {
	kind := audit.Exec
	more := map[string]any{"command": r.Session.Command(), "exitCode": exitText(exit)}
	switch {
	case failure != nil:
		more["exitError"] = failure.Error()
	case exit.Signal != "":
		more["exitError"] = "signal: " + exit.Signal
	case exit.Code != 0:
		more["exitError"] = "exit status " + exitText(exit)
	}
	if more["exitError"] != nil {
		kind = audit.ExecFailure
	}
	events := []*auditv1.Event{r.Event(kind, more)}
	if c, ok := parseSCP(r.Session.Command()); ok {
		k := audit.SCPDownload
		if c.upload {
			k = audit.SCPUpload
		}
		events = append(events, r.Event(k, map[string]any{
			"action": c.action(), "path": c.path, "command": r.Session.Command(), "exitCode": exitText(exit),
		}))
	}
	return events
}

func exitText(e sshd.Exit) string { return strconv.Itoa(e.Code) }

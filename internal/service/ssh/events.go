package ssh

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// endTimeout bounds the wait for the events at the end of a session.
const endTimeout = 10 * time.Second

// peer is what connections of either package tell about themselves.
type peer interface {
	User() string
	RemoteAddr() net.Addr
	LocalAddr() net.Addr
}

// fields returns those that every event of a connection has, and more.
func (s *Service) fields(p peer, id *identity.Identity, more map[string]any) map[string]any {
	f := map[string]any{
		"user": id.User.Name, "login": p.User(), "namespace": "default", "proto": "ssh",
		"server_id": s.cfg.Holder.HostID(), "server_hostname": s.cfg.Hostname,
		"addr.remote": addrText(p.RemoteAddr()), "addr.local": addrText(p.LocalAddr()),
	}
	maps.Copy(f, more)
	return f
}

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// record writes the events of one session.
type record struct {
	s     *Service
	se    *sshd.Session
	id    *identity.Identity
	began time.Time
	files *transfers
	// party is the company of a session on a terminal, or nil.
	party *party

	mu    sync.Mutex
	index int64
	// resizes are those that got an event of their own; last is the size after more of
	// them, or "".
	resizes int
	last    string
}

func (s *Service) newRecord(se *sshd.Session, id *identity.Identity) *record {
	r := &record{s: s, se: se, id: id, began: s.cfg.Now()}
	r.files = &transfers{record: r}
	return r
}

// event makes the session's next event.
func (r *record) event(k audit.Kind, more map[string]any) *auditv1.Event {
	f := map[string]any{"sid": r.se.ID(), "interactive": r.se.Interactive()}
	maps.Copy(f, more)
	e := audit.New(k, r.s.fields(r.se.Conn(), r.id, f))
	r.number(e)
	return e
}

// number gives an event the session's next number.
func (r *record) number(e *auditv1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Ei = r.index
	r.index++
}

// start records that the session begins. Without this event there is no session.
func (r *record) start(ctx context.Context) error {
	more := map[string]any{"session_recording": "off", "server_labels": r.s.labelMap()}
	if size := r.se.Size(); r.se.Interactive() {
		more["size"] = sizeText(size)
	}
	if r.se.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.se.Command()}
	}
	events := []*auditv1.Event{r.event(audit.SessionStart, more)}
	if r.se.Kind() == sshd.KindSubsystem {
		events = append(events, r.event(audit.Subsystem, map[string]any{"name": r.se.Command()}))
	}
	return r.s.cfg.Emit(ctx, events...)
}

// maxResizes bounds the changes of a terminal's size that get an event of their own.
const maxResizes = 100

// resized records that the terminal has another size: the first changes one by one,
// of the others the last one at the end.
func (r *record) resized(ctx context.Context, size sshd.Size) {
	text := sizeText(size)
	r.mu.Lock()
	r.resizes++
	single := r.resizes <= maxResizes
	if !single {
		r.last = text
	}
	r.mu.Unlock()
	if single {
		r.s.emitLate(ctx, r.event(audit.SessionResize, map[string]any{"size": text}))
	}
}

func (r *record) lastResize() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func sizeText(s sshd.Size) string { return fmt.Sprintf("%d:%d", s.Columns, s.Rows) }

// end records how the session ended. It does so even if ctx has ended: that is
// what the end of a connection looks like.
func (r *record) end(ctx context.Context, exit sshd.Exit, failure error) {
	events := r.files.events()
	if r.se.Kind() == sshd.KindExec {
		events = append(events, r.execEvents(exit, failure)...)
	}
	received, sent := r.se.Traffic()
	more := map[string]any{
		"session_start": r.began, "session_stop": r.s.cfg.Now(), "enhanced_recording": false, "session_recording": "off",
		"participants": []string{r.id.User.Name}, "tx": sent, "rx": received, "exitCode": exitText(exit),
	}
	if exit.Signal != "" {
		more["exitSignal"] = exit.Signal
	}
	if r.se.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.se.Command()}
	}
	if sum := r.files.summary(); sum != nil {
		more["transfers"] = sum
	}
	if r.party != nil {
		names, why := r.party.everybody()
		more["participants"] = append([]string{r.id.User.Name}, names...)
		if why != "" {
			more["reason"] = why
		}
	}
	if reason := r.s.endedBy(r.se.Conn()); reason != "" {
		more["reason"] = reason
	}
	if size := r.lastResize(); size != "" {
		events = append(events, r.event(audit.SessionResize, map[string]any{"size": size}))
	}
	events = append(events,
		r.event(audit.SessionData, map[string]any{"tx": sent, "rx": received}), r.event(audit.SessionLeave, nil), r.event(audit.SessionEnd, more))
	r.s.emitLate(ctx, events...)
}

// execEvents tell what was run, and which files the old scp protocol moved.
func (r *record) execEvents(exit sshd.Exit, failure error) []*auditv1.Event {
	kind := audit.Exec
	more := map[string]any{"command": r.se.Command(), "exitCode": exitText(exit)}
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
	events := []*auditv1.Event{r.event(kind, more)}
	if path, upload, ok := parseSCP(r.se.Command()); ok {
		k, action := audit.SCPDownload, "download"
		if upload {
			k, action = audit.SCPUpload, "upload"
		}
		events = append(events, r.event(k, map[string]any{
			"action": action, "path": path, "command": r.se.Command(), "exitCode": exitText(exit),
		}))
	}
	return events
}

func exitText(e sshd.Exit) string { return strconv.Itoa(e.Code) }

package proxy

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// maxResizes bounds the changes of a terminal's size that get an event of their own.
const maxResizes = 100

// peer is what connections of either package tell about themselves.
type peer interface {
	User() string
	RemoteAddr() net.Addr
	LocalAddr() net.Addr
}

// fields returns those that every event of a visit has, and more.
func (v *visit) fields(p peer, id *identity.Identity, more map[string]any) map[string]any {
	f := map[string]any{
		"user": id.User.Name, "login": p.User(), "namespace": "default", "proto": "ssh",
		"server_id": v.id, "server_hostname": v.hostname, "server_sub_kind": types.SubKindOpenSSH, "proxy_id": v.o.s.cfg.Holder.HostID(),
	}
	for name, addr := range map[string]net.Addr{"addr.remote": p.RemoteAddr(), "addr.local": p.LocalAddr()} {
		if addr != nil {
			f[name] = addr.String()
		}
	}
	maps.Copy(f, more)
	return f
}

// session is asked when a user has said what to run: it decides again, and records that
// the session begins. Without that there is no session.
func (v *visit) session(ctx context.Context, se *sshd.Session) (func(sshd.Exit), error) {
	r := &visitRecord{v: v, se: se, began: time.Now()}
	if d := v.decide(v.user, v.conn.User()); !d.Allowed {
		reason := fmt.Sprintf("%s (role %q, rule %q)", d.Reason, d.Role, d.Rule)
		e := r.event(audit.SessionRejected, map[string]any{"reason": reason, "success": false})
		return nil, v.refuse(ctx, e, v.user, v.told(v.conn.User(), d), reason)
	}
	if err := r.mayCopy(ctx); err != nil {
		return nil, err
	}
	if err := r.start(ctx); err != nil {
		v.log.ErrorContext(ctx, "session refused: it cannot be recorded", "error", err, "user", v.user.User.Name)
		return nil, fault.Unreachable("session refused: the audit log cannot take it, tell an administrator")
	}
	se.OnResize(func(size sshd.Size) { r.resized(ctx, size) })
	return func(exit sshd.Exit) {
		se.OnResize(nil)
		r.end(ctx, exit)
	}, nil
}

// visitRecord writes the events of one session.
type visitRecord struct {
	v     *visit
	se    *sshd.Session
	began time.Time

	mu    sync.Mutex
	index int64
	// resizes are those that got an event of their own; last is the size after more of
	// them, or "".
	resizes int
	last    string
}

// event makes the session's next event.
func (r *visitRecord) event(k audit.Kind, more map[string]any) *auditv1.Event {
	f := map[string]any{"sid": r.se.ID(), "interactive": r.se.Interactive()}
	maps.Copy(f, more)
	e := audit.New(k, r.v.fields(r.v.conn, r.v.user, f))
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Ei = r.index
	r.index++
	return e
}

func (r *visitRecord) start(ctx context.Context) error {
	more := map[string]any{"session_recording": "off"}
	if node, ok := r.v.o.node(r.v.id); ok {
		more["server_labels"] = types.ServerLabels(node)
	}
	if r.se.Interactive() {
		more["size"] = sizeText(r.se.Size())
	}
	if r.se.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.se.Command()}
	}
	events := []*auditv1.Event{r.event(audit.SessionStart, more)}
	if r.se.Kind() == sshd.KindSubsystem {
		events = append(events, r.event(audit.Subsystem, map[string]any{"name": r.se.Command()}))
	}
	return r.v.o.s.cfg.Emit(ctx, events...)
}

// resized records that the terminal has another size: the first changes one by one, of
// the others the last one at the end.
func (r *visitRecord) resized(ctx context.Context, size sshd.Size) {
	text := sizeText(size)
	r.mu.Lock()
	r.resizes++
	single := r.resizes <= maxResizes
	if !single {
		r.last = text
	}
	r.mu.Unlock()
	if single {
		r.v.o.emitLate(ctx, r.event(audit.SessionResize, map[string]any{"size": text}))
	}
}

func sizeText(s sshd.Size) string { return fmt.Sprintf("%d:%d", s.Columns, s.Rows) }

// end records how the session ended.
func (r *visitRecord) end(ctx context.Context, exit sshd.Exit) {
	var events []*auditv1.Event
	if r.se.Kind() == sshd.KindExec {
		events = append(events, r.execEvents(exit)...)
	}
	received, sent := r.se.Traffic()
	more := map[string]any{
		"session_start": r.began, "session_stop": time.Now(), "enhanced_recording": false, "session_recording": "off",
		"participants": []string{r.v.user.User.Name}, "tx": sent, "rx": received, "exitCode": strconv.Itoa(exit.Code),
	}
	if exit.Signal != "" {
		more["exitSignal"] = exit.Signal
	}
	if r.se.Kind() == sshd.KindExec {
		more["initial_command"] = []string{r.se.Command()}
	}
	if reason := r.v.reason.Load(); reason != nil {
		more["reason"] = *reason
	}
	r.mu.Lock()
	last := r.last
	r.mu.Unlock()
	if last != "" {
		events = append(events, r.event(audit.SessionResize, map[string]any{"size": last}))
	}
	events = append(events,
		r.event(audit.SessionData, map[string]any{"tx": sent, "rx": received}), r.event(audit.SessionLeave, nil), r.event(audit.SessionEnd, more))
	r.v.o.emitLate(ctx, events...)
}

// execEvents tell what was run, and which files the old scp protocol moved.
func (r *visitRecord) execEvents(exit sshd.Exit) []*auditv1.Event {
	kind, code := audit.Exec, strconv.Itoa(exit.Code)
	more := map[string]any{"command": r.se.Command(), "exitCode": code}
	switch {
	case exit.Signal != "":
		more["exitError"] = "signal: " + exit.Signal
	case exit.Code != 0:
		more["exitError"] = "exit status " + code
	}
	if more["exitError"] != nil {
		kind = audit.ExecFailure
	}
	events := []*auditv1.Event{r.event(kind, more)}
	if file, upload, ok := parseSCP(r.se.Command()); ok {
		k, action := audit.SCPDownload, "download"
		if upload {
			k, action = audit.SCPUpload, "upload"
		}
		events = append(events, r.event(k, map[string]any{"action": action, "path": file, "command": r.se.Command(), "exitCode": code}))
	}
	return events
}

// mayCopy refuses sessions that are there to copy files, to those who may not. Who has
// a shell finds other ways: it keeps the usual programs from doing it.
func (r *visitRecord) mayCopy(ctx context.Context) error {
	file, upload, scp := parseSCP(r.se.Command())
	switch r.se.Kind() {
	case sshd.KindShell:
		return nil
	case sshd.KindExec:
		if !scp && !copiesFiles(r.se.Command()) {
			return nil
		}
	case sshd.KindSubsystem:
		if r.se.Command() != "sftp" {
			return nil
		}
	}
	p := fileCopies()
	text, reason := r.v.mayNot(p)
	if text == "" {
		return nil
	}
	more := map[string]any{"success": false, "error": text, "reason": reason, "command": r.se.Command()}
	if scp {
		more["path"], more["action"] = file, map[bool]string{true: "upload", false: "download"}[upload]
	}
	return r.v.refuse(ctx, r.event(p.refused, more), r.v.user, text, reason)
}

// copiesFiles recognises the server ends of programs other than scp.
func copiesFiles(command string) bool {
	f := strings.Fields(command)
	if len(f) == 0 {
		return false
	}
	switch path.Base(f[0]) {
	case "rsync":
		return slices.Contains(f[1:], "--server")
	case "sftp-server":
		return true
	}
	return false
}

// parseSCP recognises the server end of the old scp protocol and returns its path and
// direction.
func parseSCP(command string) (file string, upload, ok bool) {
	f := strings.Fields(command)
	if len(f) < 2 || path.Base(f[0]) != "scp" {
		return "", false, false
	}
	for i, arg := range f[1:] {
		if arg == "--" || !strings.HasPrefix(arg, "-") {
			return strings.TrimPrefix(strings.Join(f[i+1:], " "), "-- "), upload, ok
		}
		switch {
		case strings.Contains(arg, "t"):
			upload, ok = true, true
		case strings.Contains(arg, "f"):
			upload, ok = false, true
		}
	}
	return "", upload, ok
}

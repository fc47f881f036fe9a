package soak

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	_ "modernc.org/sqlite"
)

// read runs tctl and decodes its JSON.
func (w *world) read(into any, args ...string) {
	w.t.Helper()
	out, err := w.tctl(w.t.Context(), append(args, "--format=json")...)
	if err != nil {
		w.t.Fatalf("tctl %v: %v\n%s", args, err, out)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		w.t.Fatalf("tctl %v: %v\n%s", args, err, out)
	}
}

type resource struct {
	Metadata struct{ Name, Description string }
}

// compare looks for everything in the ledger.
func (w *world) compare() {
	w.t.Helper()
	l := w.ledger
	have := map[string]map[string]bool{"token": {}, "instance": {}, "user": {}}
	var tokens []struct{ ID string }
	w.read(&tokens, "tokens", "ls")
	for _, t := range tokens {
		have["token"][t.ID] = true
	}
	for _, kind := range []string{"instance", "user"} {
		var list []resource
		w.read(&list, "get", kind)
		for _, r := range list {
			have[kind][r.Metadata.Name] = true
		}
	}
	for kind, things := range l.things {
		for name, f := range things {
			if f == there && !have[kind][name] {
				w.t.Errorf("%s %s was acknowledged and is lost", kind, name)
			}
			if f == deleted && have[kind][name] {
				w.t.Errorf("%s %s was deleted and is back", kind, name)
			}
		}
	}
	if l.acked > 0 {
		var roles []resource
		w.read(&roles, "get", "role/counter")
		n, err := strconv.Atoi(roles[0].Metadata.Description)
		if err != nil || n < l.acked || n > l.tried {
			w.t.Errorf("the role has %q, %d was acknowledged last and %d tried", roles[0].Metadata.Description, l.acked, l.tried)
		}
	}
	w.compareLogins()
	w.compareEvents()
}

// compareLogins logs two users in: their passwords and second factors are there. Each
// is used once, since a code works once.
func (w *world) compareLogins() {
	w.t.Helper()
	done := 0
	for name, secret := range w.ledger.secrets {
		if done++; done > 2 {
			return
		}
		delete(w.ledger.secrets, name)
		// So many logins come from one address here that Auth slows them down.
		w.eventually("user "+name+", who had set a password, logs in", func() (string, error) {
			out, err := w.login(w.t.Context(), name, secret)
			if err != nil && !strings.Contains(out, "too many attempts from your address") {
				w.t.Fatalf("user %s, who had set a password, cannot log in: %v\n%s", name, err, out)
			}
			return out, err
		})
	}
}

type auditEvent map[string]any

// compareEvents looks for the events of the ledger in the audit log, and compares the
// store with the lines on disk.
func (w *world) compareEvents() {
	w.t.Helper()
	var events []auditEvent
	w.eventually("the events reach the audit log", func() (string, error) {
		events = nil
		w.read(&events, "audit", "ls", "--limit=100000")
		for _, s := range w.ledger.sessions {
			if w.owed(s) && !has(events, "exec", "command", s.command) {
				return "", fmt.Errorf("the session %q on %s is not in the audit log", s.command, s.agent.name)
			}
		}
		return "", nil
	})
	stored := map[string]bool{}
	index := map[event]bool{}
	for _, e := range events {
		uid := fmt.Sprint(e["uid"])
		if stored[uid] {
			w.t.Errorf("event %s is there twice", uid)
		}
		stored[uid] = true
		for _, field := range []string{"name", "host_id", "user"} {
			index[event{fmt.Sprint(e["event"]), field, fmt.Sprint(e[field])}] = true
		}
	}
	for _, e := range w.ledger.events {
		if !index[e] {
			w.t.Errorf("the event %s with %s=%s is not in the audit log", e.typ, e.field, e.value)
		}
	}
	w.eventually("the lines on disk are the events of the store", func() (string, error) { return "", w.compareLines(stored) })
}

func has(events []auditEvent, typ, field, value string) bool {
	for _, e := range events {
		if e["event"] == typ && e[field] == value {
			return true
		}
	}
	return false
}

// owed reports whether the events of a session have to be there: its agent, which
// keeps them in memory while Auth is away, was not killed since it began.
func (w *world) owed(s session) bool { return s.agent.aliveSince(s.began) }

// compareLines reads the files of lines: each line is whole, no event is missing and
// none is there twice. Events that came since are no fault.
func (w *world) compareLines(stored map[string]bool) error {
	files, err := filepath.Glob(filepath.Join(w.Path("auth"), "log", "*", "*.log"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("there are no files of audit lines")
	}
	seen := map[string]bool{}
	for _, path := range files {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue // the link to the newest
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			var e auditEvent
			if err := json.Unmarshal(line, &e); err != nil || line[len(line)-1] != '\n' {
				return fmt.Errorf("%s has a torn line %q", path, line)
			}
			uid := fmt.Sprint(e["uid"])
			if seen[uid] {
				return fmt.Errorf("%s has event %s twice", path, uid)
			}
			seen[uid] = true
		}
	}
	for uid := range stored {
		if !seen[uid] {
			return fmt.Errorf("event %s is in the store and not in the files", uid)
		}
	}
	return nil
}

// checkDisk stops Auth and lets SQLite check its file.
func (w *world) checkDisk() {
	w.t.Helper()
	for i := len(w.services) - 1; i >= 0; i-- {
		w.services[i].daemon.Stop()
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.Path("auth"), "backend", "sqlite.db"))
	must(w.t, err)
	defer db.Close()
	var verdict string
	must(w.t, db.QueryRowContext(w.t.Context(), "PRAGMA integrity_check").Scan(&verdict))
	if verdict != "ok" {
		w.t.Errorf("the database is damaged: %s", verdict)
	}
}

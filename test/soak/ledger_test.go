package soak

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// ledger is what the cluster acknowledged.
type ledger struct {
	mu sync.Mutex
	// things by kind and name: what is known of them.
	things map[string]map[string]fate
	// events that have to be in the audit log.
	events   []event
	secrets  map[string]string
	sessions []session
	// tried is the highest number written into the role, acked the highest acknowledged.
	tried, acked int
	failures     int
}

// fate is what is known of a thing.
type fate int

const (
	there fate = iota
	unsure
	deleted
)

// event is one that has to be in the audit log: its type, and a field with its value.
type event struct{ typ, field, value string }

// session is a command that ran.
type session struct {
	agent   *service
	command string
	began   time.Time
}

func newLedger() *ledger {
	return &ledger{things: map[string]map[string]fate{"token": {}, "instance": {}, "user": {}}, secrets: map[string]string{}}
}

func (l *ledger) set(kind, name string, f fate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.things[kind][name] = f
}

// add notes that a thing was made, doubt that nobody knows any more, gone that it was
// deleted.
func (l *ledger) add(kind, name string)   { l.set(kind, name, there) }
func (l *ledger) doubt(kind, name string) { l.set(kind, name, unsure) }
func (l *ledger) gone(kind, name string)  { l.set(kind, name, deleted) }

func (l *ledger) event(typ, field, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event{typ, field, value})
}

func (l *ledger) credential(user, secret string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets[user] = secret
}

func (l *ledger) session(s session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions = append(l.sessions, s)
}

func (l *ledger) failed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
}

func (l *ledger) trying(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = n
}

func (l *ledger) counted(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = n
}

// summary says how much was done.
func (l *ledger) summary(services []*service) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kills []string
	for _, s := range services {
		kills = append(kills, fmt.Sprintf("%s %d", s.name, s.kills))
	}
	return fmt.Sprintf("acknowledged and found again: %d tokens, %d joins, %d users (%d with a password), %d changes of a role, %d sessions (%d failed while something was down), %d events; killed: %s",
		len(l.things["token"]), len(l.things["instance"]), len(l.things["user"]), len(l.secrets), l.acked, len(l.sessions), l.failures, len(l.events), strings.Join(kills, ", "))
}

package dbtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// patience is how long what must come may take.
const patience = 20 * time.Second

// Events is an audit log in memory.
type Events struct {
	mu   sync.Mutex
	all  []*auditv1.Event
	full bool
	more chan struct{}
	// count counts those that were not kept.
	count   int
	discard bool
}

func newEvents() *Events { return &Events{more: make(chan struct{})} }

// Emit stores events.
func (e *Events) Emit(_ context.Context, evs ...*auditv1.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.full {
		return fault.Limit("the audit log is full")
	}
	e.count += len(evs)
	for _, ev := range evs {
		if e.discard {
			break
		}
		ev, err := audit.Decode(ev)
		if err != nil {
			return err
		}
		e.all = append(e.all, ev)
	}
	close(e.more)
	e.more = make(chan struct{})
	return nil
}

// Full makes the log full, or not.
func (e *Events) Full(full bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.full = full
}

// Discard counts events from now on, and keeps none.
func (e *Events) Discard() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.discard, e.all = true, nil
}

// Count is how many events came.
func (e *Events) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count
}

// All returns the events so far that have the code, or all for "".
func (e *Events) All(code string) []*auditv1.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.all), func(ev *auditv1.Event) bool { return code != "" && ev.GetCode() != code })
}

// Forget drops the events so far.
func (e *Events) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = nil
}

// Wait returns the first event of the code that fits, when it comes.
func (e *Events) Wait(t testing.TB, code string, fits func(*auditv1.Event) bool) *auditv1.Event {
	t.Helper()
	limit := time.After(patience)
	for {
		e.mu.Lock()
		more := e.more
		e.mu.Unlock()
		all := e.All("")
		for _, ev := range all {
			if ev.GetCode() == code && (fits == nil || fits(ev)) {
				return ev
			}
		}
		select {
		case <-more:
		case <-limit:
			var codes []string
			for _, ev := range all {
				codes = append(codes, ev.GetCode()+" "+Field(ev, "db_query"))
			}
			t.Fatalf("no event %s came; there are %q", code, codes)
		}
	}
}

// Query returns the first event about a query whose text contains text.
func (e *Events) Query(t testing.TB, text string) *auditv1.Event {
	t.Helper()
	return e.Wait(t, "TDB02I", func(ev *auditv1.Event) bool { return strings.Contains(Field(ev, "db_query"), text) })
}

// Field returns a field that is text.
func Field(e *auditv1.Event, name string) string {
	return e.GetFields().GetFields()[name].GetStringValue()
}

// Announced is what the cluster knows of the databases of the service.
type Announced struct {
	mu   sync.Mutex
	all  map[string]*typesv1.DatabaseServer
	more chan struct{}
}

func newAnnounced() *Announced {
	return &Announced{all: map[string]*typesv1.DatabaseServer{}, more: make(chan struct{})}
}

func (a *Announced) announce(r types.Resource) {
	a.set(r.GetMetadata().GetName(), r)
}

func (a *Announced) withdraw(_, name string) { a.set(name, nil) }

func (a *Announced) set(name string, r types.Resource) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, _ := r.(*typesv1.DatabaseServer)
	a.all[name] = s
	close(a.more)
	a.more = make(chan struct{})
}

// Wait returns what is announced of a database once that fits; nil is nothing.
func (a *Announced) Wait(t testing.TB, database string, fits func(*typesv1.DatabaseServer) bool) *typesv1.DatabaseServer {
	t.Helper()
	limit := time.After(patience)
	for {
		a.mu.Lock()
		more, s := a.more, a.all[types.ServerName(database, HostID)]
		a.mu.Unlock()
		if fits(s) {
			return s
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("of database %q %v is announced", database, s)
		}
	}
}

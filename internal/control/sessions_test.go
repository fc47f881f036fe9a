package control_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/control"
	"teleport/internal/types"
)

func running(id, state string) *typesv1.SessionTracker {
	s := types.New(types.KindSessionTracker, id).(*typesv1.SessionTracker)
	s.Spec = &typesv1.SessionTrackerSpec{State: state}
	return s
}

// said is what a report says.
func said(t *testing.T, m *agentv1.Sessions) string {
	t.Helper()
	out := ""
	for _, packed := range m.GetChanged() {
		r, err := types.FromAny(packed)
		if err != nil {
			t.Fatal(err)
		}
		out += "+" + r.GetMetadata().GetName() + r.(*typesv1.SessionTracker).GetSpec().GetState()
	}
	slices.Sort(m.Gone)
	for _, id := range m.GetGone() {
		out += "-" + id
	}
	return out
}

// reports runs an agent whose sessions the test changes, against an Auth Service that
// takes reports, or does not.
func reports(t *testing.T, takes bool) (a *agent, s *fakeStream, set func(...*typesv1.SessionTracker), next func() *agentv1.Sessions) {
	t.Helper()
	a = &agent{auth: newFakeAuth(), cache: cache.New(), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	changed := make(chan struct{}, 1)
	list := []*typesv1.SessionTracker{}
	go func() {
		a.done <- control.Run(ctx, control.Config{
			Conn: a.auth, Cache: a.cache, SessionsChanged: changed, Sessions: func() []*typesv1.SessionTracker { return list },
		})
	}()
	s = <-a.auth.streams
	<-s.requests
	s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Welcome{
		Welcome: &agentv1.Welcome{Epoch: "epoch-1", Snapshot: true, Sessions: takes},
	}}
	set = func(now ...*typesv1.SessionTracker) {
		list = now
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	next = func() *agentv1.Sessions {
		m := (<-s.requests).GetSessions()
		if m == nil {
			t.Fatal("something else than a report came")
		}
		return m
	}
	return a, s, set, next
}

func TestSessionsAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s, set, next := reports(t, true)
		began := time.Now()
		if m := next(); !m.GetFirst() || said(t, m) != "" {
			t.Errorf("the first report is %v, want one that says that there are none", m)
		}
		set(running("a", "pending"))
		synctest.Wait()
		set(running("a", "running"), running("b", "running"))
		if m := next(); m.GetFirst() || said(t, m) != "+arunning+brunning" {
			t.Errorf("report = %q, want both as they are", said(t, m))
		}
		// What is over before it is reported is never heard of.
		set(running("a", "running"), running("b", "running"), running("c", "running"))
		synctest.Wait()
		set(running("b", "paused"))
		if m := next(); said(t, m) != "+bpaused-a" {
			t.Errorf("report = %q, want a change and an end", said(t, m))
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("three reports took %s, want one a second", took)
		}
		// At the end they are withdrawn.
		a.cancel()
		if m := next(); said(t, m) != "-b" {
			t.Errorf("report at the end = %q, want none left", said(t, m))
		}
		a.stop(t, s)
	})
}

func TestManySessionsAreReportedInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s, set, next := reports(t, true)
		next()
		var many []*typesv1.SessionTracker
		for i := range 250 {
			many = append(many, running(fmt.Sprintf("s%03d", i), "running"))
		}
		set(many...)
		total := 0
		for _, want := range []int{100, 100, 50} {
			m := next()
			total += len(m.GetChanged())
			if len(m.GetChanged()) != want || m.GetFirst() {
				t.Errorf("a report has %d sessions, want %d", len(m.GetChanged()), want)
			}
		}
		if total != 250 {
			t.Errorf("%d sessions were reported", total)
		}
		a.stop(t, s)
	})
}

func TestOlderAuthHearsOfNoSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s, set, _ := reports(t, false)
		set(running("a", "running"))
		// Pings begin after more time than reports take.
		if m := <-s.requests; m.GetPing() == nil {
			t.Fatalf("an older Auth Service was sent %v", m)
		}
		a.stop(t, s)
	})
}

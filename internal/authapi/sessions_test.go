package authapi_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	sid1 = "11111111-2222-4333-8444-555555555551"
	sid2 = "11111111-2222-4333-8444-555555555552"
	sid3 = "11111111-2222-4333-8444-555555555553"
)

func newSession(id, owner string, roles ...string) *typesv1.SessionTracker {
	s := types.New(types.KindSessionTracker, id).(*typesv1.SessionTracker)
	s.Spec = &typesv1.SessionTrackerSpec{
		SessionKind: types.KindSSH, State: types.SessionRunning, Hostname: "host", ServerId: "h1", Login: "root", Owner: owner, OwnerRoles: roles,
	}
	return s
}

// report sends one, and waits until it was taken.
func (s *session) report(first bool, changed []*typesv1.SessionTracker, gone ...string) {
	s.t.Helper()
	m := &agentv1.Sessions{First: first, Gone: gone}
	for _, c := range changed {
		packed, err := types.ToAny(c)
		check(s.t, err)
		m.Changed = append(m.Changed, packed)
	}
	s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Sessions{Sessions: m}}
	synctest.Wait()
}

func (b *bubble) sessions() []string {
	b.t.Helper()
	list, _, err := b.store.List(b.t.Context(), types.KindSessionTracker, 0, "")
	check(b.t, err)
	var out []string
	for _, r := range list {
		out = append(out, r.GetMetadata().GetName()[35:])
	}
	return out
}

// hello begins a stream and reads whatever it is sent.
func (s *session) begin() {
	s.t.Helper()
	s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: &agentv1.Hello{}}}
	go func() {
		for {
			select {
			case <-s.out:
			case <-s.ctx.Done():
				return
			}
		}
	}()
	synctest.Wait()
}

func TestSessionsOfAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		one := b.connect("h1", 100, types.RoleNode)
		one.begin()
		said := newSession(sid1, "alice", "dev")
		said.Spec.ServerId, said.Spec.Hostname = "elsewhere", "liar"
		one.report(true, []*typesv1.SessionTracker{said, newSession(sid2, "bob", "dev")})
		if got := b.sessions(); !slices.Equal(got, []string{"1", "2"}) {
			t.Fatalf("sessions = %v", got)
		}
		r, err := b.store.Get(t.Context(), types.KindSessionTracker, sid1)
		check(t, err)
		if s := r.(*typesv1.SessionTracker).GetSpec(); s.GetServerId() != "h1" || s.GetHostname() != "name-h1" {
			t.Errorf("the host of a session is what its agent says: %v", s)
		}
		// They are kept as long as the stream is there, and some time after.
		time.Sleep(30 * time.Minute)
		if got := b.sessions(); len(got) != 2 {
			t.Errorf("sessions of a living agent after 30 minutes = %v", got)
		}
		one.report(false, nil, sid2, sid3)
		if got := b.sessions(); !slices.Equal(got, []string{"1"}) {
			t.Errorf("sessions after one ended = %v", got)
		}
		one.cancel()
		<-one.done
		time.Sleep(2 * time.Minute)
		if got := b.sessions(); !slices.Equal(got, []string{"1"}) {
			t.Errorf("sessions soon after the stream broke = %v", got)
		}
		// The agent comes back, and has others.
		again := b.connect("h1", 100, types.RoleNode)
		again.begin()
		again.report(true, []*typesv1.SessionTracker{newSession(sid3, "alice", "dev")})
		if got := b.sessions(); !slices.Equal(got, []string{"3"}) {
			t.Errorf("sessions of an agent that came back = %v", got)
		}
		// It dies.
		again.cancel()
		<-again.done
		time.Sleep(15 * time.Minute)
		if got := b.sessions(); len(got) != 0 {
			t.Errorf("sessions of a dead agent = %v", got)
		}
		b.stop()
	})
}

func TestSessionsThatAreRefused(t *testing.T) {
	many := make([]*typesv1.SessionTracker, 101)
	for i := range many {
		many[i] = newSession(sid2, "bob")
	}
	bad := newSession(sid2, "bob")
	bad.Spec.State = "strange"
	for name, tt := range map[string]struct {
		id      string
		role    types.SystemRole
		changed []*typesv1.SessionTracker
		gone    []string
		kind    error
		says    string
	}{
		"of_another_host": {"h2", types.RoleNode, []*typesv1.SessionTracker{newSession(sid1, "alice")}, nil, fault.ErrDenied, "session of another host"},
		"no_node":         {"h2", types.RoleProxy, []*typesv1.SessionTracker{newSession(sid2, "bob")}, nil, fault.ErrDenied, "may not announce"},
		"too_many":        {"h2", types.RoleNode, many, nil, fault.ErrLimit, "101 sessions"},
		"too_many_gone":   {"h2", types.RoleNode, nil, make([]string, 1001), fault.ErrLimit, "1001 that ended"},
		"bad_id":          {"h2", types.RoleNode, []*typesv1.SessionTracker{newSession("x", "bob")}, nil, fault.ErrInvalid, "not the id of a session"},
		"bad_state":       {"h2", types.RoleNode, []*typesv1.SessionTracker{bad}, nil, fault.ErrInvalid, "unknown state"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t)
				one := b.connect("h1", 100, types.RoleNode)
				one.begin()
				one.report(true, []*typesv1.SessionTracker{newSession(sid1, "alice")})
				other := b.connect(tt.id, 100, tt.role)
				other.begin()
				other.report(false, tt.changed, tt.gone...)
				if err := <-other.done; !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("the stream ended with %v, want %q", err, tt.says)
				}
				if got := b.sessions(); !slices.Equal(got, []string{"1"}) {
					t.Errorf("sessions = %v, want the one that was there", got)
				}
				one.cancel()
				<-one.done
				b.stop()
			})
		})
	}
	// What another process of the host has is its own: it hands over to the next one.
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		old, next := b.connect("h1", 100, types.RoleNode), b.connect("h1", 100, types.RoleNode)
		old.begin()
		next.begin()
		old.report(true, []*typesv1.SessionTracker{newSession(sid1, "alice")})
		next.report(true, []*typesv1.SessionTracker{newSession(sid2, "bob")})
		if got := b.sessions(); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("sessions = %v, want those of both processes", got)
		}
		for _, s := range []*session{old, next} {
			s.cancel()
			<-s.done
		}
		b.stop()
	})
	// Another host cannot end a session, nor report something else than one.
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		one, other := b.connect("h1", 100, types.RoleNode), b.connect("h2", 100, types.RoleNode)
		one.begin()
		other.begin()
		one.report(true, []*typesv1.SessionTracker{newSession(sid1, "alice")})
		other.report(true, nil, sid1)
		if got := b.sessions(); !slices.Equal(got, []string{"1"}) {
			t.Errorf("sessions = %v", got)
		}
		packed, err := anypb.New(newRole("r9"))
		check(t, err)
		other.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Sessions{Sessions: &agentv1.Sessions{Changed: []*anypb.Any{packed}}}}
		if err := <-other.done; !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("reporting a role: %v", err)
		}
		one.cancel()
		<-one.done
		b.stop()
	})
}

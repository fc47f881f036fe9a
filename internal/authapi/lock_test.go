package authapi_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "teleport/api/agent/v1"
	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

func newLock(target *typesv1.LockTarget) *typesv1.Lock {
	return types.NewLock(target, "stolen", "admin", time.Now(), time.Time{})
}

func newInstance(id, token string) *typesv1.Instance {
	i := types.New(types.KindInstance, id).(*typesv1.Instance)
	i.Spec = &typesv1.InstanceSpec{Hostname: "name-" + id, Token: token}
	return i
}

func (s *session) acknowledge(revision uint64) {
	s.t.Helper()
	s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Acknowledge{Acknowledge: &agentv1.Acknowledge{Revision: revision}}}
	synctest.Wait()
}

func revisionOf(t *testing.T, r types.Resource) uint64 {
	t.Helper()
	revision, err := store.Revision(r)
	check(t, err)
	return revision
}

// TestLocksReachEveryAgent: nodes and Proxies get every lock, and are asked to confirm.
func TestLocksReachEveryAgent(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		l := newLock(&typesv1.LockTarget{User: "alice"})
		b.put(l)
		node, proxy := b.connect("h1", 100, types.RoleNode), b.connect("p1", 100, types.RoleProxy)
		if w := node.hello("", 0); !w.GetAcknowledge() {
			t.Error("the agent is not asked to acknowledge")
		}
		node.expect("lock/"+l.GetMetadata().GetName(), "role/r1")
		proxy.hello("", 0)
		proxy.expect("lock/"+l.GetMetadata().GetName(), "node/n1", "role/r1")
		check(t, b.store.Tx().Delete(types.KindLock, l.GetMetadata().GetName(), "").Commit(t.Context()))
		node.expect("-lock/" + l.GetMetadata().GetName())
		if got := b.Locks(); len(got) != 0 {
			t.Errorf("locks = %v, want none", got)
		}
		node.cancel()
		proxy.cancel()
	})
}

// TestLockedHostsAreCutOff: a host hears of the lock, may say that it enforces it,
// and is then gone; it is not let in again until the lock is.
func TestLockedHostsAreCutOff(t *testing.T) {
	for _, tt := range []struct {
		name        string
		target      *typesv1.LockTarget
		acknowledge bool
		locked      bool
	}{
		{"server, which confirms", &typesv1.LockTarget{ServerId: "h1"}, true, true},
		{"server, which is silent", &typesv1.LockTarget{ServerId: "h1"}, false, true},
		{"token", &typesv1.LockTarget{JoinToken: "tok"}, true, true},
		{"another server", &typesv1.LockTarget{ServerId: "h2"}, true, false},
		{"a user on the server", &typesv1.LockTarget{ServerId: "h1", User: "alice"}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(t *testing.T, b *bubble) {
				b.put(newInstance("h1", "tok"))
				s := b.connect("h1", 100, types.RoleNode)
				s.hello("", 0)
				s.batch()
				l := newLock(tt.target)
				began := time.Now()
				b.put(l)
				s.expect("lock/" + l.GetMetadata().GetName())
				if tt.acknowledge {
					s.acknowledge(revisionOf(t, l) - 1) // that was about something else
					select {
					case err := <-s.done:
						t.Fatalf("the stream ended too soon: %v", err)
					default:
					}
					s.acknowledge(revisionOf(t, l))
				}
				if !tt.locked {
					time.Sleep(time.Minute)
					s.quiet()
					s.cancel()
					return
				}
				if err := <-s.done; !errors.Is(err, fault.ErrDenied) || fault.Code(err) != access.CodeLocked {
					t.Errorf("the stream ended with %v, want the lock", err)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("the stream ended after %s", took)
				}
				again := b.connect("h1", 100, types.RoleNode)
				again.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: &agentv1.Hello{}}}
				if err := <-again.done; fault.Code(err) != access.CodeLocked {
					t.Errorf("a new stream ended with %v, want the lock", err)
				}
				check(t, b.store.Tx().Delete(types.KindLock, l.GetMetadata().GetName(), "").Commit(t.Context()))
				synctest.Wait()
				again = b.connect("h1", 100, types.RoleNode)
				again.hello("", 0)
				again.cancel()
			})
		})
	}
}

func TestLockStatus(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		b.put(newInstance("h1", ""), newInstance("h3", ""))
		node, other := b.connect("h1", 100, types.RoleNode), b.connect("h2", 100, types.RoleNode)
		for _, s := range []*session{node, other} {
			s.hello("", 0)
			s.batch()
		}
		l := newLock(&typesv1.LockTarget{User: "alice"})
		b.put(l)
		status := func() (confirmed, expected uint32, pending []string) {
			s := b.LockStatus(l)
			for _, p := range s.GetPending() {
				text := p.GetHostId() + "/" + p.GetHostname()
				if !p.GetConnected() {
					text += "/away"
				}
				pending = append(pending, text)
			}
			return s.GetConfirmed(), s.GetExpected(), pending
		}
		want := func(what string, confirmed, expected uint32, pending ...string) {
			t.Helper()
			c, e, p := status()
			if c != confirmed || e != expected || !slices.Equal(p, pending) {
				t.Errorf("%s: %d of %d, waiting for %v; want %d of %d, %v", what, c, e, p, confirmed, expected, pending)
			}
		}
		// n1 is a server that is listed but has no stream.
		want("new", 0, 3, "n1/host-n1/away", "h1/name-h1", "h2/name-h2")
		node.acknowledge(revisionOf(t, l) - 1)
		want("an older revision", 0, 3, "n1/host-n1/away", "h1/name-h1", "h2/name-h2")
		node.acknowledge(revisionOf(t, l))
		want("one confirmed", 1, 3, "n1/host-n1/away", "h2/name-h2")
		other.acknowledge(revisionOf(t, l) + 5)
		want("two confirmed", 2, 3, "n1/host-n1/away")
		// What is gone, and serves nothing, is not waited for.
		other.cancel()
		<-other.done
		synctest.Wait()
		want("one left", 1, 2, "n1/host-n1/away")
		// Nor a host that is locked itself.
		b.put(newLock(&typesv1.LockTarget{ServerId: "n1"}))
		want("the absent one is locked", 1, 1)
		node.cancel()
	})
}

// TestLoad: who was locked is locked before the streams are served.
func TestLoad(t *testing.T) {
	e := newEnv(t)
	e.put(newLock(&typesv1.LockTarget{JoinToken: "tok"}))
	check(t, e.store.Tx().Upsert(newInstance("h1", "tok")).Commit(t.Context()))
	e.server() // a second AgentServer, which does not run
	if err := e.agents.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(e.agents.Locks()) != 1 || e.agents.JoinToken("h1") != "tok" {
		t.Errorf("loaded %v and the token %q", e.agents.Locks(), e.agents.JoinToken("h1"))
	}
}

func TestWritingLocks(t *testing.T) {
	e := newEnv(t)
	api := resourcev1.NewResourceServiceClient(e.admin())
	create := func(r types.Resource) (types.Resource, error) {
		resp, err := api.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, r)})
		if err != nil {
			return nil, err
		}
		return unpacked(t, resp.GetResource()), nil
	}
	l := newLock(&typesv1.LockTarget{User: "alice", Login: "root"})
	l.Spec.CreatedBy, l.Spec.CreatedAt = "somebody else", nil
	l.Status = &typesv1.LockStatus{Confirmed: 100}
	got, err := create(l)
	check(t, err)
	made := got.(*typesv1.Lock)
	if made.GetSpec().GetCreatedBy() != "admin" || made.GetSpec().GetCreatedAt() == nil || made.GetStatus() != nil {
		t.Errorf("made %v, want it made by admin now", made)
	}
	// A change keeps who made it.
	other := e.dial(e.user("eve", "editor"))
	made.Spec.Message = "returned"
	resp, err := resourcev1.NewResourceServiceClient(other).UpdateResource(t.Context(), &resourcev1.UpdateResourceRequest{Resource: packed(t, made)})
	check(t, err)
	changed := unpacked(t, resp.GetResource()).(*typesv1.Lock)
	if changed.GetSpec().GetCreatedBy() != "admin" || changed.GetSpec().GetMessage() != "returned" {
		t.Errorf("changed to %v", changed)
	}
	_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "lock", Name: made.GetMetadata().GetName()})
	check(t, err)
	if got := e.codes(); !slices.Equal(got, []string{"TLK00I", "TLK00I", "TLK01I"}) {
		t.Errorf("events = %v", got)
	}
	// The Auth Service cannot be locked out, but people on its host can.
	auth := types.New(types.KindAuthServer, "auth-1").(*typesv1.Server)
	auth.Spec = &typesv1.ServerSpec{Hostname: "auth"}
	e.put(auth)
	_, err = create(newLock(&typesv1.LockTarget{ServerId: "auth-1"}))
	want(t, err, fault.ErrInvalid, "runs the Auth Service")
	_, err = create(newLock(&typesv1.LockTarget{ServerId: "auth-1", User: "alice"}))
	check(t, err)
	// Who may not edit sees at most.
	auditor := resourcev1.NewResourceServiceClient(e.dial(e.user("ann", "auditor")))
	list, err := auditor.ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "locks"})
	if err != nil || len(list.GetResources()) != 1 {
		t.Errorf("an auditor lists %v, %v, want the lock", list.GetResources(), err)
	}
	_, err = auditor.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, newLock(&typesv1.LockTarget{User: "bob"}))})
	want(t, err, fault.ErrDenied, "roles do not allow")
	_, err = resourcev1.NewResourceServiceClient(e.dial(e.user("bob", "access"))).ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "lock"})
	want(t, err, fault.ErrDenied, "")
}

func TestWritingAlerts(t *testing.T) {
	e := newEnv(t)
	api := resourcev1.NewResourceServiceClient(e.admin())
	alert := types.NewAlert(types.SeverityHigh, "disk is full", time.Now(), time.Time{})
	resp, err := api.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, alert)})
	check(t, err)
	made := unpacked(t, resp.GetResource()).(*typesv1.ClusterAlert)
	made.Spec.Acknowledged = &typesv1.AlertAcknowledgement{User: "somebody else", Reason: "known"}
	resp2, err := api.UpdateResource(t.Context(), &resourcev1.UpdateResourceRequest{Resource: packed(t, made)})
	check(t, err)
	changed := unpacked(t, resp2.GetResource()).(*typesv1.ClusterAlert)
	if ack := changed.GetSpec().GetAcknowledged(); ack.GetUser() != "admin" || ack.GetReason() != "known" {
		t.Errorf("acknowledged by %v, want by admin", ack)
	}
	if changed.GetSpec().GetCreated() == nil || !changed.GetSpec().GetCreated().AsTime().Equal(made.GetSpec().GetCreated().AsTime()) {
		t.Errorf("created = %v, want %v", changed.GetSpec().GetCreated(), made.GetSpec().GetCreated())
	}
	_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "cluster_alert", Name: made.GetMetadata().GetName()})
	check(t, err)
	if got := e.codes(); !slices.Equal(got, []string{"TCAL00I", "TCAL01I", "TCAL02I"}) {
		t.Errorf("events = %v", got)
	}
}

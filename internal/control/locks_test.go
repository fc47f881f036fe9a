package control_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "teleport/api/agent/v1"
	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/control"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func userLock(name string) *typesv1.Lock {
	l := types.New(types.KindLock, name).(*typesv1.Lock)
	l.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: name}}
	return l
}

// welcome takes the Hello of a new stream of an Auth Service that takes
// acknowledgements, or not.
func (s *fakeStream) welcome(t *testing.T, snapshot, acknowledge bool) {
	t.Helper()
	if h := (<-s.requests).GetHello(); h == nil {
		t.Fatal("a stream did not begin with Hello")
	}
	s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Welcome{
		Welcome: &agentv1.Welcome{Epoch: "epoch-1", Snapshot: snapshot, Acknowledge: acknowledge},
	}}
}

// runEnforcing is a control.Run with the enforcement that the test gives.
func runEnforcing(t *testing.T, enforce func(context.Context, *cache.Cache) error) *agent {
	t.Helper()
	a := &agent{auth: newFakeAuth(), cache: cache.New(), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	go func() {
		a.done <- control.Run(ctx, control.Config{
			Conn: a.auth, Cache: a.cache, Enforce: func(ctx context.Context) error { return enforce(ctx, a.cache) },
		})
	}()
	return a
}

// acknowledged returns the revision of the next request, which is to be one.
func (s *fakeStream) acknowledged(t *testing.T) uint64 {
	t.Helper()
	m := <-s.requests
	if m.GetAcknowledge() == nil {
		t.Fatalf("got %v, want an acknowledgement", m)
	}
	return m.GetAcknowledge().GetRevision()
}

func TestAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen atomic.Int64 // locks at the last enforcement
		release := make(chan struct{}, 100)
		a := runEnforcing(t, func(ctx context.Context, c *cache.Cache) error {
			select {
			case <-release:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			seen.Store(int64(len(c.Locks())))
			return nil
		})
		s := <-a.auth.streams
		s.welcome(t, true, true)
		s.change(t, 10, types.New(types.KindRole, "access"))
		synctest.Wait()
		if len(s.requests) != 0 {
			t.Fatal("acknowledged before the locks were enforced")
		}
		release <- struct{}{}
		if got := s.acknowledged(t); got != 10 {
			t.Errorf("acknowledged %d at the beginning, want 10", got)
		}
		// What is no lock is not acknowledged.
		s.change(t, 11, types.New(types.KindRole, "editor"))
		time.Sleep(2 * time.Second)
		if len(s.requests) != 0 {
			t.Errorf("a change of a role was answered by %v", <-s.requests)
		}
		// The lock of the last change counts, whatever the batch is marked with.
		release <- struct{}{}
		s.responses <- lockChange(t, 13, "alice")
		s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Synced{Synced: &agentv1.Synced{Revision: 12}}}
		if got := s.acknowledged(t); got != 13 || seen.Load() != 1 {
			t.Errorf("acknowledged %d with %d locks, want 13 with 1", got, seen.Load())
		}
		// Many at once are acknowledged together, and the last of them.
		for i := range 50 {
			release <- struct{}{}
			s.change(t, uint64(20+i), userLock("bob"))
			synctest.Wait()
		}
		many := 0
		for last := uint64(0); last != 69; many++ {
			last = s.acknowledged(t)
		}
		if many > 3 {
			t.Errorf("%d acknowledgements of 50 changes at once", many)
		}
		// Each stream begins with one.
		s.end <- fault.Unreachable("gone")
		s = <-a.auth.streams
		s.welcome(t, false, true)
		s.change(t, 69)
		if got := s.acknowledged(t); got != 69 {
			t.Errorf("acknowledged %d on a new stream, want 69", got)
		}
		a.stop(t, s)
	})
}

func lockChange(t *testing.T, rev uint64, name string) *agentv1.ControlResponse {
	t.Helper()
	packed, err := types.ToAny(userLock(name))
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Change{Change: &agentv1.Change{
		Revision: rev, Kind: types.KindLock, Name: name, Resource: packed,
	}}}
}

// An Auth Service of an older version would end the stream.
func TestNoAcknowledgementUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		enforced := make(chan struct{}, 10)
		a := runEnforcing(t, func(context.Context, *cache.Cache) error { enforced <- struct{}{}; return nil })
		s := <-a.auth.streams
		s.welcome(t, true, false)
		s.change(t, 10, userLock("alice"))
		<-enforced
		time.Sleep(5 * time.Second)
		if len(s.requests) != 0 {
			t.Errorf("sent %v unasked", <-s.requests)
		}
		a.stop(t, s)
	})
}

// What is not enforced is not acknowledged.
func TestFailedEnforcement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := errors.New("a session does not end")
		tried := make(chan struct{}, 10)
		a := runEnforcing(t, func(_ context.Context, c *cache.Cache) error {
			tried <- struct{}{}
			if len(c.Locks()) == 1 {
				return fail
			}
			return nil
		})
		s := <-a.auth.streams
		s.welcome(t, true, true)
		s.change(t, 10, userLock("alice"))
		<-tried
		time.Sleep(5 * time.Second)
		if len(s.requests) != 0 {
			t.Errorf("sent %v although the enforcement failed", <-s.requests)
		}
		s.change(t, 11, userLock("bob"))
		<-tried
		if got := s.acknowledged(t); got != 11 {
			t.Errorf("acknowledged %d, want 11", got)
		}
		a.stop(t, s)
	})
}

// TestHeard: only what proves that Auth has nothing newer makes the cache fresh.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		pong := &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Pong{Pong: &agentv1.Pong{}}}
		s.responses <- pong
		synctest.Wait()
		if !a.cache.Stale(time.Now()) {
			t.Error("a pong before the snapshot was whole made the cache fresh")
		}
		s.change(t, 10)
		synctest.Wait()
		if a.cache.Stale(time.Now()) {
			t.Error("the cache is stale after a snapshot")
		}
		go func() { // Auth hears pings and answers none
			for range s.requests {
			}
		}()
		time.Sleep(50 * time.Second)
		s.responses <- pong
		synctest.Wait()
		at := time.Now()
		if a.cache.Stale(at.Add(cache.MaxSilence)) || !a.cache.Stale(at.Add(cache.MaxSilence+time.Second)) {
			t.Error("the last pong is not when Auth was heard")
		}
		a.cancel()
		s.end <- fault.Unreachable("gone")
		if err := <-a.done; err != nil {
			t.Error(err)
		}
	})
}

// A locked host's events wait until it is not.
func TestEventsOfALockedHostWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var locked atomic.Bool
		locked.Store(true)
		var stored []string
		auth := &fakeAuth{invoke: func(_ context.Context, req any) error {
			if locked.Load() {
				return access.LockError(userLock("h"))
			}
			for _, e := range req.(*auditv1.EmitEventsRequest).GetEvents() {
				stored = append(stored, e.GetEvent())
			}
			return nil
		}}
		e := control.NewEmitter(auth, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		if err := e.Emit(t.Context(), event("session.end")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		locked.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(stored) != 1 || stored[0] != "session.end" {
			t.Errorf("stored %v, want the event once", stored)
		}
	})
}

// TestLockout: a process that Auth refuses because of a lock knows it until it is
// let in again.
func TestLockout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		s.change(t, 10)
		synctest.Wait()
		s.end <- access.LockError(userLock("h"))
		synctest.Wait()
		if got, want := a.cache.LockedOut(), access.LockText(userLock("h")); got != want {
			t.Errorf("locked out by %q, want %q", got, want)
		}
		s = <-a.auth.streams
		s.end <- fault.Unreachable("gone")
		s = <-a.auth.streams
		if a.cache.LockedOut() == "" {
			t.Error("an Auth Service that is away ended the lockout")
		}
		s.hello(t, false)
		s.change(t, 11)
		synctest.Wait()
		if got := a.cache.LockedOut(); got != "" {
			t.Errorf("still locked out by %q", got)
		}
		a.stop(t, s)
	})
}

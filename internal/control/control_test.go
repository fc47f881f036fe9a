package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/cache"
	"teleport/internal/control"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// fakeAuth is a connection whose other end the test plays, in memory so that the
// tests can run on a fake clock.
type fakeAuth struct {
	streams chan *fakeStream
	invoke  func(ctx context.Context, req any) error
}

func newFakeAuth() *fakeAuth { return &fakeAuth{streams: make(chan *fakeStream)} }

func (f *fakeAuth) Invoke(ctx context.Context, _ string, req, _ any, _ ...grpc.CallOption) error {
	return f.invoke(ctx, req)
}

func (f *fakeAuth) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	s := &fakeStream{ctx: ctx, requests: make(chan *agentv1.ControlRequest, 64), responses: make(chan *agentv1.ControlResponse, 64), end: make(chan error, 1)}
	select {
	case f.streams <- s:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type fakeStream struct {
	ctx       context.Context
	requests  chan *agentv1.ControlRequest
	responses chan *agentv1.ControlResponse
	end       chan error
}

func (s *fakeStream) Header() (metadata.MD, error) { return nil, nil }
func (s *fakeStream) Trailer() metadata.MD         { return nil }
func (s *fakeStream) Context() context.Context     { return s.ctx }
func (s *fakeStream) CloseSend() error             { close(s.requests); return nil }

func (s *fakeStream) SendMsg(m any) error {
	select {
	case s.requests <- m.(*agentv1.ControlRequest):
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *fakeStream) RecvMsg(m any) error {
	select {
	case r := <-s.responses:
		proto.Merge(m.(proto.Message), r)
		return nil
	case err := <-s.end:
		return err
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// hello takes the Hello of a new stream and welcomes it.
func (s *fakeStream) hello(t *testing.T, snapshot bool) *agentv1.Hello {
	t.Helper()
	h := (<-s.requests).GetHello()
	if h == nil {
		t.Fatal("a stream did not begin with Hello")
	}
	s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Welcome{
		Welcome: &agentv1.Welcome{Epoch: "epoch-1", Snapshot: snapshot},
	}}
	return h
}

// change sends resources and then Synced.
func (s *fakeStream) change(t *testing.T, rev uint64, rs ...types.Resource) {
	t.Helper()
	for _, r := range rs {
		packed, err := types.ToAny(r)
		if err != nil {
			t.Fatal(err)
		}
		s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Change{Change: &agentv1.Change{
			Revision: rev, Kind: r.GetKind(), Name: r.GetMetadata().GetName(), Resource: packed,
		}}}
	}
	s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Synced{Synced: &agentv1.Synced{Revision: rev}}}
}

func server(name, hostname string) *typesv1.Server {
	s := types.New(types.KindNode, name).(*typesv1.Server)
	s.Spec = &typesv1.ServerSpec{Hostname: hostname}
	return s
}

// agent is a running control.Run.
type agent struct {
	auth    *fakeAuth
	cache   *cache.Cache
	cancel  context.CancelFunc
	done    chan error
	states  chan error
	servers []types.Resource
	changed chan struct{}
	cas     [][]*typesv1.CertAuthority
	casErr  error
}

func run(t *testing.T) *agent {
	t.Helper()
	a := &agent{auth: newFakeAuth(), cache: cache.New(), done: make(chan error, 1), states: make(chan error, 100), changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	a.servers = []types.Resource{server("host-1", "one")}
	go func() {
		a.done <- control.Run(ctx, control.Config{
			Conn: a.auth, Cache: a.cache, ServersChanged: a.changed,
			Servers: func() []types.Resource { return a.servers },
			OnState: func(err error) { a.states <- err },
			OnAuthorities: func(cas []*typesv1.CertAuthority) error {
				a.cas = append(a.cas, cas)
				return a.casErr
			},
		})
	}()
	return a
}

// stop ends the agent, and lets Auth end the stream when it is closed.
func (a *agent) stop(t *testing.T, s *fakeStream) {
	t.Helper()
	a.cancel()
	go func() {
		for range s.requests {
		}
		s.end <- io.EOF
	}()
	if err := <-a.done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestSnapshotThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		if h := s.hello(t, true); h.GetRevision() != 0 || h.GetEpoch() != "" {
			t.Errorf("first hello = %v, want revision 0", h)
		}
		s.change(t, 10, types.New(types.KindRole, "access"), types.New(types.KindCertAuthority, "host"))
		synctest.Wait()
		if a.cache.Revision() != 10 || len(a.cache.Roles([]string{"access"})) != 1 {
			t.Errorf("cache at %d with roles %v", a.cache.Revision(), a.cache.Roles([]string{"access"}))
		}
		if err := <-a.states; err != nil {
			t.Errorf("state = %v, want nil", err)
		}
		if got := (<-s.requests).GetAnnounce(); got == nil || got.GetGone() {
			t.Errorf("first request = %v, want an announcement", got)
		}
		s.change(t, 11, types.New(types.KindRole, "editor"))
		synctest.Wait()
		if len(a.cas) != 1 {
			t.Errorf("authorities reported %d times, want once: they did not change", len(a.cas))
		}
		if len(a.cache.Roles([]string{"access", "editor"})) != 2 {
			t.Error("a live change did not reach the cache")
		}
		a.stop(t, s)
	})
}

func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		s.change(t, 10, types.New(types.KindRole, "access"))
		synctest.Wait()
		s.end <- fault.Unreachable("gone")
		s = <-a.auth.streams
		if h := s.hello(t, false); h.GetRevision() != 10 || h.GetEpoch() != "epoch-1" {
			t.Errorf("hello after a break = %v, want revision 10 of epoch-1", h)
		}
		s.change(t, 12, types.New(types.KindRole, "editor"))
		synctest.Wait()
		if len(a.cache.Roles([]string{"access", "editor"})) != 2 {
			t.Error("what was known before the break is lost")
		}
		if got := (<-s.requests).GetAnnounce(); got == nil {
			t.Errorf("the new stream did not announce the servers")
		}
		a.stop(t, s)
	})
}

func TestWrongResumeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, false)
		if err := <-a.states; !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("state = %v, want ErrInvalid: Auth resumed an epoch that was never begun", err)
		}
		s = <-a.auth.streams
		s.hello(t, true)
		a.stop(t, s)
	})
}

func TestAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		<-s.requests
		take := func() (string, bool) {
			t.Helper()
			m := (<-s.requests).GetAnnounce()
			r, err := types.FromAny(m.GetServer())
			if err != nil {
				t.Fatal(err)
			}
			return r.GetMetadata().GetName() + " " + r.(*typesv1.Server).GetSpec().GetHostname(), m.GetGone()
		}
		a.changed <- struct{}{}
		synctest.Wait()
		if len(s.requests) != 0 {
			t.Error("a server that did not change was announced again")
		}
		a.servers = []types.Resource{server("host-1", "renamed")}
		a.changed <- struct{}{}
		if name, gone := take(); name != "host-1 renamed" || gone {
			t.Errorf("announced %q gone=%t, want the new host name", name, gone)
		}
		a.servers = nil
		a.changed <- struct{}{}
		if name, gone := take(); name != "host-1 renamed" || !gone {
			t.Errorf("announced %q gone=%t, want it withdrawn", name, gone)
		}
		a.servers = []types.Resource{server("host-1", "back")}
		a.changed <- struct{}{}
		take()
		a.cancel()
		if name, gone := take(); name != "host-1 back" || !gone {
			t.Errorf("at the end: %q gone=%t, want it withdrawn", name, gone)
		}
		if _, open := <-s.requests; open {
			t.Error("the stream is not closed after the last withdrawal")
		}
		s.end <- io.EOF
		if err := <-a.done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

// TestSeveralOfAKind: a service may serve several resources, each for itself.
func TestSeveralOfAKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := func(name, description string) types.Resource {
			s := types.New(types.KindAppServer, types.ServerName(name, "host-1")).(*typesv1.AppServer)
			s.Metadata.Description = description
			return s
		}
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		<-s.requests
		take := func() string {
			t.Helper()
			m := (<-s.requests).GetAnnounce()
			r, err := types.FromAny(m.GetServer())
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s/%s %s %t", r.GetKind(), r.GetMetadata().GetName(), r.GetMetadata().GetDescription(), m.GetGone())
		}
		node := a.servers[0]
		for _, step := range []struct {
			servers []types.Resource
			want    []string
		}{
			{[]types.Resource{node, app("a", ""), app("b", "")}, []string{"app_server/a@host-1  false", "app_server/b@host-1  false"}},
			{[]types.Resource{app("a", "new"), node, app("b", "")}, []string{"app_server/a@host-1 new false"}},
			{[]types.Resource{node, app("b", ""), app("c", "")}, []string{"app_server/c@host-1  false", "app_server/a@host-1 new true"}},
		} {
			a.servers = step.servers
			a.changed <- struct{}{}
			for _, want := range step.want {
				if got := take(); got != want {
					t.Errorf("announced %q, want %q", got, want)
				}
			}
			synctest.Wait()
			if len(s.requests) != 0 {
				t.Error("more was announced than what changed")
			}
		}
		a.stop(t, s)
	})
}

func TestSilentAuthIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		s.change(t, 1)
		if err := <-a.states; err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := <-a.states; !errors.Is(err, fault.ErrUnreachable) {
			t.Errorf("state = %v, want ErrUnreachable", err)
		}
		if took := time.Since(begin); took > 2*time.Minute {
			t.Errorf("a silent Auth was left after %v only", took)
		}
		s = <-a.auth.streams
		s.hello(t, true)
		a.stop(t, s)
	})
}

func TestPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		s.change(t, 1)
		<-s.requests // the announcement
		for want := uint64(1); want <= 20; want++ {
			ping := (<-s.requests).GetPing()
			if ping.GetSequence() != want {
				t.Fatalf("ping = %v, want sequence %d", ping, want)
			}
			s.responses <- &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Pong{
				Pong: &agentv1.Pong{Sequence: want, Next: durationpb.New(2 * time.Minute)},
			}}
		}
		if len(a.states) != 1 {
			t.Error("the stream broke although Auth answered every ping")
		}
		a.stop(t, s)
	})
}

func TestChangesBeforeWelcomeAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		<-s.requests
		s.change(t, 1, types.New(types.KindRole, "root"))
		if err := <-a.states; !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("state = %v, want ErrInvalid", err)
		}
		if len(a.cache.Roles([]string{"root"})) != 0 {
			t.Error("the change was taken")
		}
		s = <-a.auth.streams
		s.hello(t, true)
		a.stop(t, s)
	})
}

func TestAuthoritiesAreReportedAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		a.casErr = errors.New("disk full")
		s := <-a.auth.streams
		s.hello(t, true)
		s.change(t, 1, types.New(types.KindCertAuthority, "host"))
		synctest.Wait()
		a.casErr = nil
		s.change(t, 2)
		s.change(t, 3)
		synctest.Wait()
		if len(a.cas) != 2 {
			t.Errorf("authorities reported %d times, want twice: once in vain", len(a.cas))
		}
		a.stop(t, s)
	})
}

func TestStopWhileAuthDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t)
		s := <-a.auth.streams
		s.hello(t, true)
		begin := time.Now()
		a.cancel()
		if err := <-a.done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("Run took %v to stop", took)
		}
	})
}

package authapi_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/authapi"
	"teleport/internal/authz"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// stream is Auth's end of a control stream in memory, so that tests can run on a
// fake clock. Nobody reads what is sent unless the test does.
type stream struct {
	ctx context.Context
	in  chan *agentv1.ControlRequest
	out chan *agentv1.ControlResponse
}

func (s *stream) SetHeader(metadata.MD) error  { return nil }
func (s *stream) SendHeader(metadata.MD) error { return nil }
func (s *stream) SetTrailer(metadata.MD)       {}
func (s *stream) Context() context.Context     { return s.ctx }
func (s *stream) SendMsg(any) error            { return errors.New("not used") }
func (s *stream) RecvMsg(any) error            { return errors.New("not used") }

func (s *stream) Send(m *agentv1.ControlResponse) error {
	select {
	case s.out <- m:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *stream) Recv() (*agentv1.ControlRequest, error) {
	select {
	case m, ok := <-s.in:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// bubble is an AgentServer over a memory store, to be used inside synctest.
type bubble struct {
	t     *testing.T
	store *store.Store
	*authapi.AgentServer
	mu   sync.Mutex
	seen error
	stop func()
}

func newBubble(t *testing.T) *bubble {
	t.Helper()
	mem := memory.New()
	b := &bubble{t: t, store: store.New(store.Config{Backend: mem})}
	var err error
	b.AgentServer, err = authapi.NewAgent(authapi.AgentConfig{
		Config: authapi.Config{
			Store: b.store, Cluster: func() string { return cluster }, Trust: func() *ca.Trust { return nil },
			Authorizer: authz.New(func(context.Context, []string) ([]*typesv1.Role, error) { return nil, nil }),
		},
		SeenGeneration: func(context.Context, identity.Host) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.seen
		},
	})
	check(t, err)
	b.put(newRole("r1"), newNode("n1", nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		_ = mem.Close()
	}
	<-b.Ready()
	return b
}

func (b *bubble) put(rs ...types.Resource) {
	b.t.Helper()
	tx := b.store.Tx()
	for _, r := range rs {
		tx.Upsert(r)
	}
	check(b.t, tx.Commit(b.t.Context()))
	synctest.Wait()
}

// session is one control stream of a host and what its handler returned.
type session struct {
	*stream
	t      *testing.T
	cancel context.CancelFunc
	done   chan error
}

// connect opens a stream. The test reads it through a buffer of size.
func (b *bubble) connect(id string, size int, roles ...types.SystemRole) *session {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	ctx = rpc.WithCaller(ctx, rpc.Caller{Addr: "192.0.2.1:1", Identity: &identity.Identity{
		Cluster: cluster, Expires: time.Now().Add(24 * time.Hour), Host: &identity.Host{ID: id, Name: "name-" + id, Roles: roles, Generation: 1},
	}})
	s := &session{
		stream: &stream{ctx: ctx, in: make(chan *agentv1.ControlRequest, 100), out: make(chan *agentv1.ControlResponse, size)},
		t:      b.t, cancel: cancel, done: make(chan error, 1),
	}
	go func() {
		err := b.Control(s.stream)
		cancel() // as gRPC does when a handler returns
		s.done <- err
	}()
	return s
}

func (s *session) hello(epoch string, revision uint64) *agentv1.Welcome {
	s.t.Helper()
	s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: &agentv1.Hello{Epoch: epoch, Revision: revision}}}
	w := s.recv().GetWelcome()
	if w == nil {
		s.t.Fatal("no welcome")
	}
	return w
}

func (s *session) recv() *agentv1.ControlResponse {
	s.t.Helper()
	select {
	case m := <-s.out:
		return m
	case err := <-s.done:
		s.t.Fatalf("the stream ended: %v", err)
		return nil
	}
}

// batch returns the changes up to the next Synced, as "kind/name" with "-" before
// what was deleted, sorted; and the revision.
func (s *session) batch() ([]string, uint64) {
	s.t.Helper()
	var out []string
	for {
		m := s.recv()
		if m.GetSynced() != nil {
			slices.Sort(out)
			return out, m.GetSynced().GetRevision()
		}
		c := m.GetChange()
		name := c.GetKind() + "/" + c.GetName()
		if c.GetResource() == nil {
			name = "-" + name
		}
		out = append(out, name)
	}
}

func (s *session) expect(names ...string) uint64 {
	s.t.Helper()
	got, revision := s.batch()
	if !slices.Equal(got, names) {
		s.t.Errorf("changes = %v, want %v", got, names)
	}
	return revision
}

func (s *session) announce(r types.Resource, gone bool) {
	s.t.Helper()
	s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(s.t, r), Gone: gone}}}
	synctest.Wait()
}

// quiet fails if anything was sent.
func (s *session) quiet() {
	s.t.Helper()
	synctest.Wait()
	if n := len(s.out); n != 0 {
		s.t.Errorf("%d messages were sent, want none", n)
	}
}

// in runs a test on a fake clock.
func in(t *testing.T, f func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		f(t, b)
		b.stop()
	})
}

func TestEachGetsWhatItDecidesWith(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		node, proxy := b.connect("h1", 100, types.RoleNode), b.connect("p1", 100, types.RoleProxy, types.RoleNode)
		if w := node.hello("", 0); !w.GetSnapshot() || w.GetEpoch() == "" {
			t.Errorf("welcome = %v, want a snapshot", w)
		}
		node.expect("role/r1")
		proxy.hello("", 0)
		proxy.expect("node/n1", "role/r1")
		b.put(newRole("r2"), newNode("n2", nil), newUser("bob"))
		node.expect("role/r2")
		got := map[string]bool{}
		for len(got) < 2 { // the transaction may arrive in one batch or in two
			names, _ := proxy.batch()
			for _, n := range names {
				got[n] = true
			}
		}
		if !got["node/n2"] || !got["role/r2"] {
			t.Errorf("the proxy got %v", got)
		}
		check(t, b.store.Tx().Delete(types.KindRole, "r1", "").Commit(t.Context()))
		node.expect("-role/r1")
		node.cancel()
		proxy.cancel()
	})
}

// Proxies learn which hosts there are, and nothing else of them; agents do not.
func TestProxiesKnowTheHosts(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		instance := func(generation uint64) *typesv1.Instance {
			i := types.New(types.KindInstance, "h1").(*typesv1.Instance)
			i.Metadata.Labels = map[string]string{"team": "db"}
			i.Spec = &typesv1.InstanceSpec{Hostname: "one", Token: "the-token", Roles: []string{"Node"}}
			i.Status = &typesv1.InstanceStatus{Generation: generation}
			return i
		}
		node, proxy := b.connect("h2", 100, types.RoleNode), b.connect("p1", 100, types.RoleProxy)
		node.hello("", 0)
		node.expect("role/r1")
		proxy.hello("", 0)
		proxy.expect("node/n1", "role/r1")
		b.put(instance(1))
		c := proxy.recv().GetChange()
		got := unpacked(t, c.GetResource())
		want := &typesv1.Instance{Kind: types.KindInstance, Spec: &typesv1.InstanceSpec{Token: "the-token"}}
		if c.GetName() != "h1" || !proto.Equal(got, want) {
			t.Errorf("the proxy got %q %v, want no more than the kind, the name and the token", c.GetName(), got)
		}
		proxy.expect()
		b.put(instance(2))
		proxy.quiet() // a renewal changes nothing for it
		check(t, b.store.Tx().Delete(types.KindInstance, "h1", "").Commit(t.Context()))
		proxy.expect("-instance/h1")
		node.quiet()
		late := b.connect("p2", 100, types.RoleProxy)
		late.hello("", 0)
		late.expect("node/n1", "role/r1")
		for _, s := range []*session{node, proxy, late} {
			s.cancel()
		}
	})
}

func TestHeartbeatsAreNotPassedOn(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		proxy := b.connect("p1", 100, types.RoleProxy)
		proxy.hello("", 0)
		proxy.batch()
		b.put(newNode("n1", nil))
		b.put(newNode("n1", nil))
		proxy.quiet()
		b.put(newNode("n1", map[string]string{"new": "label"}))
		proxy.expect("node/n1")
		proxy.cancel()
	})
}

func TestResume(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		s := b.connect("h1", 100, types.RoleNode)
		epoch := s.hello("", 0).GetEpoch()
		s.expect("role/r1")
		b.put(newRole("r2"))
		revision := s.expect("role/r2")
		s.cancel()
		b.put(newRole("r3"))
		b.put(newRole("r4"))
		b.put(newRole("r3"))
		s = b.connect("h1", 100, types.RoleNode)
		if w := s.hello(epoch, revision); w.GetSnapshot() {
			t.Error("an agent that can resume was sent a snapshot")
		}
		got, _ := s.batch()
		for _, name := range got {
			if !slices.Contains([]string{"role/r2", "role/r3", "role/r4"}, name) {
				t.Errorf("resumed with %v, which was known", name)
			}
		}
		if !slices.Contains(got, "role/r3") || !slices.Contains(got, "role/r4") {
			t.Errorf("resumed with %v, want r3 and r4", got)
		}
		s.cancel()
		tests := []struct {
			name     string
			epoch    string
			revision uint64
		}{
			{"another_epoch", "other", revision},
			{"no_epoch", "", revision},
			{"from_the_future", epoch, 1 << 40},
			{"before_the_start", epoch, 0},
		}
		for _, tt := range tests {
			s := b.connect("h1", 100, types.RoleNode)
			if w := s.hello(tt.epoch, tt.revision); !w.GetSnapshot() {
				t.Errorf("%s: resumed, want a snapshot", tt.name)
			}
			s.expect("role/r1", "role/r2", "role/r3", "role/r4")
			s.cancel()
		}
	})
}

// TestResumeInTheMiddleOfATransaction: its changes share a revision, so an agent
// that saw one of them must get all of them when it comes back.
func TestResumeInTheMiddleOfATransaction(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		s := b.connect("h1", 100, types.RoleNode)
		epoch := s.hello("", 0).GetEpoch()
		s.batch()
		b.put(newRole("a"), newRole("b"), newRole("c"))
		_, revision := s.batch()
		s.cancel()
		s = b.connect("h1", 100, types.RoleNode)
		if s.hello(epoch, revision).GetSnapshot() {
			t.Error("sent a snapshot")
		}
		s.expect("role/a", "role/b", "role/c")
		s.cancel()
	})
}

func TestGapMeansSnapshot(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		s := b.connect("h1", 100, types.RoleNode)
		epoch := s.hello("", 0).GetEpoch()
		s.batch()
		b.put(newRole("r2"))
		_, revision := s.batch()
		s.cancel()
		for i := range 12_000 {
			r := newRole("busy")
			r.Metadata.Description = strings.Repeat("x", i%7+1)
			check(t, b.store.Tx().Upsert(r).Commit(t.Context()))
			if i%500 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		s = b.connect("h1", 100, types.RoleNode)
		if !s.hello(epoch, revision).GetSnapshot() {
			t.Error("resumed over a gap")
		}
		s.expect("role/busy", "role/r1", "role/r2")
		s.cancel()
	})
}

func TestSlowReaderIsCut(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		s := b.connect("h1", 0, types.RoleNode)
		s.hello("", 0)
		s.expect("role/r1")
		quick := b.connect("h2", 100, types.RoleNode)
		quick.hello("", 0)
		quick.expect("role/r1")
		begin := time.Now()
		b.put(newRole("r2"))
		quick.expect("role/r2")
		if time.Since(begin) > time.Second {
			t.Error("one slow agent held up another")
		}
		err := <-s.done
		if !errors.Is(err, fault.ErrUnreachable) || time.Since(begin) > time.Minute {
			t.Errorf("slow reader got %v after %v, want it cut", err, time.Since(begin))
		}
		quick.cancel()
	})
}

func TestBadBeginnings(t *testing.T) {
	hello := &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: &agentv1.Hello{}}}
	ping := &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Ping{Ping: &agentv1.Ping{}}}
	tests := []struct {
		name string
		send []*agentv1.ControlRequest
		kind error
		part string
	}{
		{"nothing", nil, fault.ErrInvalid, "no hello"},
		{"ping_first", []*agentv1.ControlRequest{ping}, fault.ErrInvalid, "begins with hello"},
		{"two_hellos", []*agentv1.ControlRequest{hello, hello}, fault.ErrInvalid, "one hello"},
		{"empty_request", []*agentv1.ControlRequest{hello, {}}, fault.ErrUnsupported, "does not know"},
		{"flood", append([]*agentv1.ControlRequest{hello}, slices.Repeat([]*agentv1.ControlRequest{ping}, 50)...), fault.ErrLimit, "requests a second"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(t *testing.T, b *bubble) {
				s := b.connect("h1", 100, types.RoleNode)
				for _, m := range tt.send {
					s.in <- m
				}
				want(t, <-s.done, tt.kind, tt.part)
			})
		})
	}
}

func TestStreamEnds(t *testing.T) {
	tests := []struct {
		name string
		end  func(b *bubble, s *session)
		kind error
		part string
	}{
		{"certificate_expires", func(*bubble, *session) {}, fault.ErrUnauthenticated, "expired"},
		{"host_is_removed", func(b *bubble, _ *session) {
			i := types.New(types.KindInstance, "h1").(*typesv1.Instance)
			b.put(i)
			check(b.t, b.store.Tx().Delete(types.KindInstance, "h1", "").Commit(b.t.Context()))
		}, fault.ErrDenied, "removed from the cluster"},
		{"identity_was_copied", func(b *bubble, _ *session) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.seen = fault.Denied("used twice")
		}, fault.ErrDenied, "used twice"},
		{"too_many_streams", func(b *bubble, _ *session) {
			for range 4 {
				s := b.connect("h1", 100, types.RoleNode)
				s.hello("", 0)
			}
		}, fault.ErrLimit, "more than 4"},
		{"agent_closes", func(_ *bubble, s *session) { close(s.in) }, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(t *testing.T, b *bubble) {
				s := b.connect("h1", 100, types.RoleNode)
				s.hello("", 0)
				s.batch()
				tt.end(b, s)
				err := <-s.done
				if tt.kind == nil {
					check(t, err)
					return
				}
				want(t, err, tt.kind, tt.part)
				if tt.name == "host_is_removed" && fault.Code(err) != "host_removed" {
					t.Errorf("code = %q, want that of a removed host", fault.Code(err))
				}
			})
		})
	}
}

func TestRefusedGeneration(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		b.seen = fault.Denied("used twice")
		want(t, <-b.connect("h1", 100, types.RoleNode).done, fault.ErrDenied, "used twice")
	})
}

func TestAnnounce(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
		instance.Spec = &typesv1.InstanceSpec{Hostname: "name-h1", Labels: map[string]string{"env": "prod", "cmd": "fixed"}}
		b.put(instance)
		s := b.connect("h1", 100, types.RoleNode)
		s.hello("", 0)
		s.batch()
		said := newNode("h1", map[string]string{"env": "dev", "team": "db"})
		said.Spec.Hostname = "payroll"
		said.Spec.CmdLabels = map[string]*typesv1.CommandLabel{"cmd": {Command: []string{"x"}, Result: "forged"}, "kernel": {Command: []string{"uname"}, Result: "6"}}
		get := func() *typesv1.Server {
			t.Helper()
			r, err := store.Get[*typesv1.Server](t.Context(), b.store, types.KindNode, "h1")
			check(t, err)
			return r
		}
		s.announce(said, false)
		got := get()
		labels := types.ServerLabels(got)
		if labels["env"] != "prod" || labels["team"] != "db" || labels["cmd"] != "fixed" || labels["kernel"] != "6" {
			t.Errorf("labels = %v: those of the join token must win", labels)
		}
		if got.GetSpec().GetHostname() != "name-h1" {
			t.Errorf("hostname = %q, want that of the certificate", got.GetSpec().GetHostname())
		}
		if left := time.Until(got.GetMetadata().GetExpires().AsTime()); left > 10*time.Minute || left < 9*time.Minute {
			t.Errorf("expires in %v, want 10 minutes", left)
		}
		s.announce(said, false)
		if get().GetMetadata().GetRevision() != got.GetMetadata().GetRevision() {
			t.Error("the same announcement was written twice")
		}
		// Alive as long as the stream is.
		time.Sleep(time.Hour)
		get()
		s.announce(said, true)
		if _, err := b.store.Get(t.Context(), types.KindNode, "h1"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("after gone = %v, want ErrNotFound", err)
		}
		s.announce(said, true)
		s.announce(said, false)
		s.cancel()
		time.Sleep(11 * time.Minute)
		if _, err := b.store.Get(t.Context(), types.KindNode, "h1"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("11 minutes after the stream broke = %v, want ErrNotFound", err)
		}
	})
}

func TestAnnounceRefuses(t *testing.T) {
	proxy := types.New(types.KindProxy, "h1").(*typesv1.Server)
	long := newNode("h1", map[string]string{"k": strings.Repeat("x", 64<<10)})
	endless := newNode("h1", map[string]string{"k": strings.Repeat("x", 1<<20)})
	tests := []struct {
		name string
		r    types.Resource
		kind error
	}{
		{"another_host", newNode("h2", nil), fault.ErrDenied},
		{"another_role", proxy, fault.ErrDenied},
		{"not_a_server", newRole("r"), fault.ErrInvalid},
		{"long_label", long, fault.ErrInvalid},
		{"endless_label", endless, fault.ErrLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(t *testing.T, b *bubble) {
				s := b.connect("h1", 100, types.RoleNode)
				s.hello("", 0)
				s.batch()
				s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Announce{Announce: &agentv1.Announce{Server: packed(t, tt.r)}}}
				want(t, <-s.done, tt.kind, "")
			})
		})
	}
}

func TestPing(t *testing.T) {
	in(t, func(t *testing.T, b *bubble) {
		s := b.connect("h1", 100, types.RoleNode)
		s.hello("", 0)
		s.batch()
		s.in <- &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Ping{Ping: &agentv1.Ping{Sequence: 7}}}
		if p := s.recv().GetPong(); p.GetSequence() != 7 || p.GetNext().AsDuration() < time.Second {
			t.Errorf("pong = %v, want sequence 7 and when to ping again", p)
		}
		if b.Connected() != 1 {
			t.Errorf("%d connected, want 1", b.Connected())
		}
		s.cancel()
		synctest.Wait()
		if b.Connected() != 0 {
			t.Errorf("%d connected, want 0", b.Connected())
		}
	})
}

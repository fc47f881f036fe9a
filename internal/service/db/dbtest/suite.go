package dbtest

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/db"
	"teleport/internal/service/db/engine"
)

// Suite is what every engine passes, with a real server and a real client.
type Suite struct {
	Engine engine.Engine
	// Database is the server: its name is that of the database in the tests.
	Database *typesv1.Database
	// User and Name exist on the server; User logs in with a certificate. Other is a user
	// that exists as well. A protocol without names leaves Name empty.
	User, Other, Name string
	// NameMatters says that roles are about names.
	NameMatters bool
	// Open connects with a real client, by the protocol as it is without TLS.
	Open func(ctx context.Context, addr, user, name string) (Conn, error)
	// Hello asks for something whose answer has "hello" in it, Fails for something that
	// the server refuses.
	Hello, Fails string
	// Slow is answered after about two seconds; empty leaves out what needs it.
	Slow string
	// HelloRecorded is what the event of Hello has as its text; empty is Hello.
	HelloRecorded string
}

// Conn is a connection of a client.
type Conn interface {
	// Ask returns the answer of the database, or how it refused.
	Ask(ctx context.Context, text string) (string, error)
	Close() error
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	if s.HelloRecorded == "" {
		s.HelloRecorded = s.Hello
	}
	t.Run("session", s.session)
	t.Run("failure", s.failure)
	t.Run("refused_by_roles", s.refused)
	t.Run("certificate_tied", s.tied)
	t.Run("certificate_of_another_database", s.foreign)
	t.Run("pinned_address", s.pinned)
	t.Run("lock", s.lock)
	t.Run("idle_and_expired", s.limits)
	t.Run("audit_log_full", s.full)
	t.Run("auth_away", s.away)
	t.Run("unreachable", s.unreachable)
	t.Run("garbage", s.garbage)
	t.Run("stop", s.stop)
}

// start runs a service with the suite's database.
func (s Suite) start(t testing.TB, change func(*db.Config)) *World {
	t.Helper()
	return Start(t, s.Engine, []*typesv1.Database{s.Database}, change)
}

func (s Suite) name() string { return s.Database.GetMetadata().GetName() }

// open connects, which must work.
func (s Suite) open(t testing.TB, addr, user, name string) Conn {
	t.Helper()
	c, err := s.Open(t.Context(), addr, user, name)
	if err != nil {
		t.Fatalf("connect as %q: %v", user, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s Suite) hello(t testing.TB, c Conn) {
	t.Helper()
	if out, err := c.Ask(t.Context(), s.Hello); err != nil || !strings.Contains(out, "hello") {
		t.Fatalf("%s = %q, %v, want hello", s.Hello, out, err)
	}
}

// denied expects that nobody comes in, and that the client is told text.
func (s Suite) denied(t testing.TB, addr, user, name, text string) {
	t.Helper()
	c, err := s.Open(t.Context(), addr, user, name)
	if err == nil {
		// Some clients find out when they ask.
		_, err = c.Ask(t.Context(), s.Hello)
		_ = c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("connect as %q in %q: %v, want an error with %q", user, name, err, text)
	}
}

func (s Suite) session(t *testing.T) {
	w := s.start(t, nil)
	alice := w.Person(t, "alice", s.name(), nil, nil)
	c := s.open(t, alice.Tunnel(t, s.name()), s.User, s.Name)
	s.hello(t, c)
	begin := w.Events.Wait(t, "TDB00I", nil)
	for field, want := range map[string]string{
		"user": "alice", "db_service": s.name(), "db_protocol": s.Database.GetSpec().GetProtocol(), "db_user": s.User, "server_id": HostID,
	} {
		if got := Field(begin, field); got != want {
			t.Errorf("TDB00I: %s = %q, want %q", field, got, want)
		}
	}
	sid := Field(begin, "sid")
	query := w.Events.Query(t, s.HelloRecorded)
	if Field(query, "sid") != sid || query.GetUid() == "" || query.GetUid() == begin.GetUid() || query.GetTime() == nil {
		t.Errorf("TDB02I = %v, want the same sid, a uid of its own, and a time", query)
	}
	_ = c.Close()
	w.Events.Wait(t, "TDB01I", func(e *auditv1.Event) bool { return Field(e, "sid") == sid })
}

func (s Suite) failure(t *testing.T) {
	w := s.start(t, nil)
	c := s.open(t, w.Person(t, "alice", s.name(), nil, nil).Tunnel(t, s.name()), s.User, s.Name)
	if out, err := c.Ask(t.Context(), s.Fails); err == nil {
		t.Errorf("%s = %q, want an error", s.Fails, out)
	}
	if e := w.Events.Wait(t, "TDB02W", nil); Field(e, "error") == "" {
		t.Errorf("TDB02W = %v, want it to have the error", e)
	}
	s.hello(t, c)
}

func (s Suite) refused(t *testing.T) {
	w := s.start(t, nil)
	w.SetRole("some", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": Strings("test")}, DbUsers: []string{s.User}, DbNames: []string{s.Name + "-other"}}
		if !s.NameMatters {
			r.Allow.DbNames = nil
		}
	})
	w.SetRole("elsewhere", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": Strings("prod")}, DbUsers: []string{"*"}, DbNames: []string{"*"}}
	})
	alice := w.Person(t, "alice", s.name(), []string{"some"}, nil)
	s.denied(t, alice.Tunnel(t, s.name()), s.Other, s.Name, "denied")
	e := w.Events.Wait(t, "TDB00W", nil)
	if Field(e, "db_user") != s.Other || !strings.Contains(Field(e, "rule"), "db_") {
		t.Errorf("TDB00W = %v, want db_user %q and the rule", e, s.Other)
	}
	if s.NameMatters {
		s.denied(t, alice.Tunnel(t, s.name()), s.User, s.Name, "denied")
	} else {
		s.hello(t, s.open(t, alice.Tunnel(t, s.name()), s.User, s.Name))
	}
	bob := w.Person(t, "bob", s.name(), []string{"elsewhere"}, nil)
	s.denied(t, bob.Tunnel(t, s.name()), s.User, s.Name, "denied")
}

func (s Suite) tied(t *testing.T) {
	w := s.start(t, nil)
	alice := w.Person(t, "alice", s.name(), nil, func(r *ca.UserRequest) { r.Identity.User.Database.User = s.Other })
	s.denied(t, alice.Tunnel(t, s.name()), s.User, s.Name, "certificate")
	w.Events.Wait(t, "TDB00W", func(e *auditv1.Event) bool { return Field(e, "rule") == "certificate" })
}

func (s Suite) foreign(t *testing.T) {
	w := s.start(t, nil)
	for name, change := range map[string]func(*ca.UserRequest){
		"other": func(r *ca.UserRequest) { r.Identity.User.Database.Service = "elsewhere" },
		"plain": func(r *ca.UserRequest) { r.Identity.User.Database = nil },
	} {
		c, err := w.Person(t, "alice", s.name(), nil, change).Dial(t.Context(), s.name())
		if err == nil {
			// The server's refusal comes with what is read first.
			_ = c.SetReadDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("a connection with a certificate that is for %s = %v, want it refused", name, err)
		}
	}
}

func (s Suite) pinned(t *testing.T) {
	w := s.start(t, nil)
	alice := w.Person(t, "alice", s.name(), nil, func(r *ca.UserRequest) { r.Identity.User.SourceIP = "192.0.2.7" })
	s.hello(t, s.open(t, alice.Tunnel(t, s.name()), s.User, s.Name))
	alice.Addr = "192.0.2.8:40000"
	s.denied(t, alice.Tunnel(t, s.name()), s.User, s.Name, "address")
}

// ends expects that the connection ends within the time.
func (s Suite) ends(t testing.TB, w *World, c Conn, reason string, within time.Duration) {
	t.Helper()
	began := time.Now()
	w.Events.Wait(t, "TDB01I", func(e *auditv1.Event) bool { return strings.Contains(Field(e, "reason"), reason) })
	if took := time.Since(began); took > within {
		t.Errorf("the session ended after %s, want %s at most", took, within)
	}
	if out, err := c.Ask(t.Context(), s.Hello); err == nil {
		t.Errorf("after the end %s = %q", s.Hello, out)
	}
}

func (s Suite) lock(t *testing.T) {
	w := s.start(t, nil)
	alice := w.Person(t, "alice", s.name(), nil, nil)
	addr := alice.Tunnel(t, s.name())
	c := s.open(t, addr, s.User, s.Name)
	s.hello(t, c)
	other := s.open(t, w.Person(t, "bob", s.name(), nil, nil).Tunnel(t, s.name()), s.User, s.Name)
	w.Lock("alice", &typesv1.LockTarget{User: "alice"})
	if err := w.Service.EnforceLocks(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ends(t, w, c, "lock", 5*time.Second)
	s.denied(t, addr, s.User, s.Name, "lock")
	s.hello(t, other)
	w.Lock("login", &typesv1.LockTarget{Login: s.User})
	s.ends(t, w, other, "Login", 5*time.Second)
}

func (s Suite) limits(t *testing.T) {
	w := s.start(t, nil)
	w.SetRole("idle", func(r *typesv1.RoleSpec) { r.Options = &typesv1.RoleOptions{ClientIdleTimeout: "1s"} })
	w.SetRole("expiring", func(r *typesv1.RoleSpec) { r.Options = &typesv1.RoleOptions{DisconnectExpiredCert: proto.Bool(true)} })
	idle := s.open(t, w.Person(t, "alice", s.name(), []string{Role, "idle"}, nil).Tunnel(t, s.name()), s.User, s.Name)
	s.hello(t, idle)
	s.ends(t, w, idle, "nothing was done", 5*time.Second)
	bob := w.Person(t, "bob", s.name(), []string{Role, "expiring"}, func(r *ca.UserRequest) { r.TTL = 2 * time.Second })
	expiring := s.open(t, bob.Tunnel(t, s.name()), s.User, s.Name)
	s.hello(t, expiring)
	s.ends(t, w, expiring, "expired", 6*time.Second)
}

func (s Suite) full(t *testing.T) {
	w := s.start(t, nil)
	addr := w.Person(t, "alice", s.name(), nil, nil).Tunnel(t, s.name())
	c := s.open(t, addr, s.User, s.Name)
	s.hello(t, c)
	w.Events.Query(t, s.HelloRecorded)
	w.Events.Full(true)
	if other, err := s.Open(t.Context(), addr, s.User, s.Name); err == nil {
		if out, err := other.Ask(t.Context(), s.Hello); err == nil {
			t.Errorf("a session that is not in the audit log: %s = %q", s.Hello, out)
		}
		_ = other.Close()
	}
	// What was asked is on its way when the log refuses it; then it is over.
	var err error
	for limit := time.Now().Add(patience); err == nil && time.Now().Before(limit); {
		_, err = c.Ask(t.Context(), s.Hello)
	}
	if err == nil {
		t.Error("a session goes on though nothing of it is recorded")
	}
}

func (s Suite) away(t *testing.T) {
	w := s.start(t, nil)
	addr := w.Person(t, "alice", s.name(), nil, nil).Tunnel(t, s.name())
	s.hello(t, s.open(t, addr, s.User, s.Name))
	w.Auth.Away(true)
	s.hello(t, s.open(t, addr, s.User, s.Name))
	if n := w.Auth.Signed(); n != 1 {
		t.Errorf("%d certificates were signed for two sessions of one user, want 1", n)
	}
	s.denied(t, addr, s.Other, s.Name, "Auth Service")
}

func (s Suite) unreachable(t *testing.T) {
	gone := Database("gone", s.Database.GetSpec().GetProtocol(), net.JoinHostPort("localhost", FreePort(t)))
	w := s.start(t, func(c *db.Config) { c.Databases = append(c.Databases, gone) })
	s.denied(t, w.Person(t, "alice", "gone", nil, nil).Tunnel(t, "gone"), s.User, s.Name, "cannot be reached")
	w.Announced.Wait(t, "gone", func(d *typesv1.DatabaseServer) bool { return strings.Contains(d.GetSpec().GetHealth(), "refused") })
	w.Announced.Wait(t, s.name(), func(d *typesv1.DatabaseServer) bool {
		return d.GetSpec().GetHealth() == "healthy" || d.GetSpec().GetDatabase().GetSpec().GetProtocol() == "mysql"
	})
}

func (s Suite) garbage(t *testing.T) {
	w := s.start(t, nil)
	alice := w.Person(t, "alice", s.name(), nil, nil)
	for n := range 40 {
		c, err := alice.Dial(t.Context(), s.name())
		if err != nil {
			t.Fatal(err)
		}
		noise := make([]byte, 1<<(n%16))
		_, _ = rand.Read(noise)
		if n%3 == 0 {
			clear(noise[:min(len(noise), 3)])
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_, _ = c.Write(noise)
		_ = c.Close()
	}
	native := alice.Direct(t, s.name())
	for range 10 {
		c, err := net.Dial("tcp", native)
		if err != nil {
			t.Fatal(err)
		}
		noise := make([]byte, 512)
		_, _ = rand.Read(noise)
		_, _ = c.Write(noise)
		_ = c.Close()
	}
	s.hello(t, s.open(t, alice.Tunnel(t, s.name()), s.User, s.Name))
}

func (s Suite) stop(t *testing.T) {
	w := s.start(t, func(c *db.Config) { c.Drain = patience })
	addr := w.Person(t, "alice", s.name(), nil, nil).Tunnel(t, s.name())
	idle := s.open(t, addr, s.User, s.Name)
	s.hello(t, idle)
	slow := make(chan error, 1)
	if s.Slow != "" {
		busy := s.open(t, addr, s.User, s.Name)
		s.hello(t, busy)
		go func() {
			_, err := busy.Ask(t.Context(), s.Slow)
			slow <- err
		}()
		w.Events.Query(t, s.Slow)
	} else {
		slow <- nil
	}
	w.Stop()
	if err := <-slow; err != nil {
		t.Errorf("what was being answered when the service stopped: %v", err)
	}
	if out, err := idle.Ask(t.Context(), s.Hello); err == nil {
		t.Errorf("after the stop %s = %q", s.Hello, out)
	}
	if c, err := s.Open(t.Context(), addr, s.User, s.Name); err == nil {
		_ = c.Close()
		t.Error("after the stop the service takes a connection")
	}
}

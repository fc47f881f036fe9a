package db_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// database is one of the line protocol.
func database(name, port string, change func(*typesv1.Database)) *typesv1.Database {
	d := dbtest.Database(name, "postgres", "localhost:"+port)
	if change != nil {
		change(d)
	}
	return d
}

func ask(t testing.TB, addr, text string) string {
	t.Helper()
	c, err := openLine(t.Context(), addr, "scott", "main")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	out, err := c.Ask(t.Context(), text)
	if err != nil {
		return err.Error()
	}
	return out
}

func TestDynamicDatabases(t *testing.T) {
	port := lineServer(t, "localhost")
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("fixed", port, nil)}, func(c *db.Config) {
		c.Matchers = []map[string]*typesv1.Strings{{"team": dbtest.Strings("blue")}}
		c.Labels = map[string]string{"host": "h1"}
		c.Registerer = prometheus.NewRegistry()
	})
	set := func(d *typesv1.Database) {
		w.Cache.Apply(types.Change{Kind: types.KindDatabase, Name: d.GetMetadata().GetName(), Resource: d})
	}
	none := func(s *typesv1.DatabaseServer) bool { return s == nil }
	some := func(s *typesv1.DatabaseServer) bool { return s != nil }
	blue := database("blue", port, func(d *typesv1.Database) {
		d.Metadata.Labels = map[string]string{"team": "blue", "host": "mine"}
		d.Spec.DynamicLabels = map[string]*typesv1.CommandLabel{"evil": {Command: []string{"touch", "/nonexistent"}, Period: "1m"}}
		d.Spec.Tls = &typesv1.DatabaseTLS{Mode: types.TLSVerifyFull}
	})
	set(blue)
	set(database("red", port, func(d *typesv1.Database) { d.Metadata.Labels = map[string]string{"team": "red"} }))
	// One of the host's own is not replaced.
	set(database("fixed", "1", func(d *typesv1.Database) { d.Metadata.Labels = map[string]string{"team": "blue"} }))
	s := w.Announced.Wait(t, "blue", some)
	if got := fmt.Sprint(s.GetMetadata().GetLabels()); got != "map[host:h1 team:blue]" {
		t.Errorf("labels = %s: what the token says counts, and no command of the cluster's runs", got)
	}
	if s.GetSpec().GetDatabase().GetSpec().GetTls() != nil || s.GetSpec().GetHostId() != dbtest.HostID || types.Check(s) != nil {
		t.Errorf("announced = %v, %v", s, types.Check(s))
	}
	if got := ask(t, w.Person(t, "alice", "fixed", nil, nil).Tunnel(t, "fixed"), "hi"); got != "scott: hi" {
		t.Errorf("the host's own database answers %q", got)
	}
	addr := w.Person(t, "alice", "blue", nil, nil).Tunnel(t, "blue")
	c, err := openLine(t.Context(), addr, "scott", "main")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c, err := openLine(t.Context(), w.Person(t, "alice", "red", nil, nil).Tunnel(t, "red"), "scott", "main"); err == nil {
		_ = c.Close()
		t.Error("a database that no matcher matches is served")
	}
	// Its labels change, and then it is gone.
	blue2 := database("blue", port, func(d *typesv1.Database) { d.Metadata.Labels = map[string]string{"team": "blue", "new": "yes"} })
	set(blue2)
	w.Announced.Wait(t, "blue", func(s *typesv1.DatabaseServer) bool { return s.GetMetadata().GetLabels()["new"] == "yes" })
	if out, err := c.Ask(t.Context(), "still"); err != nil || out != "scott: still" {
		t.Errorf("the session after a change = %q, %v", out, err)
	}
	w.Cache.Apply(types.Change{Kind: types.KindDatabase, Name: "blue"})
	w.Announced.Wait(t, "blue", none)
	w.Events.Wait(t, "TDB01I", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "reason"), "not served") })
	// The static ones change without a restart.
	if err := w.Service.Update([]*typesv1.Database{database("other", port, nil)}); err != nil {
		t.Fatal(err)
	}
	w.Announced.Wait(t, "other", some)
	w.Announced.Wait(t, "fixed", func(s *typesv1.DatabaseServer) bool { return s.GetMetadata().GetLabels()["team"] == "blue" })
	if err := w.Service.Update([]*typesv1.Database{dbtest.Database("x", "mysql", "localhost:1")}); err == nil {
		t.Error("a database without an engine was taken")
	}
}

func TestCommandLabels(t *testing.T) {
	port := lineServer(t, "localhost")
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", port, func(d *typesv1.Database) {
		d.Spec.DynamicLabels = map[string]*typesv1.CommandLabel{"color": {Command: []string{"echo", "green"}, Period: "1m"}}
	})}, nil)
	w.Announced.Wait(t, "main", func(s *typesv1.DatabaseServer) bool { return s.GetMetadata().GetLabels()["color"] == "green" })
	w.SetRole("green", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"color": dbtest.Strings("green")}, DbUsers: []string{"scott"}, DbNames: []string{"main"}}
	})
	if got := ask(t, w.Person(t, "alice", "main", []string{"green"}, nil).Tunnel(t, "main"), "hi"); got != "scott: hi" {
		t.Errorf("by a label that a command made: %q", got)
	}
}

// TestLabelsBeforePeople: who a role denies by a label that a command makes does not get
// in while the command runs for the first time.
func TestLabelsBeforePeople(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "color")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	port := lineServer(t, "localhost")
	slow := database("slow", port, func(d *typesv1.Database) {
		d.Spec.DynamicLabels = map[string]*typesv1.CommandLabel{"color": {Command: []string{"cat", fifo}, Period: "1h"}}
	})
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", port, nil)}, nil)
	w.SetRole("not-red", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"*": dbtest.Strings("*")}, DbUsers: []string{"*"}, DbNames: []string{"*"}}
		r.Deny = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"color": dbtest.Strings("red")}}
	})
	if err := w.Service.Update([]*typesv1.Database{slow}); err != nil {
		t.Fatal(err)
	}
	addr := w.Person(t, "alice", "slow", []string{"not-red"}, nil).Tunnel(t, "slow")
	if c, err := openLine(t.Context(), addr, "scott", "main"); err == nil {
		_ = c.Close()
		t.Error("got in before the labels were known")
	}
	if err := os.WriteFile(fifo, []byte("red\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Announced.Wait(t, "slow", func(s *typesv1.DatabaseServer) bool { return s.GetMetadata().GetLabels()["color"] == "red" })
	if _, err := openLine(t.Context(), addr, "scott", "main"); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("with the label = %v, want a refusal by it", err)
	}
}

func TestServerVerified(t *testing.T) {
	right, wrong := lineServer(t, "localhost"), lineServer(t, "elsewhere.example.com")
	foreign := `-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAQMQ4wDAYDVQQDEwVvdGhlcjAe
-----END CERTIFICATE-----
`
	for name, tt := range map[string]struct {
		port string
		tls  *typesv1.DatabaseTLS
		want string
	}{
		"full":        {right, nil, "scott: hi"},
		"wrong_name":  {wrong, nil, "certificate is valid for elsewhere"},
		"server_name": {wrong, &typesv1.DatabaseTLS{ServerName: "elsewhere.example.com"}, "scott: hi"},
		"ca_only":     {wrong, &typesv1.DatabaseTLS{Mode: types.TLSVerifyCA}, "scott: hi"},
		"insecure":    {wrong, &typesv1.DatabaseTLS{Mode: types.TLSInsecure}, "scott: hi"},
		"other_ca":    {right, &typesv1.DatabaseTLS{CaCert: foreign}, "has no certificate"},
		"system":      {right, &typesv1.DatabaseTLS{TrustSystemCertPool: true}, "scott: hi"},
	} {
		t.Run(name, func(t *testing.T) {
			w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", tt.port, func(d *typesv1.Database) { d.Spec.Tls = tt.tls })}, nil)
			if got := ask(t, w.Person(t, "alice", "main", nil, nil).Tunnel(t, "main"), "hi"); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNative(t *testing.T) {
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, nil)
	alice := w.Person(t, "alice", "main", nil, nil)
	files := alice.Native(t)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", alice.Direct(t, "main"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fmt.Fprintln(raw, "starttls")
	c := tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	fmt.Fprintln(c, "scott main")
	if line, err := readLine(c); err != nil || line != "welcome" {
		t.Errorf("a native client gets %q, %v", line, err)
	}
}

func TestEngineFailure(t *testing.T) {
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, nil)
	addr := w.Person(t, "alice", "main", nil, nil).Tunnel(t, "main")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, "panic")
	if line, err := readLine(conn); err == nil {
		t.Errorf("an engine that failed answers %q", line)
	}
	if got := ask(t, addr, "hi"); got != "scott: hi" {
		t.Errorf("after that: %q", got)
	}
	if n := w.Service.Open(); n > 1 {
		t.Errorf("%d sessions are open", n)
	}
}

func TestStopHasAnEnd(t *testing.T) {
	w := dbtest.Start(t, busyEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, func(c *db.Config) { c.Drain = 200 * time.Millisecond })
	c, err := openLine(t.Context(), w.Person(t, "alice", "main", nil, nil).Tunnel(t, "main"), "scott", "main")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	w.Stop()
	if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("the stop took %s, want it to wait for a session that is never idle, but not long", took)
	}
	if out, err := c.(*lineConn).line(); err == nil || !strings.Contains(err.Error(), "stops") {
		t.Errorf("the session hears %q, %v", out, err)
	}
}

// busyEngine is never idle.
type busyEngine struct{ lineEngine }

// Serve says that it is busy.
func (busyEngine) Serve(ctx context.Context, s *engine.Session) error {
	s.Host.Idle(false)
	return lineEngine{}.Serve(ctx, s)
}

func TestStrictLocks(t *testing.T) {
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, nil)
	w.SetRole("strict", func(r *typesv1.RoleSpec) { r.Options = &typesv1.RoleOptions{Lock: types.LockStrict} })
	addr := w.Person(t, "alice", "main", []string{dbtest.Role, "strict"}, nil).Tunnel(t, "main")
	if got := ask(t, addr, "hi"); got != "scott: hi" {
		t.Fatalf("got %q", got)
	}
	w.Cache.Heard(time.Now().Add(-time.Hour))
	if got := ask(t, addr, "hi"); !strings.Contains(got, "may have missed locks") {
		t.Errorf("while locks may be missed: %q", got)
	}
	w.Cache.Lockout("this host is locked")
	if got := ask(t, w.Person(t, "bob", "main", nil, nil).Tunnel(t, "main"), "hi"); !strings.Contains(got, "this host is locked") {
		t.Errorf("while the host is locked: %q", got)
	}
}

func TestCertificatesAreRenewed(t *testing.T) {
	var mu sync.Mutex
	shift := time.Duration(0)
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, func(c *db.Config) {
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(shift)
		}
	})
	later := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		shift = d
	}
	w.Auth.SetTTL(30 * time.Minute)
	addr := w.Person(t, "alice", "main", nil, nil).Tunnel(t, "main")
	for range 3 {
		if got := ask(t, addr, "hi"); got != "scott: hi" {
			t.Fatalf("got %q", got)
		}
	}
	if n := w.Auth.Signed(); n != 1 {
		t.Errorf("%d certificates were signed for three sessions, want 1", n)
	}
	later(20 * time.Minute)
	w.Auth.Away(true)
	if got := ask(t, addr, "hi"); got != "scott: hi" {
		t.Errorf("while Auth is away, with an old certificate: %q", got)
	}
	w.Auth.Away(false)
	for limit := time.Now().Add(10 * time.Second); w.Auth.Signed() < 2 && time.Now().Before(limit); {
		if got := ask(t, addr, "hi"); got != "scott: hi" {
			t.Fatalf("got %q", got)
		}
	}
	if n := w.Auth.Signed(); n != 2 {
		t.Errorf("%d certificates were signed, want a second one at half of the life", n)
	}
	later(55 * time.Minute)
	w.Auth.Away(true)
	if got := ask(t, addr, "hi"); !strings.Contains(got, "away") {
		t.Errorf("with a certificate that has expired, and no Auth: %q", got)
	}
}

func TestRefusalsAreCounted(t *testing.T) {
	w := dbtest.Start(t, lineEngine{}, []*typesv1.Database{database("main", lineServer(t, "localhost"), nil)}, nil)
	w.SetRole("none", func(*typesv1.RoleSpec) {})
	addr := w.Person(t, "alice", "main", []string{"none"}, nil).Tunnel(t, "main")
	for range 20 {
		if got := ask(t, addr, "hi"); !strings.Contains(got, "denied") || !strings.Contains(got, "audit event") {
			t.Fatalf("got %q", got)
		}
	}
	w.Stop()
	all := w.Events.All("TDB00W")
	if len(all) != 2 || all[1].GetFields().AsMap()["repeated"] != 19.0 {
		t.Errorf("20 refusals are %d events: %v", len(all), all)
	}
}

func TestLineSuite(t *testing.T) {
	dbtest.Suite{
		Engine: failingEngine{}, Database: database("main", lineServer(t, "localhost"), nil), User: "scott", Other: "tiger", Name: "main", NameMatters: true,
		Open: openLine, Hello: "hello", Fails: "fail",
	}.Run(t)
}

// failingEngine lets a line fail, as the suite wants to see.
type failingEngine struct{ lineEngine }

// Serve has its own audit.
func (failingEngine) Serve(ctx context.Context, s *engine.Session) error {
	own := *s
	own.Host = failingHost{s.Host}
	own.Client = &failingClient{Conn: s.Client}
	return lineEngine{}.Serve(ctx, &own)
}

type failingHost struct{ engine.Host }

// Audit returns one that knows what fails.
func (h failingHost) Audit() engine.Audit { return failingAudit{h.Host.Audit()} }

type failingAudit struct{ engine.Audit }

// Query records.
func (a failingAudit) Query(q engine.Query) {
	if q.Text == "fail" {
		q.Err = fmt.Errorf("it fails")
	}
	a.Audit.Query(q)
}

// failingClient is told that it failed.
type failingClient struct{ net.Conn }

// Write writes.
func (c *failingClient) Write(p []byte) (int, error) {
	if strings.HasSuffix(string(p), ": fail\n") {
		_, err := fmt.Fprintln(c.Conn, "error: it fails")
		return len(p), err
	}
	return c.Conn.Write(p)
}

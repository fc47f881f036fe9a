package postgres_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/db/dbtest"
)

func TestPSQL(t *testing.T) {
	w := start(t, nil)
	native := w.alice.Direct(t, "pg")
	files := w.alice.Native(t)
	_, port, _ := net.SplitHostPort(native)
	// The name in the certificate is that of the service; psql looks it up nowhere.
	direct := func(args ...string) *exec.Cmd {
		return exec.Command("psql", append([]string{"-X", "-At", "-v", "ON_ERROR_STOP=1", fmt.Sprintf(
			"host=db.teleport.cluster.local hostaddr=127.0.0.1 port=%s user=alice dbname=postgres sslmode=verify-full sslrootcert=%s sslcert=%s sslkey=%s",
			port, files.CA, files.Cert, files.Key)}, args...)...)
	}
	for name, run := range map[string]func(args ...string) *exec.Cmd{
		"tunnel": func(args ...string) *exec.Cmd { return psql(w.addr, args...) }, "native": direct,
	} {
		t.Run(name, func(t *testing.T) {
			out, err := dbtest.Output(run("-c", "select current_user", "-c", `\d`, "-c", "select 'from "+name+"'"))
			if err != nil || !strings.Contains(out, "alice\n") || !strings.Contains(out, "from "+name) {
				t.Fatalf("psql = %q, %v", out, err)
			}
			w.Events.Query(t, "select 'from "+name+"'")
			out, err = dbtest.Output(run("-c", "select 1/0"))
			if err == nil || !strings.Contains(out, "division by zero") {
				t.Errorf("psql = %q, %v, want the server's error", out, err)
			}
			e := w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "error"), "22012") })
			if dbtest.Field(e, "db_query") != "select 1/0" {
				t.Errorf("TDB02W = %v, want the query", e)
			}
			w.Events.Forget()
		})
	}
	if out := w.server.PSQL(t, "select count(*) from pg_stat_ssl where client_dn like '%CN=alice%'"); strings.TrimSpace(out) != "0" {
		t.Errorf("%s sessions of alice are open", out)
	}
	if out, err := dbtest.Output(exec.Command("psql", "-X", fmt.Sprintf("host=127.0.0.1 port=%s user=alice dbname=postgres sslmode=disable", port))); err == nil || !strings.Contains(out, "not encrypted") {
		t.Errorf("psql without TLS on the native port = %q, %v", out, err)
	}
}

func TestRefusalsInWordsOfPostgreSQL(t *testing.T) {
	w := start(t, nil)
	w.SetRole("reader", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": dbtest.Strings("test")}, DbUsers: []string{"bob", "carol"}, DbNames: []string{"app"}}
	})
	addr := w.Person(t, "rita", "pg", []string{"reader"}, nil).Tunnel(t, "pg")
	_, err := pgconn.Connect(t.Context(), url(addr, "alice", "app"))
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28000" || refused.Severity != "FATAL" || refused.Hint == "" || !strings.Contains(refused.Message, "bob, carol") {
		t.Errorf("refused user = %#v, want FATAL 28000 that says bob, carol, and a hint", refused)
	}
	if _, err = pgconn.Connect(t.Context(), url(addr, "bob", "postgres")); !errors.As(err, &refused) || !strings.Contains(refused.Message, "in database app") {
		t.Errorf("refused database = %v, want it to say app", err)
	}
	for name, tt := range map[string]struct{ query, code string }{
		"replication":       {"&replication=database", "0A000"},
		"no_replication":    {"&replication=false", ""},
		"unknown_database":  {"&database=nowhere", "3D000"},
		"setting_of_server": {"&options=-c%20nonsense%3D1", "42704"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := pgconn.Connect(t.Context(), url(w.addr, "alice", "postgres")+tt.query)
			if err == nil {
				_ = conn{c}.Close()
			}
			code := ""
			if errors.As(err, &refused) {
				code = refused.Code
			}
			if code != tt.code || tt.code == "" && err != nil {
				t.Errorf("connect = %v, want SQLSTATE %q", err, tt.code)
			}
		})
	}
	w.server.Write(t, "data/pg_hba.conf", "local all postgres trust\nhostssl all all all scram-sha-256\n")
	w.server.PSQL(t, "select pg_reload_conf()")
	limit := time.Now().Add(10 * time.Second)
	for err = nil; time.Now().Before(limit) && (err == nil || !strings.Contains(err.Error(), "hostssl all all all cert")); {
		var c *pgconn.PgConn
		if c, err = pgconn.Connect(t.Context(), url(w.addr, "alice", "postgres")); err == nil {
			_ = conn{c}.Close()
		}
	}
	if err == nil || !strings.Contains(err.Error(), "hostssl all all all cert") {
		t.Errorf("login where a password is wanted = %v, want the line for pg_hba.conf", err)
	}
}

func TestPrepared(t *testing.T) {
	w := start(t, nil)
	c := w.pgx(t)
	ctx := t.Context()
	if _, err := c.Exec(ctx, "create table people (id int, name text, born date)"); err != nil {
		t.Fatal(err)
	}
	for i, who := range []string{"ann", "ben"} {
		if _, err := c.Exec(ctx, "insert into people values ($1, $2, $3)", i, who, nil); err != nil {
			t.Fatal(err)
		}
	}
	e := w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return strings.Contains(fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"]), "ben")
	})
	if got := fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"]); got != "[1 ben NULL]" || dbtest.Field(e, "db_query") != "insert into people values ($1, $2, $3)" {
		t.Errorf("event = %v, parameters %s, want [1 ben NULL]", e, got)
	}
	parse := w.Events.Wait(t, "TPG00I", func(e *auditv1.Event) bool { return strings.HasPrefix(dbtest.Field(e, "query"), "insert") })
	bind := w.Events.Wait(t, "TPG01I", nil)
	if dbtest.Field(parse, "statement_name") == "" || fmt.Sprint(bind.GetFields().AsMap()["parameters"]) != "[0 ann NULL]" {
		t.Errorf("parse %v, bind %v", parse, bind)
	}
	// Refused by its values.
	if _, err := c.Exec(ctx, "select 10 / $1::int", 0); err == nil {
		t.Error("division by zero worked")
	}
	failed := w.Events.Wait(t, "TDB02W", nil)
	if dbtest.Field(failed, "db_query") != "select 10 / $1::int" || fmt.Sprint(failed.GetFields().AsMap()["db_query_parameters"]) != "[0]" {
		t.Errorf("TDB02W = %v", failed)
	}
	if err := c.DeallocateAll(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "select $1::int", pgx.QueryExecModeExec, 1); err != nil {
		t.Fatal(err)
	}
	// Many at once: the errors belong to the right one.
	batch := &pgx.Batch{}
	for i := range 50 {
		batch.Queue("select 100 / (40 - $1::int)", i)
	}
	results := c.SendBatch(ctx, batch)
	for i := range 50 {
		if _, err := results.Exec(); (err != nil) != (i >= 40) {
			t.Errorf("query %d of the batch: %v", i, err)
		}
	}
	_ = results.Close()
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"]) == "[40]" })
	if err := c.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
		t.Error(err)
	}
}

func TestFunctionCall(t *testing.T) {
	w := start(t, nil)
	raw, err := w.alice.Dial(t.Context(), "pg")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	f := pgproto3.NewFrontend(raw, raw)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion32, Parameters: map[string]string{"user": "alice", "database": "postgres", "_pq_.made_up": "1"}})
	await := func(what pgproto3.BackendMessage) {
		t.Helper()
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := f.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%T", m) == fmt.Sprintf("%T", what) {
				return
			}
		}
	}
	// The server is of 3.0 and says so to the client, which goes on.
	await(&pgproto3.NegotiateProtocolVersion{})
	await(&pgproto3.ReadyForQuery{})
	f.Send(&pgproto3.FunctionCall{Function: 1598}) // random()
	await(&pgproto3.FunctionCallResponse{})
	await(&pgproto3.ReadyForQuery{})
	e := w.Events.Wait(t, "TPG04I", nil)
	if e.GetFields().AsMap()["function_oid"] != 1598.0 {
		t.Errorf("TPG04I = %v", e)
	}
}

func TestCancel(t *testing.T) {
	w := start(t, nil)
	files := w.alice.Native(t)
	_, port, _ := net.SplitHostPort(w.alice.Direct(t, "pg"))
	for name, cmd := range map[string]*exec.Cmd{
		"tunnel": psql(w.addr, "-c", "select pg_sleep(60), 'tunnel'"),
		"native": exec.Command("psql", "-X", fmt.Sprintf("host=db.teleport.cluster.local hostaddr=127.0.0.1 port=%s user=alice dbname=postgres sslmode=verify-full sslrootcert=%s sslcert=%s sslkey=%s",
			port, files.CA, files.Cert, files.Key), "-c", "select pg_sleep(60), 'native'"),
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Events.Query(t, "'"+name+"'")
			waitFor(t, func() bool {
				return strings.Contains(w.server.PSQL(t, "select query from pg_stat_activity where state = 'active'"), "'"+name+"'")
			})
			// Ctrl-C: psql opens a second connection with the key.
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_ = cmd.Wait()
			if took := time.Since(began); took > 5*time.Second || !strings.Contains(out.String(), "canceling statement due to user request") {
				t.Errorf("after %s: %q, want the statement cancelled", took, out.String())
			}
		})
	}
	t.Run("pgx", func(t *testing.T) {
		c := w.pgx(t)
		done := make(chan error, 1)
		go func() {
			_, err := c.Exec(t.Context(), "select pg_sleep(60), 'pgx'")
			done <- err
		}()
		waitFor(t, func() bool {
			return strings.Contains(w.server.PSQL(t, "select query from pg_stat_activity where state = 'active'"), "'pgx'")
		})
		if err := c.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		var refused *pgconn.PgError
		if err := <-done; !errors.As(err, &refused) || refused.Code != "57014" {
			t.Errorf("cancelled query = %v, want 57014", err)
		}
	})
	t.Run("not_by_others", func(t *testing.T) {
		c := w.pgx(t)
		done := make(chan error, 1)
		go func() {
			_, err := c.Exec(t.Context(), "select pg_sleep(2)")
			done <- err
		}()
		mallory, err := w.Person(t, "mallory", "pg", nil, nil).Dial(t.Context(), "pg")
		if err != nil {
			t.Fatal(err)
		}
		f := pgproto3.NewFrontend(mallory, mallory)
		f.Send(&pgproto3.CancelRequest{ProcessID: c.PgConn().PID(), SecretKey: c.PgConn().SecretKey()})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, mallory)
		if err := <-done; err != nil {
			t.Errorf("a query that somebody else wanted cancelled: %v", err)
		}
	})
	t.Run("by_another_agent", func(t *testing.T) {
		first := w.pgx(t)
		other := &world{server: w.server}
		other.serve(t, nil)
		done := make(chan error, 1)
		go func() {
			_, err := first.Exec(t.Context(), "select pg_sleep(60), 'another'")
			done <- err
		}()
		waitFor(t, func() bool {
			return strings.Contains(w.server.PSQL(t, "select query from pg_stat_activity where state = 'active'"), "'another'")
		})
		conn, err := other.alice.Dial(t.Context(), "pg")
		if err != nil {
			t.Fatal(err)
		}
		f := pgproto3.NewFrontend(conn, conn)
		f.Send(&pgproto3.CancelRequest{ProcessID: first.PgConn().PID(), SecretKey: first.PgConn().SecretKey()})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), "57014") {
			t.Errorf("cancelled through another agent = %v, want 57014", err)
		}
	})
}

// waitFor waits until f says that it is so.
func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(20 * time.Second); !f(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatal("it did not come about")
		}
	}
}

func TestNotifications(t *testing.T) {
	w := start(t, nil)
	listener, speaker := w.pgx(t), w.pgx(t)
	if _, err := listener.Exec(t.Context(), "listen news"); err != nil {
		t.Fatal(err)
	}
	if _, err := speaker.Exec(t.Context(), "notify news, 'rain'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := listener.WaitForNotification(ctx)
	if err != nil || n.Payload != "rain" {
		t.Errorf("notification = %v, %v, want rain", n, err)
	}
	// What a session knows of itself is true.
	var pid uint32
	if err := listener.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil || pid != listener.PgConn().PID() {
		t.Errorf("pg_backend_pid() = %d, the client knows %d (%v)", pid, listener.PgConn().PID(), err)
	}
}

func TestServerRestart(t *testing.T) {
	w := start(t, nil)
	c := w.pgx(t)
	w.server.StopPostgres()
	_, err := c.Exec(t.Context(), "select 1")
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "57P01" {
		t.Errorf("after the server stopped = %v, want the server's own 57P01", err)
	}
	if _, err := pgconn.Connect(t.Context(), url(w.addr, "alice", "postgres")); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("connect while the server is away = %v", err)
	}
	w.server.RunPostgres(t)
	if err := w.pgx(t).QueryRow(t.Context(), "select 1").Scan(new(int)); err != nil {
		t.Errorf("after the server is back: %v", err)
	}
}

func TestUnknownMessages(t *testing.T) {
	for name, refuse := range map[string]bool{"passed_on": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			w := start(t, func(d *typesv1.DatabaseSpec) { d.RefuseUnknownMessages = refuse })
			c := w.pgx(t)
			hijacked, err := c.PgConn().Hijack()
			if err != nil {
				t.Fatal(err)
			}
			defer hijacked.Conn.Close()
			if _, err := hijacked.Conn.Write([]byte{'~', 0, 0, 0, 5, 1}); err != nil {
				t.Fatal(err)
			}
			m, err := pgproto3.NewFrontend(hijacked.Conn, hijacked.Conn).Receive()
			e, ok := m.(*pgproto3.ErrorResponse)
			if !ok || strings.Contains(e.Message, "can be recorded") != refuse {
				t.Errorf("the answer = %#v, %v; the server's word is wanted: %t", m, err, !refuse)
			}
			w.Events.Wait(t, "TDB06I", nil)
		})
	}
}

func TestDirectTLS(t *testing.T) {
	w := start(t, nil)
	files := w.alice.Native(t)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	// As libpq 17 does with sslnegotiation=direct.
	raw, err := tls.Dial("tcp", w.alice.Direct(t, "pg"), &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"postgresql"}})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if got := raw.ConnectionState().NegotiatedProtocol; got != "postgresql" {
		t.Errorf("ALPN = %q, want postgresql", got)
	}
	f := pgproto3.NewFrontend(raw, raw)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "alice", "database": "postgres"}})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Receive(); err != nil {
		t.Errorf("the answer = %v, %v", m, err)
	}
}

func TestPgbench(t *testing.T) {
	w := start(t, nil)
	host, port, _ := net.SplitHostPort(w.addr)
	pgbench := func(args ...string) string {
		out, err := dbtest.Output(exec.Command("pgbench", append([]string{"-h", host, "-p", port, "-U", "alice"}, append(args, "postgres")...)...))
		if err != nil {
			t.Fatalf("pgbench %q: %v: %s", args, err, out)
		}
		return out
	}
	pgbench("-i", "-s", "1", "-q")
	for _, mode := range []string{"simple", "extended", "prepared"} {
		out := pgbench("-M", mode, "-c", "8", "-j", "2", "-t", "50", "-n")
		if !strings.Contains(out, "number of transactions actually processed: 400/400") {
			t.Errorf("pgbench -M %s: %s", mode, out)
		}
	}
	pgbench("-C", "-c", "4", "-t", "10", "-S", "-n")
	w.Events.Query(t, "SELECT abalance FROM pgbench_accounts")
}

func TestJDBC(t *testing.T) {
	jars, _ := filepath.Glob("/usr/share/java/postgresql*.jar")
	if len(jars) == 0 {
		t.Fatal("PostgreSQL's JDBC driver is missing: apt-get install libpostgresql-jdbc-java")
	}
	w := start(t, nil)
	host, port, _ := net.SplitHostPort(w.addr)
	out, err := dbtest.Output(exec.Command("java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", strings.Join(jars, ":"), "testdata/Client.java",
		fmt.Sprintf("jdbc:postgresql://%s:%s/postgres?user=alice&password=any&sslmode=disable", host, port)))
	if err != nil || !strings.Contains(out, "done 1000") {
		t.Fatalf("java = %q, %v", out, err)
	}
	e := w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"]) == "[999 name 999]"
	})
	if !strings.HasPrefix(dbtest.Field(e, "db_query"), "insert into jdbc") {
		t.Errorf("event = %v", e)
	}
	// Rows in portions are a cursor, which has a name.
	w.Events.Wait(t, "TPG02I", func(e *auditv1.Event) bool { return dbtest.Field(e, "portal_name") != "" })
	w.Events.Wait(t, "TPG03I", nil)
}

func TestExpiredCertificate(t *testing.T) {
	w := start(t, nil)
	late := w.Person(t, "alice", "pg", nil, func(r *ca.UserRequest) { r.TTL = time.Second })
	addr := late.Tunnel(t, "pg")
	waitFor(t, func() bool {
		c, err := pgconn.Connect(t.Context(), url(addr, "alice", "postgres"))
		if err == nil {
			_ = conn{c}.Close()
		}
		return err != nil
	})
}

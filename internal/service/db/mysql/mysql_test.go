package mysql_test

import (
	"context"
	"database/sql"
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

	driver "github.com/go-sql-driver/mysql"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/mysql"
)

// conn is one connection of the Go driver.
type conn struct {
	pool *sql.DB
	c    *sql.Conn
}

// Ask runs a query and returns its rows.
func (c conn) Ask(ctx context.Context, text string) (string, error) {
	rows, err := c.c.QueryContext(ctx, text)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	out := ""
	for rows.Next() {
		var v sql.NullString
		if err := rows.Scan(&v); err != nil {
			return "", err
		}
		out += v.String + "\n"
	}
	return out, rows.Err()
}

// Close ends it.
func (c conn) Close() error { return errors.Join(c.c.Close(), c.pool.Close()) }

func open(ctx context.Context, addr, user, name string) (dbtest.Conn, error) {
	pool, err := sql.Open("mysql", user+":whatever@tcp("+addr+")/"+name+"?allowNativePasswords=true")
	if err != nil {
		return nil, err
	}
	c, err := pool.Conn(ctx)
	if err != nil {
		_ = pool.Close()
		return nil, err
	}
	return conn{pool, c}, nil
}

func TestMain(m *testing.M) {
	_ = driver.SetLogger(discard{}) // it logs connections that end, which many tests are about
	os.Exit(m.Run())
}

type discard struct{}

// Print drops the line.
func (discard) Print(...any) {}

func TestSuite(t *testing.T) {
	server := dbtest.MariaDB(t, "")
	dbtest.Suite{
		Engine: mysql.New(), Database: dbtest.Database("maria", "mysql", "localhost:"+server.Port),
		User: "alice", Other: "bob", Name: "app", Open: open,
		Hello: "select 'hello'", Fails: "select * from nowhere", Slow: "select sleep(2)",
	}.Run(t)
}

type world struct {
	*dbtest.World
	server *dbtest.Server
	alice  *dbtest.Person
	addr   string
}

func start(t testing.TB, change func(*typesv1.DatabaseSpec)) *world {
	t.Helper()
	w := &world{server: dbtest.MariaDB(t, "")}
	d := dbtest.Database("maria", "mysql", "localhost:"+w.server.Port)
	if change != nil {
		change(d.Spec)
	}
	w.World = dbtest.Start(t, mysql.New(), []*typesv1.Database{d}, func(c *db.Config) { c.Drain = time.Second })
	w.alice = w.Person(t, "alice", "maria", nil, nil)
	w.addr = w.alice.Tunnel(t, "maria")
	return w
}

// pool connects as alice by the Go driver.
func (w *world) pool(t testing.TB, options string) *sql.DB {
	t.Helper()
	p, err := sql.Open("mysql", "alice:whatever@tcp("+w.addr+")/app"+options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// client returns the command of the mariadb client at an address.
func client(addr string, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(addr)
	return exec.Command("mariadb", append([]string{"--no-defaults", "-h", host, "-P", port, "-u", "alice", "-N", "-B"}, args...)...)
}

func TestClient(t *testing.T) {
	w := start(t, nil)
	files := w.alice.Native(t)
	native := w.alice.Direct(t, "maria")
	for name, args := range map[string][]string{
		"tunnel":           {"--skip-ssl", "-pwhatever", "app"},
		"without_password": {"--skip-ssl", "app"},
		"caching_sha2":     {"--skip-ssl", "-pwhatever", "--default-auth=caching_sha2_password", "app"},
		"native":           {"--ssl", "--ssl-ca=" + files.CA, "--ssl-cert=" + files.Cert, "--ssl-key=" + files.Key, "app"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := w.addr
			if name == "native" {
				addr = native
			}
			run := func(sql string) (string, error) {
				return dbtest.Output(client(addr, append(args, "-e", sql)...))
			}
			if out, err := run("select current_user(), 'from " + name + "'; select database()"); err != nil || out != "alice@%\tfrom "+name+"\napp\n" {
				t.Fatalf("mariadb = %q, %v", out, err)
			}
			w.Events.Query(t, "'from "+name+"'")
			if out, err := run("select * from nowhere"); err == nil || !strings.Contains(out, "ERROR 1146 (42S02)") {
				t.Errorf("mariadb = %q, %v, want the server's error", out, err)
			}
			e := w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "error"), "1146") })
			if dbtest.Field(e, "db_query") != "select * from nowhere" {
				t.Errorf("TDB02W = %v", e)
			}
			if out, err := run("use other; select database()"); err != nil || out != "other\n" {
				t.Errorf("use = %q, %v", out, err)
			}
			w.Events.Wait(t, "TMY07I", func(e *auditv1.Event) bool { return dbtest.Field(e, "schema_name") == "other" })
			w.Events.Forget()
		})
	}
	if out, err := dbtest.Output(client(native, "--skip-ssl", "-e", "select 1")); err == nil || !strings.Contains(out, "not encrypted") {
		t.Errorf("without TLS on the native port = %q, %v", out, err)
	}
	host, port, _ := net.SplitHostPort(w.addr)
	if out, err := dbtest.Output(exec.Command("mariadb", "--no-defaults", "--skip-ssl", "-h", host, "-P", port, "-u", "nobody", "-e", "select 1")); err == nil || !strings.Contains(out, "ERROR 1045") && !strings.Contains(out, "Access denied") {
		t.Errorf("a user that the server does not know = %q, %v", out, err)
	}
}

// TestPasswordWanted: a server that wants more than a certificate is answered with what to
// change.
func TestPasswordWanted(t *testing.T) {
	w := start(t, nil)
	w.server.SQL(t, "ALTER USER alice@'%' IDENTIFIED BY 'secret'")
	if out, err := dbtest.Output(client(w.addr, "--skip-ssl", "-e", "select 1")); err == nil || !strings.Contains(out, "Access denied") {
		t.Errorf("a user with a password = %q, %v", out, err)
	}
	w.server.SQL(t, "INSTALL SONAME 'auth_ed25519'; ALTER USER alice@'%' IDENTIFIED VIA ed25519 USING PASSWORD('secret')")
	if out, err := dbtest.Output(client(w.addr, "--skip-ssl", "-e", "select 1")); err == nil || !strings.Contains(out, "REQUIRE SUBJECT '/CN=alice'") {
		t.Errorf("a user of another plugin = %q, %v, want what to change", out, err)
	}
}

func TestPrepared(t *testing.T) {
	w := start(t, nil)
	p := w.pool(t, "?parseTime=true")
	ctx := t.Context()
	if _, err := p.ExecContext(ctx, "create table people (id int, name varchar(100), born datetime, score double, note blob)"); err != nil {
		t.Fatal(err)
	}
	st, err := p.PrepareContext(ctx, "insert into people values (?, ?, ?, ?, ?)")
	if err != nil {
		t.Fatal(err)
	}
	born := time.Date(1999, 12, 31, 23, 59, 58, 0, time.UTC)
	for i, name := range []string{"ann", "ben"} {
		if _, err := st.ExecContext(ctx, -i, name, born, 1.5, nil); err != nil {
			t.Fatal(err)
		}
	}
	e := w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return strings.Contains(fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"]), "ben")
	})
	got := fmt.Sprint(e.GetFields().AsMap()["db_query_parameters"])
	if dbtest.Field(e, "db_query") != "insert into people values (?, ?, ?, ?, ?)" || got != "[-1 ben 1999-12-31 23:59:58 1.5 NULL]" {
		t.Errorf("event %v with parameters %s", e, got)
	}
	_ = st.Close()
	for _, code := range []string{"TMY00I", "TMY01I", "TMY03I"} {
		w.Events.Wait(t, code, nil)
	}
	if _, err := p.ExecContext(ctx, "select ? / ?, cast(? as unsigned) - 1 from nowhere", 1, 0, 0); err == nil {
		t.Error("a table that is not there was read")
	}
	var n int
	if err := p.QueryRowContext(ctx, "select count(*) from people where name like ?", "%n%").Scan(&n); err != nil || n != 2 {
		t.Errorf("count = %d, %v", n, err)
	}
	var many *driver.MySQLError
	if _, err := p.ExecContext(ctx, "insert into people (id) values (?)", "no number"); !errors.As(err, &many) {
		t.Errorf("a wrong value = %v", err)
	}
	failed := w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "db_query"), "(id) values") })
	if fmt.Sprint(failed.GetFields().AsMap()["db_query_parameters"]) != "[no number]" {
		t.Errorf("TDB02W = %v", failed)
	}
}

// TestLarge has results, packets and files larger than any buffer.
func TestLarge(t *testing.T) {
	w := start(t, nil)
	w.server.SQL(t, "set global max_allowed_packet = 64*1024*1024")
	p := w.pool(t, "?maxAllowedPacket=67108864&multiStatements=true")
	ctx := t.Context()
	var n int
	if err := p.QueryRowContext(ctx, "select count(*) from (select a.seq from seq_1_to_300000 a) x").Scan(&n); err != nil || n != 300000 {
		t.Fatalf("%d rows, %v", n, err)
	}
	rows, err := p.QueryContext(ctx, "select seq, repeat('x', 100) from seq_1_to_300000")
	if err != nil {
		t.Fatal(err)
	}
	for n = 0; rows.Next(); n++ {
	}
	if n != 300000 || rows.Err() != nil {
		t.Errorf("%d rows, %v", n, rows.Err())
	}
	// Longer than a packet of the protocol, both ways.
	big := strings.Repeat("0123456789", 2<<20)
	var back int
	if err := p.QueryRowContext(ctx, "select length(?)", big).Scan(&back); err != nil || back != len(big) {
		t.Errorf("a parameter of %d bytes arrived with %d, %v", len(big), back, err)
	}
	var echo string
	if err := p.QueryRowContext(ctx, "select repeat('y', 20000000)").Scan(&echo); err != nil || len(echo) != 20000000 {
		t.Errorf("%d bytes came back, %v", len(echo), err)
	}
	// A file of the client's, which looks like commands.
	file := filepath.Join(t.TempDir(), "rows")
	var b strings.Builder
	for i := range 200000 {
		fmt.Fprintf(&b, "%d\t\x03select %d\n", i, i)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := dbtest.Output(client(w.addr, "--skip-ssl", "--local-infile=1", "app", "-e",
		"create table t (id int, s text); load data local infile '"+file+"' into table t; select count(*) from t; select 'after'"))
	if err != nil || out != "200000\nafter\n" {
		t.Errorf("load data = %q, %v", out, err)
	}
	w.Events.Query(t, "select 'after'")
	for _, e := range w.Events.All("TDB02I") {
		if q := dbtest.Field(e, "db_query"); len(q) > 70<<10 || strings.HasPrefix(q, "select 1000") {
			t.Errorf("recorded %d bytes %.40q", len(q), q)
		}
	}
	// Several statements in one, of which the last fails.
	if _, err := p.ExecContext(ctx, "select 1; select 2; select * from nowhere"); err == nil {
		t.Error("the last of several statements did not fail")
	}
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool {
		return strings.HasPrefix(dbtest.Field(e, "db_query"), "select 1; select 2")
	})
}

func TestKill(t *testing.T) {
	w := start(t, nil)
	for name, end := range map[string]func(cmd *exec.Cmd){
		"interrupt": func(cmd *exec.Cmd) { _ = cmd.Process.Signal(os.Interrupt) },
		"kill_query": func(*exec.Cmd) {
			id := strings.TrimSpace(w.server.SQL(t, "select id from information_schema.processlist where info like '%sleep(61)%' and user = 'alice'"))
			if out, err := dbtest.Output(client(w.addr, "--skip-ssl", "-e", "kill query "+id)); err != nil {
				t.Errorf("kill query %s: %v: %s", id, err, out)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := client(w.addr, "--skip-ssl", "-e", "select sleep(61)")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Events.Query(t, "sleep(61)")
			running := func() bool {
				return strings.TrimSpace(w.server.SQL(t, "select count(*) from information_schema.processlist where info like '%sleep(61)%' and user = 'alice'")) == "1"
			}
			waitFor(t, running)
			end(cmd)
			done := make(chan struct{})
			go func() {
				_ = cmd.Wait()
				close(done)
			}()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Error("the query goes on")
				_ = cmd.Process.Kill()
				<-done
			}
			waitFor(t, func() bool { return !running() })
			w.Events.Forget()
		})
	}
}

func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !what(); {
		if time.Now().After(limit) {
			t.Fatal("it did not come about in 10 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// raw is a connection that the test speaks on itself, after the login.
func (w *world) raw(t *testing.T) net.Conn {
	t.Helper()
	c, err := w.alice.Dial(t.Context(), "maria")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	receive(t, c)
	hello := append([]byte{0x05, 0xa2, 0x0a, 0, 0, 0, 0, 1, 45}, make([]byte, 23)...)
	send(t, c, 1, append(hello, "alice\x00\x00mysql_native_password\x00"...))
	if p := receive(t, c); p[0] != 0 {
		t.Fatalf("login: %q", p)
	}
	return c
}

func send(t *testing.T, c net.Conn, seq byte, payload []byte) {
	t.Helper()
	n := len(payload)
	if _, err := c.Write(append([]byte{byte(n), byte(n >> 8), byte(n >> 16), seq}, payload...)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn) []byte {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	if _, err := io.ReadFull(c, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRefusedCommands(t *testing.T) {
	w := start(t, nil)
	for name, p := range map[string][]byte{
		"change_user": []byte("\x11bob\x00\x00\x00"), "binlog_dump": {0x12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, "register": {0x15, 1, 0, 0, 0}, "binlog_gtid": {0x1e, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.raw(t)
			send(t, c, 0, p)
			if got := receive(t, c); got[0] != 0xff || !strings.Contains(string(got), "42000") {
				t.Errorf("answer %q, want an error", got)
			}
			if n, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("the session goes on with %d bytes", n)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		c := w.raw(t)
		send(t, c, 0, []byte{0x77, 1, 2})
		if got := receive(t, c); got[0] != 0xff {
			t.Errorf("answer %q, want the server's error", got)
		}
		w.Events.Wait(t, "TDB06I", nil)
		send(t, c, 0, []byte("\x03select 'still there'"))
		receive(t, c)
		w.Events.Query(t, "still there")
		// What is prepared now is recorded without waiting for the answer.
		send(t, c, 0, []byte("\x16select 'prepared in the dark'"))
		receive(t, c)
		w.Events.Wait(t, "TMY00I", func(e *auditv1.Event) bool { return dbtest.Field(e, "query") == "select 'prepared in the dark'" })
	})
}

func TestTools(t *testing.T) {
	w := start(t, nil)
	host, port, _ := net.SplitHostPort(w.addr)
	for _, args := range [][]string{
		{"oltp_read_write", "prepare"}, {"oltp_read_write", "run"}, {"oltp_read_only", "run"}, {"oltp_read_write", "cleanup"},
	} {
		cmd := exec.Command("sysbench", args[0], "--db-driver=mysql", "--mysql-host="+host, "--mysql-port="+port, "--mysql-user=alice", "--mysql-db=app", "--mysql-ssl=off",
			"--tables=2", "--table-size=500", "--threads=4", "--events=100", "--time=20", args[1])
		if out, err := dbtest.Output(cmd); err != nil {
			t.Fatalf("sysbench %v: %v: %s", args, err, out)
		}
	}
	if out, err := dbtest.Output(client(w.addr, "--skip-ssl", "app", "-e", "create table kept (id int); insert into kept values (1),(2)")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := dbtest.Output(exec.Command("mariadb-dump", "--no-defaults", "--skip-ssl", "-h", host, "-P", port, "-u", "alice", "app", "kept"))
	if err != nil || !strings.Contains(out, "INSERT INTO `kept` VALUES") {
		t.Errorf("mariadb-dump = %q, %v", out, err)
	}
}

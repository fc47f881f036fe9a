package postgres_test

import (
	"context"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/postgres"
)

// conn is a connection of pgx that asks by simple queries.
type conn struct{ c *pgconn.PgConn }

// Ask runs a query.
func (c conn) Ask(ctx context.Context, text string) (string, error) {
	results, err := c.c.Exec(ctx, text).ReadAll()
	if err != nil {
		return "", err
	}
	out := ""
	for _, r := range results {
		for _, row := range r.Rows {
			for _, v := range row {
				out += string(v) + "\n"
			}
		}
	}
	return out, nil
}

// Close ends it.
func (c conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.c.Close(ctx)
}

func url(addr, user, name string) string {
	return "postgres://" + user + "@" + addr + "/" + name + "?sslmode=disable"
}

func open(ctx context.Context, addr, user, name string) (dbtest.Conn, error) {
	c, err := pgconn.Connect(ctx, url(addr, user, name))
	if err != nil {
		return nil, err
	}
	return conn{c}, nil
}

func TestSuite(t *testing.T) {
	server := dbtest.Postgres(t, "")
	dbtest.Suite{
		Engine: postgres.New(), Database: dbtest.Database("pg", "postgres", "localhost:"+server.Port),
		User: "alice", Other: "bob", Name: "postgres", NameMatters: true, Open: open,
		Hello: "select 'hello'", Fails: "select * from nowhere", Slow: "select pg_sleep(2)",
	}.Run(t)
}

// world is a service with one PostgreSQL server, as the database "pg".
type world struct {
	*dbtest.World
	server *dbtest.Server
	alice  *dbtest.Person
	// addr is a local port of alice's.
	addr string
}

func start(t testing.TB, change func(*typesv1.DatabaseSpec)) *world {
	t.Helper()
	w := &world{server: dbtest.Postgres(t, "")}
	w.serve(t, change)
	return w
}

// serve starts the service.
func (w *world) serve(t testing.TB, change func(*typesv1.DatabaseSpec)) {
	t.Helper()
	d := dbtest.Database("pg", "postgres", "localhost:"+w.server.Port)
	if change != nil {
		change(d.Spec)
	}
	w.World = dbtest.Start(t, postgres.New(), []*typesv1.Database{d}, func(c *db.Config) { c.Drain = time.Second })
	w.alice = w.Person(t, "alice", "pg", nil, nil)
	w.addr = w.alice.Tunnel(t, "pg")
}

// pgx connects as alice.
func (w *world) pgx(t testing.TB) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url(w.addr, "alice", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn{c.PgConn()}.Close() })
	return c
}

// psql returns the command for an address, as alice in postgres.
func psql(addr string, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(addr)
	return exec.Command("psql", append([]string{"-X", "-At", "-v", "ON_ERROR_STOP=1", "host=" + host + " port=" + port + " user=alice dbname=postgres sslmode=disable"}, args...)...)
}

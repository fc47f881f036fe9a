package postgres_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/db/dbtest"
)

// provisioned is a service whose admin user makes users; carol's roles ask for it in the
// mode, and give her the database roles.
func provisioned(t *testing.T, mode string, roles ...string) *world {
	t.Helper()
	w := start(t, func(d *typesv1.DatabaseSpec) {
		d.AdminUser = &typesv1.DatabaseAdminUser{Name: "admin", DefaultDatabase: "postgres"}
	})
	// The admin hands out roles that it was given WITH ADMIN OPTION, or makes all with
	// CREATEROLE on servers before 16.
	w.server.PSQL(t, `CREATE TABLE books (title text); GRANT SELECT ON books TO reader; CREATE ROLE writer; GRANT reader, writer TO admin WITH ADMIN OPTION`)
	w.SetRole("auto", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": dbtest.Strings("test")}, DbNames: []string{"*"}, DbRoles: roles}
		r.Options = &typesv1.RoleOptions{CreateDbUserMode: mode}
	})
	return w
}

func (w *world) carol(t *testing.T, change func(*ca.UserRequest)) string {
	return w.Person(t, "carol", "pg", []string{"auto"}, change).Tunnel(t, "pg")
}

// state is what the server knows of carol.
func (w *world) state(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(w.server.PSQL(t, `SELECT rolcanlogin, (SELECT string_agg(g.rolname, ',' ORDER BY g.rolname) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid) FROM pg_roles r WHERE rolname = 'carol'`))
}

func connect(t *testing.T, addr string) (conn, error) {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), url(addr, "carol", "postgres"))
	return conn{c}, err
}

func (w *world) becomes(t *testing.T, want string) {
	t.Helper()
	waitFor(t, func() bool { return w.state(t) == want })
}

func TestUserKept(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	addr := w.carol(t, nil)
	c, err := connect(t, addr)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Ask(t.Context(), "select count(*) from books"); err != nil || out != "0\n" {
		t.Errorf("as a reader = %q, %v", out, err)
	}
	if got := w.state(t); got != "t|reader,teleport-auto-user" {
		t.Errorf("carol = %q", got)
	}
	second, err := connect(t, addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if out, err := second.Ask(t.Context(), "select count(*) from books"); err != nil || out != "0\n" {
		t.Errorf("after the end of the other session = %q, %v", out, err)
	}
	_ = second.Close()
	w.becomes(t, "f|teleport-auto-user")
	w.Events.Wait(t, "TDB08I", func(e *auditv1.Event) bool { return dbtest.Field(e, "username") == "carol" })
	w.Events.Wait(t, "TDB09I", nil)
	if c, err = connect(t, addr); err != nil {
		t.Fatalf("again: %v", err)
	}
	_ = c.Close()
	w.becomes(t, "f|teleport-auto-user")
}

func TestUserDropped(t *testing.T) {
	w := provisioned(t, "best_effort_drop", "reader")
	addr := w.carol(t, nil)
	c, err := connect(t, addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	w.becomes(t, "")
	// What is theirs keeps the user, locked.
	if c, err = connect(t, addr); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ask(t.Context(), "create table mine (n int)"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	w.becomes(t, "f|teleport-auto-user")
}

func TestUserOfSomebodyElse(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	w.server.PSQL(t, "CREATE ROLE carol LOGIN")
	if _, err := connect(t, w.carol(t, nil)); err == nil || !strings.Contains(err.Error(), "was not made by Teleport") {
		t.Errorf("connect as a user that somebody else made = %v", err)
	}
	w.Events.Wait(t, "TDB08W", nil)
	if got := w.state(t); got != "t|" {
		t.Errorf("carol = %q, want it as it was", got)
	}
}

func TestUserRoles(t *testing.T) {
	w := provisioned(t, "keep", "reader", "writer")
	some := w.carol(t, func(r *ca.UserRequest) { r.Identity.User.Database.Roles = []string{"writer"} })
	c, err := connect(t, some)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.state(t); got != "t|teleport-auto-user,writer" {
		t.Errorf("carol = %q, want the role asked for", got)
	}
	if _, err := connect(t, w.carol(t, nil)); err == nil || !strings.Contains(err.Error(), "other database roles") {
		t.Errorf("a second session with other roles = %v", err)
	}
	// The same at another agent of the database.
	other := &world{server: w.server}
	other.serve(t, func(d *typesv1.DatabaseSpec) {
		d.AdminUser = &typesv1.DatabaseAdminUser{Name: "admin", DefaultDatabase: "postgres"}
	})
	other.SetRole("auto", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"*": dbtest.Strings("*")}, DbNames: []string{"*"}, DbRoles: []string{"reader"}}
		r.Options = &typesv1.RoleOptions{CreateDbUserMode: "keep"}
	})
	if _, err := connect(t, other.carol(t, nil)); err == nil || !strings.Contains(err.Error(), "other database roles") {
		t.Errorf("a session with other roles at another agent = %v", err)
	}
	_ = c.Close()
	w.becomes(t, "f|teleport-auto-user")
	notGiven := w.carol(t, func(r *ca.UserRequest) { r.Identity.User.Database.Roles = []string{"pg_write_server_files"} })
	if _, err := connect(t, notGiven); err == nil || !strings.Contains(err.Error(), "do not give you the database role") {
		t.Errorf("a role that is not given = %v", err)
	}
	if _, err := pgconn.Connect(t.Context(), url(w.carol(t, nil), "bob", "postgres")); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("as somebody else = %v", err)
	}
}

func TestUserWithAnAdminWhoMayNot(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	w.server.PSQL(t, "ALTER ROLE admin NOCREATEROLE")
	if _, err := connect(t, w.carol(t, nil)); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("connect = %v, want what the server said", err)
	}
	w.Events.Wait(t, "TDB08W", nil)
}

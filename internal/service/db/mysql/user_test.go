package mysql_test

import (
	"strings"
	"testing"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db/dbtest"
)

// provisioned is a service whose admin user makes users; carol's roles ask for it in the
// mode, and give her the database roles.
func provisioned(t *testing.T, mode string, roles ...string) *world {
	t.Helper()
	w := start(t, func(d *typesv1.DatabaseSpec) { d.AdminUser = &typesv1.DatabaseAdminUser{Name: "admin"} })
	w.server.SQL(t, "CREATE TABLE app.books (title text); CREATE ROLE writer WITH ADMIN admin@'%'; GRANT INSERT ON app.* TO writer")
	w.SetRole("auto", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": dbtest.Strings("test")}, DbRoles: roles}
		r.Options = &typesv1.RoleOptions{CreateDbUserMode: mode}
	})
	w.addr = w.Person(t, "carol", "maria", []string{"auto"}, nil).Tunnel(t, "maria")
	return w
}

func (w *world) carol(t *testing.T) (dbtest.Conn, error) {
	t.Helper()
	return open(t.Context(), w.addr, "carol", "app")
}

// state is what the server knows of carol: whether she is locked, and her roles.
func (w *world) state(t *testing.T) string {
	t.Helper()
	return strings.Join(strings.Fields(w.server.SQL(t, `SELECT JSON_VALUE(Priv, '$.account_locked') IS TRUE, (SELECT GROUP_CONCAT(r.Role ORDER BY r.Role)
FROM mysql.roles_mapping m JOIN mysql.roles_mapping r ON r.User = m.Role WHERE m.User = 'carol' AND m.Role = 'teleport-carol') FROM mysql.global_priv WHERE User = 'carol'`)), " ")
}

func TestUserKept(t *testing.T) {
	w := provisioned(t, "keep", "reader", "writer")
	c, err := w.carol(t)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Ask(t.Context(), "select count(*) from books"); err != nil || out != "0\n" {
		t.Errorf("as a reader = %q, %v", out, err)
	}
	if got := w.state(t); got != "0 reader,writer" {
		t.Errorf("carol = %q", got)
	}
	second, err := w.carol(t)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if out, err := second.Ask(t.Context(), "select count(*) from books"); err != nil || out != "0\n" {
		t.Errorf("after the end of the other session = %q, %v", out, err)
	}
	_ = second.Close()
	waitFor(t, func() bool { return w.state(t) == "1 NULL" })
	w.Events.Wait(t, "TDB08I", func(e *auditv1.Event) bool { return dbtest.Field(e, "username") == "carol" })
	w.Events.Wait(t, "TDB09I", nil)
	w.SetRole("auto", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": dbtest.Strings("test")}, DbRoles: []string{"reader"}}
		r.Options = &typesv1.RoleOptions{CreateDbUserMode: "keep"}
	})
	if c, err = w.carol(t); err != nil {
		t.Fatalf("again: %v", err)
	}
	defer c.Close()
	if got := w.state(t); got != "0 reader" {
		t.Errorf("carol, back with fewer roles = %q", got)
	}
}

func TestUserDropped(t *testing.T) {
	w := provisioned(t, "best_effort_drop", "reader")
	c, err := w.carol(t)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	waitFor(t, func() bool { return w.state(t) == "" })
	if out := w.server.SQL(t, "SELECT COUNT(*) FROM mysql.user WHERE User = 'teleport-carol'"); strings.TrimSpace(out) != "0" {
		t.Errorf("her role is left")
	}
}

func TestUserOfSomebodyElse(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	w.server.SQL(t, "CREATE USER carol@'%' REQUIRE SUBJECT '/CN=carol'")
	if _, err := w.carol(t); err == nil || !strings.Contains(err.Error(), "was not made by Teleport") {
		t.Errorf("a user of somebody else's = %v", err)
	}
	w.Events.Wait(t, "TDB08W", nil)
	if got := w.state(t); got != "0 NULL" {
		t.Errorf("carol = %q", got)
	}
}

// The server prefers the user of a host to that of any host.
func TestUserOfSomebodyElseAtAHost(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	w.server.SQL(t, "CREATE USER carol@'127.0.0.1' REQUIRE SUBJECT '/CN=carol'; GRANT ALL ON *.* TO carol@'127.0.0.1'; CREATE USER carol@'localhost' REQUIRE SUBJECT '/CN=carol'")
	if c, err := w.carol(t); err == nil || !strings.Contains(err.Error(), "was not made by Teleport") {
		out := ""
		if err == nil {
			out, _ = c.Ask(t.Context(), "select current_user()")
		}
		t.Errorf("a user of somebody else's = %v, as %q", err, out)
	}
}

// The role of a user must not be the mark of all of them.
func TestUserWithTheNameOfTheMark(t *testing.T) {
	w := provisioned(t, "keep", "reader")
	c, err := w.carol(t)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other, err := open(t.Context(), w.Person(t, "auto-user", "maria", []string{"auto"}, nil).Tunnel(t, "maria"), "auto-user", "app")
	if err == nil {
		_ = other.Close()
		t.Error("a user whose role would be the mark was made")
	}
	if again, err := w.carol(t); err != nil {
		t.Errorf("afterwards another user = %v", err)
	} else {
		_ = again.Close()
	}
}

func TestUnknownRole(t *testing.T) {
	w := provisioned(t, "keep", "reader", "no'such`role")
	if _, err := w.carol(t); err == nil {
		t.Error("a role that is not there was granted")
	}
}

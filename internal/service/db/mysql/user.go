package mysql

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// autoRole is granted to all users whom sessions made. One who does not have it is
// somebody else's, and is left alone.
const autoRole = "teleport-auto-user"

const adminTimeout = 20 * time.Second

// admin is a connection as the admin user of the database.
type admin struct {
	conn    *tls.Conn
	mariaDB bool
}

// openAdmin logs in as the admin user.
func openAdmin(ctx context.Context, s *engine.Session, p engine.Provision) (*admin, error) {
	in, err := connect(ctx, s.Host, &login{
		caps: capConnectWithDB | capLongFlag, packet: maxPayload, charset: charsetUTF8, user: p.Admin,
		// Not that of the session: all names are whole, and an admin need not see it.
		database: s.Database.GetSpec().GetAdminUser().GetDefaultDatabase(),
	})
	if err != nil {
		return nil, fmt.Errorf("log in as the admin user %q: %w", p.Admin, err)
	}
	if err := in.conn.SetDeadline(time.Now().Add(adminTimeout)); err != nil {
		_ = in.conn.NetConn().Close()
		return nil, err
	}
	return &admin{conn: in.conn, mariaDB: strings.Contains(in.version, "MariaDB")}, nil
}

func (a *admin) close() {
	_ = writePacket(a.conn, 0, []byte{comQuit})
	_ = a.conn.Close()
}

// query runs a statement and returns the first column of its rows.
func (a *admin) query(sql string) ([]string, error) {
	if err := writePacket(a.conn, 0, append([]byte{comQuery}, sql...)); err != nil {
		return nil, err
	}
	_, p, err := readPacket(a.conn, maxPayload)
	switch {
	case err != nil:
		return nil, err
	case len(p) == 0:
		return nil, errors.New("an empty answer")
	case p[0] == markError:
		return nil, &serverError{p}
	case p[0] == markOK:
		return nil, nil
	}
	columns := true
	var out []string
	for {
		_, p, err := readPacket(a.conn, maxPayload)
		switch {
		case err != nil:
			return nil, err
		case len(p) > 0 && p[0] == markError:
			return nil, &serverError{p}
		case len(p) > 0 && p[0] == 0xfe && len(p) < 9:
			if !columns {
				return out, nil
			}
			columns = false
		case !columns:
			b, _, _ := lenencBytes(p)
			out = append(out, string(b))
		}
	}
}

func (a *admin) exec(sql string) error {
	_, err := a.query(sql)
	return err
}

// account is a user of any host, as SQL has it.
func account(user string) string { return literal(user) + "@'%'" }

// literal is a text in SQL, whatever the sql_mode.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func ident(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

// named refuses names that literal cannot write in every sql_mode.
func named(names ...string) error {
	for _, n := range names {
		if strings.ContainsAny(n, "\\\x00") {
			return fault.Invalid("%q cannot be the name of a user or a role of a MySQL server", n)
		}
	}
	return nil
}

// ownRole is the role of a MariaDB user that has the roles of a session: only one role
// can be the default.
func ownRole(user string) string { return "teleport-" + user }

// makeUser makes the user of a session, or lets one in again that an earlier session left
// behind, with exactly the roles given.
func makeUser(ctx context.Context, s *engine.Session, p engine.Provision) error {
	if err := named(append(p.Roles, p.User)...); err != nil {
		return err
	}
	if ownRole(p.User) == autoRole {
		return fault.Invalid("no user %q is made: the role %q of the database has another meaning", p.User, autoRole)
	}
	a, err := openAdmin(ctx, s, p)
	if err != nil {
		return err
	}
	defer a.close()
	stop := context.AfterFunc(ctx, func() { _ = a.conn.NetConn().Close() })
	defer stop()
	locked, err := a.query("SELECT GET_LOCK(" + literal("teleport/"+p.User) + ", 10)")
	if err == nil && (len(locked) != 1 || locked[0] != "1") {
		err = fault.Unreachable("somebody else changes user %q of the database: try again", p.User)
	}
	if err != nil {
		return err
	}
	if err := a.exec("CREATE ROLE IF NOT EXISTS " + ident(autoRole)); err != nil {
		return err
	}
	there, ours, err := a.find(p.User)
	if err != nil {
		return err
	}
	elsewhere, err := a.elsewhere(p.User)
	switch {
	case err != nil:
		return err
	case there && !ours, elsewhere:
		return fault.Denied("database user %q exists and was not made by Teleport: an administrator has to rename it, or let a role name it in db_users", p.User)
	case !there:
		if err := a.exec("CREATE USER " + account(p.User) + " REQUIRE SUBJECT " + literal("/CN="+p.User)); err != nil {
			return err
		}
		if err := a.exec("GRANT " + ident(autoRole) + " TO " + account(p.User)); err != nil {
			return err
		}
	}
	if err := a.setRoles(p.User, p.Roles); err != nil {
		return err
	}
	return a.exec("ALTER USER " + account(p.User) + " ACCOUNT UNLOCK")
}

// find says whether there is such a user, and whether a session made it.
func (a *admin) find(user string) (there, ours bool, err error) {
	accounts := "mysql.user"
	if a.mariaDB {
		accounts = "mysql.global_priv"
	}
	found, err := a.query("SELECT 1 FROM " + accounts + " WHERE User = " + literal(user) + " AND Host = '%'")
	if err != nil || len(found) == 0 {
		return false, false, err
	}
	marked := "SELECT 1 FROM mysql.role_edges WHERE TO_USER = " + literal(user) + " AND TO_HOST = '%' AND FROM_USER = " + literal(autoRole)
	if a.mariaDB {
		marked = "SELECT 1 FROM mysql.roles_mapping WHERE User = " + literal(user) + " AND Host = '%' AND Role = " + literal(autoRole)
	}
	found, err = a.query(marked)
	return true, len(found) > 0, err
}

// elsewhere says whether there is such a user for some hosts: the server would take the
// session for that one, if the agent's host is among them.
func (a *admin) elsewhere(user string) (bool, error) {
	found, err := a.query("SELECT 1 FROM mysql.user WHERE User = " + literal(user) + " AND Host NOT IN ('%', '') LIMIT 1")
	return len(found) > 0, err
}

// setRoles gives the user exactly the roles.
func (a *admin) setRoles(user string, roles []string) error {
	if !a.mariaDB {
		held, err := a.query("SELECT FROM_USER FROM mysql.role_edges WHERE TO_USER = " + literal(user) + " AND TO_HOST = '%'")
		if err != nil {
			return err
		}
		for _, r := range held {
			if r == autoRole {
				continue
			}
			if err := a.exec("REVOKE " + ident(r) + " FROM " + account(user)); err != nil {
				return err
			}
		}
		for _, r := range roles {
			if err := a.exec("GRANT " + ident(r) + " TO " + account(user)); err != nil {
				return err
			}
		}
		return a.exec("SET DEFAULT ROLE ALL TO " + account(user))
	}
	own := ownRole(user)
	steps := []string{"DROP ROLE IF EXISTS " + ident(own), "CREATE ROLE " + ident(own)}
	for _, r := range roles {
		steps = append(steps, "GRANT "+ident(r)+" TO "+ident(own))
	}
	steps = append(steps, "GRANT "+ident(own)+" TO "+account(user), "SET DEFAULT ROLE "+ident(own)+" FOR "+account(user))
	for _, sql := range steps {
		if err := a.exec(sql); err != nil {
			return err
		}
	}
	return nil
}

// removeUser drops or locks a user that a session made.
func removeUser(ctx context.Context, s *engine.Session, p engine.Provision) error {
	if err := named(p.User); err != nil {
		return err
	}
	a, err := openAdmin(ctx, s, p)
	if err != nil {
		return err
	}
	defer a.close()
	stop := context.AfterFunc(ctx, func() { _ = a.conn.NetConn().Close() })
	defer stop()
	_, ours, err := a.find(p.User)
	if err != nil || !ours {
		return err
	}
	if err := a.exec("ALTER USER " + account(p.User) + " ACCOUNT LOCK"); err != nil {
		return err
	}
	busy, err := a.query("SELECT 1 FROM information_schema.processlist WHERE USER = " + literal(p.User) + " LIMIT 1")
	if err != nil {
		return err
	}
	if p.Drop && len(busy) == 0 {
		if err := a.exec("DROP USER " + account(p.User)); err != nil {
			return err
		}
		if a.mariaDB {
			return a.exec("DROP ROLE IF EXISTS " + ident(ownRole(p.User)))
		}
		return nil
	}
	return a.setRoles(p.User, nil)
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// autoGroup is the role that all users are in whom sessions made. One who is not in it is
// somebody else's, and is left alone.
const autoGroup = "teleport-auto-user"

const (
	// stateInUse is the SQLSTATE of a user who cannot be dropped, since something of the
	// database is theirs.
	stateInUse = "2BP01"
	// leaveTimeout is how long the server may take to notice that a session has ended.
	leaveTimeout = 3 * time.Second
	leavePause   = 50 * time.Millisecond
)

// makeUser makes the user of a session, or lets one in again that an earlier session left
// behind, with exactly the roles given.
func makeUser(ctx context.Context, s *engine.Session, p engine.Provision) error {
	if s.Database.GetSpec().GetProtocol() != types.ProtocolPostgres {
		return fault.Unsupported("users are not made on databases of the protocol %s: let a role name the user in db_users", s.Database.GetSpec().GetProtocol())
	}
	a, err := openAdmin(ctx, s, p)
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.exec("BEGIN"); err != nil {
		return err
	}
	if err := a.makeUser(p); err != nil {
		return err
	}
	return a.exec("COMMIT")
}

func (a *admin) makeUser(p engine.Provision) error {
	// Two agents do not make the same user at the same time.
	if err := a.exec("SELECT pg_advisory_xact_lock(hashtext(" + literal(autoGroup+"/"+p.User) + "))"); err != nil {
		return err
	}
	group, err := a.exists(autoGroup)
	if err != nil {
		return err
	}
	if !group {
		if err := a.exec("CREATE ROLE " + ident(autoGroup) + " NOLOGIN"); err != nil {
			return err
		}
	}
	there, err := a.exists(p.User)
	if err != nil {
		return err
	}
	if !there {
		if err := a.exec("CREATE ROLE " + ident(p.User) + " LOGIN IN ROLE " + ident(autoGroup)); err != nil {
			return err
		}
		return a.grant(p)
	}
	ours, err := a.isOurs(p.User)
	if err != nil {
		return err
	}
	if !ours {
		return fault.Denied("database user %q exists and was not made by Teleport: an administrator has to rename it, or let a role name it in db_users", p.User)
	}
	busy, err := a.busy(p.User)
	if err != nil {
		return err
	}
	if busy {
		// A session at another agent; it has the roles that it has.
		return a.sameRoles(p)
	}
	if err := a.revokeAll(p.User); err != nil {
		return err
	}
	if err := a.exec("ALTER ROLE " + ident(p.User) + " LOGIN"); err != nil {
		return err
	}
	return a.grant(p)
}

func (a *admin) grant(p engine.Provision) error {
	for _, r := range p.Roles {
		if err := a.exec("GRANT " + ident(r) + " TO " + ident(p.User)); err != nil {
			return err
		}
	}
	return nil
}

// sameRoles refuses a session whose user would need other roles than it has.
func (a *admin) sameRoles(p engine.Provision) error {
	have, err := a.roles(p.User)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, r := range p.Roles {
		wanted[r] = true
	}
	for _, r := range have {
		if !wanted[r] {
			return fault.Denied("you have a session with this database, by another agent, that has other database roles: end it first")
		}
		delete(wanted, r)
	}
	if len(wanted) > 0 {
		return fault.Denied("you have a session with this database, by another agent, that has other database roles: end it first")
	}
	return nil
}

// removeUser drops the user if the roles say so and nothing is in the way, and else takes
// its roles and its login.
func removeUser(ctx context.Context, s *engine.Session, p engine.Provision) error {
	a, err := openAdmin(ctx, s, p)
	if err != nil {
		return err
	}
	defer a.close()
	for limit := time.Now().Add(leaveTimeout); ; {
		busy, err := a.busy(p.User)
		if err != nil {
			return err
		}
		if !busy {
			break
		}
		if time.Now().After(limit) {
			// A session at another agent: its end is the user's.
			return nil
		}
		select {
		case <-time.After(leavePause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	there, err := a.exists(p.User)
	if err != nil || !there {
		return err
	}
	if p.Drop {
		err := a.exec("DROP ROLE " + ident(p.User))
		var refused *queryError
		if !errors.As(err, &refused) || refused.code != stateInUse {
			return err
		}
	}
	if err := a.revokeAll(p.User); err != nil {
		return err
	}
	return a.exec("ALTER ROLE " + ident(p.User) + " NOLOGIN")
}

// admin is a connection of the admin user. Its methods are not for several goroutines.
type admin struct {
	conn net.Conn
	f    *pgproto3.Frontend
	stop func() bool
}

// queryError is what the server refused.
type queryError struct{ code, text string }

// Error returns the text.
func (e *queryError) Error() string { return e.text }

// openAdmin logs in as the admin user.
func openAdmin(ctx context.Context, s *engine.Session, p engine.Provision) (*admin, error) {
	conn, err := connect(ctx, s.Host, p.Admin, portOf(s.Database))
	if err != nil {
		return nil, fmt.Errorf("log in as the admin user %q: %w", p.Admin, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })
	a := &admin{conn: conn, f: pgproto3.NewFrontend(conn, conn), stop: stop}
	_, err = authenticate(conn, &startup{
		version: pgproto3.ProtocolVersion30, user: p.Admin, database: p.AdminDatabase, rest: []string{"application_name", "teleport"},
	})
	if err == nil {
		err = a.read(nil)
	}
	if err == nil {
		// What is quoted below is read as it is written, whatever the database has set.
		err = a.exec("SET standard_conforming_strings = on; SET search_path = pg_catalog")
	}
	if err != nil {
		a.close()
		return nil, fmt.Errorf("log in as the admin user %q: %w", p.Admin, err)
	}
	return a, nil
}

func (a *admin) close() {
	a.stop()
	a.f.Send(&pgproto3.Terminate{})
	_ = a.f.Flush()
	_ = a.conn.Close()
}

// exec runs a statement whose answer does not matter.
func (a *admin) exec(sql string) error { return a.query(sql, nil) }

// query runs a statement; row is called with the first column of each row.
func (a *admin) query(sql string, row func(string)) error {
	a.f.Send(&pgproto3.Query{String: sql})
	if err := a.f.Flush(); err != nil {
		return err
	}
	return a.read(row)
}

// read reads up to the end of an answer.
func (a *admin) read(row func(string)) error {
	var refused error
	for {
		m, err := a.f.Receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			if row != nil && len(m.Values) > 0 {
				row(string(m.Values[0]))
			}
		case *pgproto3.ErrorResponse:
			refused = &queryError{m.Code, fmt.Sprintf("%s: %s (SQLSTATE %s)", m.Severity, m.Message, m.Code)}
		case *pgproto3.ReadyForQuery:
			return refused
		}
	}
}

func (a *admin) found(sql string) (bool, error) {
	found := false
	err := a.query(sql, func(string) { found = true })
	return found, err
}

func (a *admin) exists(role string) (bool, error) {
	return a.found("SELECT 1 FROM pg_roles WHERE rolname = " + literal(role))
}

// memberOf is the roles that a role is in.
func memberOf(role string) string {
	return "SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member WHERE u.rolname = " + literal(role)
}

func (a *admin) isOurs(role string) (bool, error) {
	return a.found(memberOf(role) + " AND g.rolname = " + literal(autoGroup))
}

func (a *admin) busy(role string) (bool, error) {
	return a.found("SELECT 1 FROM pg_stat_activity WHERE usename = " + literal(role))
}

// roles are those that the user has, but for the group.
func (a *admin) roles(role string) ([]string, error) {
	var out []string
	err := a.query(memberOf(role)+" AND g.rolname <> "+literal(autoGroup), func(name string) { out = append(out, name) })
	return out, err
}

func (a *admin) revokeAll(role string) error {
	roles, err := a.roles(role)
	if err != nil {
		return err
	}
	for _, r := range roles {
		if err := a.exec("REVOKE " + ident(r) + " FROM " + ident(role)); err != nil {
			return err
		}
	}
	return nil
}

// ident quotes a name.
func ident(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// literal quotes a text.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

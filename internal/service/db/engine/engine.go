// Package engine is the contract between the Database Service and the protocols that it
// speaks. The service authenticates the user, decides, dials, keeps the time limits and
// writes the audit log; an engine (packages next to this one) knows one protocol: it
// reads who the user wants to be, logs in to the database in its own way, and passes the
// bytes on while it tells the service what was asked.
package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/identity"
)

// Engine speaks one protocol. It is safe for concurrent use and has no state of its own.
type Engine interface {
	// Protocols are the names by which databases ask for the engine.
	Protocols() []string
	// StartTLS speaks with a native client, one that ends TLS itself, up to the point at
	// which its ClientHello comes next (for PostgreSQL an SSLRequest, for MySQL the
	// greeting). What it returns comes back as Session.Started. An engine whose clients
	// begin with TLS returns nil at once. If the client was served without TLS, it
	// returns ErrDone. Bytes that were read too far are given back by Unread.
	StartTLS(ctx context.Context, db *typesv1.Database, client net.Conn) (started any, err error)
	// Serve carries one connection until either side ends it. It calls Authorize before
	// it connects to the database, and lets nothing that the user sends reach the
	// database before that. A refusal, and any other error that the user is to know of,
	// is told to the client in the words of the protocol. The error returned is for the
	// log; nil if the connection was ended in an orderly way by either side.
	//
	// Serve returns soon after ctx ends. The service has then closed the connections to
	// the database, so that reads from them fail; context.Cause(ctx) says why, in words
	// for the user, and there is a second to tell the client before its connection is
	// closed as well.
	Serve(ctx context.Context, s *Session) error
}

// ErrDone is returned by StartTLS if the client needs nothing more.
var ErrDone = errors.New("the client was served without TLS")

// Unread gives bytes that StartTLS read too far back to the connection that it was
// given: they are read next.
func Unread(client net.Conn, p []byte) error {
	c, ok := client.(interface{ Unread(p []byte) })
	if !ok {
		return errors.New("the connection takes nothing back")
	}
	c.Unread(p)
	return nil
}

// Guard calls f and makes an error of a panic. Nothing that the network sends may end the
// process: the goroutines that an engine starts run in it, as Serve itself does.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the engine failed in a way that it never should: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// Session is one connection of a user to a database.
type Session struct {
	// ID is in every audit event of the session.
	ID       string
	Database *typesv1.Database
	// User is who asks. Its Database says what the certificate ties the session to.
	User *identity.User
	// Client is the user's side, TLS ended. Reads and writes of it count as activity
	// for client_idle_timeout. Native says that the client ended TLS itself, so that it
	// also logs in as its protocol has it: its certificate has proven who it is, and
	// the engine accepts it. A client that is not native is authenticated by the
	// local proxy of tsh, and whatever it shows is accepted as well.
	Client  net.Conn
	Native  bool
	Started any
	Host    Host
}

// Host is what the service does for an engine. The methods may be called by one
// goroutine at a time, those of Audit by several.
type Host interface {
	// Authorize decides whether the user may be dbUser in dbName of the database. An
	// engine whose protocol has no such thing leaves them empty. A refusal is a
	// fault.Error whose message is meant for the user; it is recorded. The start of the
	// session is recorded when it is allowed. What the certificate ties the session to
	// is held against the names.
	Authorize(ctx context.Context, dbUser, dbName string) error
	// AuthorizeUser is Authorize for a protocol whose connections are in no database of
	// their own, and in all of them: it decides about the user alone. AuthorizeName is
	// then asked about each database that the session turns to. Its refusal is recorded,
	// and ends nothing.
	AuthorizeUser(ctx context.Context, dbUser string) error
	AuthorizeName(ctx context.Context, dbName string) error
	// Provision makes the user on the database, if the roles ask for it and the
	// database has an admin user, by what the engine does in make; at the end of the
	// session remove is called likewise. Without need it does nothing. It comes after
	// Authorize.
	Provision(ctx context.Context, make, remove func(ctx context.Context, p Provision) error) error
	// Dial connects to the database: TCP to the host and port of the URI; port is used
	// if the URI has none.
	Dial(ctx context.Context, port string) (net.Conn, error)
	// Redial connects to the very address that Dial reached, while a session is open
	// there: the URI may have several.
	Redial(ctx context.Context, addr net.Addr) (net.Conn, error)
	// TLS is how the agent shows itself to the database as dbUser: the client
	// certificate (common name dbUser) and the verification that the resource asks for.
	// ServerName is set. The result may be changed. For the dbUser "" there is the
	// verification alone, without a client certificate.
	TLS(ctx context.Context, dbUser string) (*tls.Config, error)
	Audit() Audit
	// Idle says whether the session could end now without cutting anything short, such
	// as a transaction. It costs next to nothing and may be called for every message. An
	// engine that does not know never calls it: then silence is taken for it.
	Idle(idle bool)
	// Settings that come of the resource and the process.
	Limits() Limits
}

// Provision is a user to be made or taken away.
type Provision struct {
	// Admin is the database user to do it as, in the database AdminDatabase.
	Admin, AdminDatabase string
	User                 string
	Roles                []string
	// Drop: the user is dropped if nothing is in the way, else it is only locked.
	Drop bool
}

// Limits bound what an engine keeps of one connection.
type Limits struct {
	// Message is the longest message that is kept whole to look into it; longer ones
	// are passed on while they come in, and recorded cut.
	Message int
	// Query is how much of a query's text is recorded.
	Query int
	// RefuseUnknown ends the connection at a message that cannot be read, in place of
	// passing it on.
	RefuseUnknown bool
}

// Audit records what happens in a session. It never blocks for long and bounds itself;
// when events can neither be sent nor kept, the service ends the session. Texts are cut
// and made printable by the service.
type Audit interface {
	// Query records a query (TDB02I), or with err one that the database refused
	// (TDB02W).
	Query(q Query)
	// Event records an event of the protocol's own, such as audit.PostgresParse, with
	// its own fields; the service adds what all events of the session have.
	Event(kind audit.Kind, fields map[string]any)
	// Malformed records a message that could not be read (TDB06I).
	Malformed(message []byte)
}

// Query is something asked of the database.
type Query struct {
	Text string
	// Parameters are those of a prepared statement, as text.
	Parameters []string
	// Database is where, if that is another than the one authorized.
	Database string
	Err      error
}

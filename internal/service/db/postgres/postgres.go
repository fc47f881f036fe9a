// Package postgres is the engine for PostgreSQL and what speaks its protocol, version 3
// (https://www.postgresql.org/docs/current/protocol.html).
//
//	client                        agent                          server
//	StartupMessage       ->       (who, where: decided)
//	                                        SSLRequest, TLS      ->
//	                                        StartupMessage       ->
//	                              <-  AuthenticationOk, parameters, BackendKeyData
//	<- AuthenticationOk ...
//	everything           ->  bytes passed on, frames looked at   ->
//	<-                       bytes passed on, frames looked at   <-
//
// After the login the engine is a tee: what one side sends goes to the other as it comes,
// in large pieces, and a copy of the stream is cut into messages to record what was asked.
// It understands frames, not SQL. The client is never asked for a password; the agent logs
// in with a certificate.
package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// loginTimeout bounds the login to the server.
const loginTimeout = 30 * time.Second

// Engine speaks PostgreSQL. It remembers where the sessions are, for those who want to
// cancel what runs there.
type Engine struct{ cancels cancels }

// New returns the engine.
func New() *Engine { return &Engine{cancels: newCancels()} }

// Protocols returns the names by which databases ask for the engine.
func (e *Engine) Protocols() []string {
	return []string{types.ProtocolPostgres, types.ProtocolCockroachDB}
}

// StartTLS answers what comes before TLS: SSLRequest, and GSSENCRequest, which is
// declined. Old clients cancel a query without TLS.
func (e *Engine) StartTLS(ctx context.Context, db *typesv1.Database, client net.Conn) (any, error) {
	for range maxPreliminaries {
		head := make([]byte, 1)
		if _, err := io.ReadFull(client, head); err != nil {
			return nil, fmt.Errorf("read the first message: %w", err)
		}
		if err := engine.Unread(client, head); err != nil {
			return nil, err
		}
		if head[0] == tlsHandshake {
			return nil, nil
		}
		p, err := readStartup(client)
		if err != nil {
			return nil, err
		}
		switch p.code {
		case codeSSL:
			_, err := client.Write([]byte{'S'})
			return nil, err
		case codeGSS:
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		case codeCancel:
			if err := e.cancels.run(ctx, db.GetMetadata().GetName(), p.body, anybody); err != nil {
				return nil, err
			}
			return nil, engine.ErrDone
		default:
			err := fault.Denied("the connection is not encrypted: use sslmode=verify-full with the certificate of tsh db login, or tsh proxy db --tunnel")
			_, _ = client.Write(errorMessage(err))
			return nil, err
		}
	}
	return nil, fault.Invalid("the client asks for encryption again and again")
}

// Serve carries one connection.
func (e *Engine) Serve(ctx context.Context, s *engine.Session) error {
	hello, err := readHello(s.Client)
	if err != nil {
		s.Host.Audit().Malformed(nil)
		return err
	}
	if hello.code == codeCancel {
		return e.cancelFor(ctx, s, hello.body)
	}
	p, err := parseStartup(hello)
	if err == nil {
		err = s.Host.Authorize(ctx, p.user, p.database)
	}
	if err == nil {
		err = s.Host.Provision(ctx,
			func(ctx context.Context, u engine.Provision) error { return makeUser(ctx, s, u) },
			func(ctx context.Context, u engine.Provision) error { return removeUser(ctx, s, u) })
	}
	if err != nil {
		return tell(s.Client, err)
	}
	server, greeting, err := login(ctx, s, p)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return tell(s.Client, err)
	}
	defer func() { _ = server.Close() }()
	pp := newPipe(s, server)
	pp.cancel = func(key []byte) func() {
		return e.cancels.add(s.Database.GetMetadata().GetName(), s.User.Name, key, func(ctx context.Context) error {
			return sendCancel(ctx, s.Host, server.RemoteAddr(), key)
		})
	}
	return pp.run(ctx, greeting)
}

// tell tells the client an error, and returns it.
func tell(client net.Conn, err error) error {
	var from *serverError
	if errors.As(err, &from) {
		// The server's own words.
		_, _ = client.Write(from.message)
		return err
	}
	_, _ = client.Write(errorMessage(err))
	return err
}

// connect opens an encrypted connection to the server. It is closed with ctx.
func connect(ctx context.Context, host engine.Host, dbUser string, port string) (*tls.Conn, error) {
	raw, err := host.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	cfg, err := host.TLS(ctx, dbUser)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	conn, err := encrypt(ctx, raw, cfg)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// encrypt asks the server for TLS.
func encrypt(ctx context.Context, raw net.Conn, cfg *tls.Config) (*tls.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if _, err := raw.Write(startupMessage(codeSSL, nil)); err != nil {
		return nil, fault.Unreachable("ask the PostgreSQL server for TLS: %v", err)
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(raw, answer); err != nil {
		return nil, fault.Unreachable("ask the PostgreSQL server for TLS: %v", err)
	}
	if answer[0] != 'S' {
		return nil, fault.Unreachable("the PostgreSQL server does not speak TLS: set ssl = on, ssl_cert_file, ssl_key_file and ssl_ca_file in its postgresql.conf")
	}
	cfg.DynamicRecordSizingDisabled = true
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fault.Unreachable("the PostgreSQL server's certificate or the agent's was refused: %v", err)
	}
	return conn, nil
}

// login logs in as the user and returns what the server said before it agreed, with its
// agreement: the client gets it as its own.
func login(ctx context.Context, s *engine.Session, p *startup) (server *tls.Conn, greeting []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout, fault.Unreachable("the PostgreSQL server did not finish the login within %s", loginTimeout))
	defer cancel()
	server, err = connect(ctx, s.Host, p.user, portOf(s.Database))
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.NetConn().Close() })
	defer stop()
	greeting, err = authenticate(server, p)
	if err != nil {
		_ = server.NetConn().Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, err
	}
	return server, greeting, nil
}

func portOf(db *typesv1.Database) string {
	if db.GetSpec().GetProtocol() == types.ProtocolCockroachDB {
		return "26257"
	}
	return "5432"
}

// authenticate sends the startup message and returns what came up to AuthenticationOk.
func authenticate(server net.Conn, p *startup) ([]byte, error) {
	if _, err := server.Write(startupMessage(p.version, p.encode())); err != nil {
		return nil, fault.Unreachable("log in to the PostgreSQL server: %v", err)
	}
	var greeting []byte
	for len(greeting) < maxGreeting {
		kind, message, err := readMessage(server, maxGreeting)
		if err != nil {
			return nil, fault.Unreachable("log in to the PostgreSQL server: %v", err)
		}
		switch kind {
		case msgError:
			return nil, &serverError{message: message, text: errorText(message[headerSize:])}
		case msgAuthentication:
			if code := authCode(message[headerSize:]); code != authOK {
				return nil, refusedMethod(code, p)
			}
			return append(greeting, message...), nil
		}
		greeting = append(greeting, message...)
	}
	return nil, fault.Invalid("the PostgreSQL server talks on without an end to the login")
}

// refusedMethod says what to change when the server wants more than a certificate.
func refusedMethod(code uint32, p *startup) error {
	return fault.Unreachable("the PostgreSQL server asks %q for %s, but the agent logs in with a certificate: put the line \"hostssl all all all cert\" (or one for this agent's address) into its pg_hba.conf, before the line that matches now, and reload it",
		p.user, authName(code))
}

// serverError is an error in the server's own words.
type serverError struct {
	message []byte
	text    string
}

// Error returns the text.
func (e *serverError) Error() string { return e.text }

// tlsHandshake is the first byte of a client that begins with TLS (sslnegotiation=direct).
const tlsHandshake = 0x16

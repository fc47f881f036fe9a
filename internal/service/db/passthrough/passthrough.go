// Package passthrough is the engine for what has no engine of its own and speaks TLS from
// the first byte: the agent shows the client certificate, and passes everything on. What
// is asked is not recorded, only that there was a session.
package passthrough

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// loginTimeout bounds TLS with the server.
const loginTimeout = 30 * time.Second

// Engine passes bytes on.
type Engine struct{}

// New returns the engine.
func New() *Engine { return &Engine{} }

// Protocols returns the name by which databases ask for the engine.
func (*Engine) Protocols() []string { return []string{types.ProtocolTLS} }

// StartTLS returns at once: clients begin with TLS.
func (*Engine) StartTLS(context.Context, *typesv1.Database, net.Conn) (any, error) { return nil, nil }

// Serve carries one connection, as the database user that the user's certificate names:
// nothing else could say who is meant. The client is told nothing of an error, for want
// of a protocol.
func (*Engine) Serve(ctx context.Context, s *engine.Session) error {
	route := s.User.Database
	if route == nil || route.User == "" {
		return fault.Invalid("the certificate names no database user: run tsh db login --db-user=<user> %s, or tsh proxy db with --db-user", s.Database.GetMetadata().GetName())
	}
	if err := s.Host.Authorize(ctx, route.User, route.Name); err != nil {
		return err
	}
	server, err := connect(ctx, s, route.User)
	if err != nil {
		return err
	}
	defer func() { _ = server.NetConn().Close() }()
	// The end of ctx closes the connection to the server; a client that is silent would
	// keep its half of the copies waiting.
	stop := context.AfterFunc(ctx, func() { _ = s.Client.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(server, s.Client)
		_ = server.CloseWrite()
	})
	both.Go(func() {
		_, _ = io.Copy(s.Client, server)
		// Whoever has nothing more to read has nothing more to ask.
		_ = s.Client.SetReadDeadline(time.Unix(1, 0))
	})
	both.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func connect(ctx context.Context, s *engine.Session, user string) (conn *tls.Conn, err error) {
	err = engine.Connect(ctx, s.Host, engine.Login{
		User: user, Within: loginTimeout, Late: fault.Unreachable("the database server did not answer within %s", loginTimeout),
	}, func(ctx context.Context, raw net.Conn, config *tls.Config) error {
		conn = tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			return fault.Unreachable("TLS with the database server: %v", err)
		}
		return nil
	})
	return conn, err
}

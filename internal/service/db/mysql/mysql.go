// Package mysql is the engine for MySQL and MariaDB: the client/server protocol
// (https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html).
//
//	client                        agent                          server
//	                     <-   greeting
//	login, as anybody    ->   (who: decided)
//	                                                        <-   greeting
//	                                        TLS, login           ->
//	                     <-   OK                            <-   OK
//	commands             ->   looked at, passed on          ->
//	                     <-   passed on, looked at          <-
//
// The agent greets first, before it knows who comes and so before it may ask the server
// anything: it offers what every server since MySQL 5.6 and MariaDB 10.2 can do, and both
// sides then speak the same dialect, so that their bytes need no translation. The client
// is never asked for a password that would be checked; the agent logs in with a
// certificate.
package mysql

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

const (
	defaultPort  = "3306"
	loginTimeout = 30 * time.Second
	// defaultVersion is told to clients while nothing is known of the server.
	defaultVersion = "8.0.36-Teleport"
	// maxVersions bounds the servers that are remembered.
	maxVersions = 1024
)

// Engine speaks MySQL. It remembers the versions of servers, which clients are told
// before there is a connection to the server.
type Engine struct {
	threads *threads

	mu       sync.Mutex
	versions map[string]string
}

// New returns the engine.
func New() *Engine { return &Engine{threads: newThreads(), versions: map[string]string{}} }

// Protocols returns the names by which databases ask for the engine.
func (*Engine) Protocols() []string { return []string{types.ProtocolMySQL} }

// version is what clients are told about a database.
func (e *Engine) version(db *typesv1.Database) string {
	if v := db.GetSpec().GetMysql().GetServerVersion(); v != "" {
		return v
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.versions[db.GetMetadata().GetName()]; v != "" {
		return v
	}
	return defaultVersion
}

func (e *Engine) remember(db *typesv1.Database, version string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.versions) < maxVersions {
		e.versions[db.GetMetadata().GetName()] = version
	}
}

// StartTLS greets a client that ends TLS itself, and reads its request for TLS.
func (e *Engine) StartTLS(_ context.Context, db *typesv1.Database, client net.Conn) (any, error) {
	g := newGreeting(e.version(db), e.threads.number(), true)
	if err := writePacket(client, 0, g.encode()); err != nil {
		return nil, err
	}
	seq, p, err := readPacket(client, maxLogin)
	if err != nil {
		return nil, err
	}
	if !isSSLRequest(p) {
		err := fault.Denied("the connection is not encrypted: use --ssl-verify-server-cert (or --ssl-mode=VERIFY_CA) with the certificate of tsh db login, or tsh proxy db --tunnel")
		_ = writePacket(client, seq+1, errorPacket(err))
		return nil, err
	}
	return g, nil
}

// Serve carries one connection.
func (e *Engine) Serve(ctx context.Context, s *engine.Session) error {
	g, greeted := s.Started.(*greeting)
	if !greeted {
		g = newGreeting(e.version(s.Database), e.threads.number(), false)
		if err := writePacket(s.Client, 0, g.encode()); err != nil {
			return err
		}
	}
	seq, p, err := readPacket(s.Client, maxLogin)
	if err != nil {
		return err
	}
	who, err := parseLogin(p)
	if err != nil {
		s.Host.Audit().Malformed(p)
		_ = writePacket(s.Client, seq+1, errorPacket(err))
		return err
	}
	if seq, err = agree(s.Client, who, seq); err != nil {
		return err
	}
	in, err := e.enter(ctx, s, who)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var own *serverError
		if errors.As(err, &own) {
			_ = writePacket(s.Client, seq, own.packet)
			return err
		}
		_ = writePacket(s.Client, seq, errorPacket(err))
		return err
	}
	defer func() { _ = in.conn.NetConn().Close() }()
	defer e.threads.enter(s, g.thread, in.thread)()
	if err := writePacket(s.Client, seq, in.ok); err != nil {
		return err
	}
	pp := newPipe(s, in.conn)
	pp.rewrite = func(h header, head []byte) ([]byte, bool) { return e.threads.rewrite(s, h, head) }
	return pp.run(ctx)
}

// enter decides, and logs in to the server.
func (e *Engine) enter(ctx context.Context, s *engine.Session, who *login) (*entered, error) {
	if err := s.Host.Authorize(ctx, who.user, who.database); err != nil {
		return nil, err
	}
	err := s.Host.Provision(ctx,
		func(ctx context.Context, u engine.Provision) error { return makeUser(ctx, s, u) },
		func(ctx context.Context, u engine.Provision) error { return removeUser(ctx, s, u) })
	if err != nil {
		return nil, err
	}
	in, err := connect(ctx, s.Host, who)
	if err == nil {
		e.remember(s.Database, in.version)
	}
	return in, err
}

// pipe passes on what both sides send after the login.
type pipe struct {
	s      *engine.Session
	server *tls.Conn
	talk   *talk
	// rewrite returns what the server gets in the place of a packet, if that differs.
	rewrite func(h header, head []byte) ([]byte, bool)
}

func newPipe(s *engine.Session, server *tls.Conn) *pipe {
	return &pipe{s: s, server: server, talk: newTalk(s.Host)}
}

const bufferSize = 16 << 10

func (p *pipe) run(ctx context.Context) error {
	var down sync.WaitGroup
	down.Go(func() {
		_ = engine.Guard(p.toClient)
		// Nobody waits for commands that nobody answers.
		_ = p.s.Client.SetReadDeadline(time.Unix(1, 0))
	})
	err := engine.Guard(p.toServer)
	if p.talk.quit {
		_ = p.server.CloseWrite()
	} else {
		_ = p.server.NetConn().Close()
	}
	down.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		_ = writePacket(p.s.Client, 0, errorPacket(err))
		return err
	}
	if fault.Kind(err) != nil {
		_ = writePacket(p.s.Client, 1, errorPacket(err))
		return err
	}
	return nil
}

// toServer passes commands on, packet by packet: some must not get through. Those that
// have come together go on together.
func (p *pipe) toServer() error {
	in, out := bufio.NewReaderSize(p.s.Client, bufferSize), bufio.NewWriterSize(p.server, bufferSize)
	limits := p.s.Host.Limits()
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		h, err := readHeader(in)
		if err != nil {
			_ = out.Flush()
			return err
		}
		head, err := peek(in, min(h.size, limits.Message))
		if err != nil {
			return err
		}
		if err := p.talk.asked(h, head, limits); err != nil {
			_ = out.Flush()
			return err
		}
		if p, ok := p.rewrite(h, head); ok {
			if err := writePacket(out, h.seq, p); err != nil {
				return err
			}
			if _, err := in.Discard(h.size); err != nil {
				return err
			}
			continue
		}
		if err := h.write(out); err != nil {
			return err
		}
		if err := pass(out, in, h.size, head); err != nil {
			return err
		}
	}
}

// toClient passes answers on as they come.
func (p *pipe) toClient() error {
	cut := &cutter{packet: p.talk.answered}
	buf := make([]byte, bufferSize)
	for {
		n, err := p.server.Read(buf)
		if n > 0 {
			cut.feed(buf[:n])
			if _, werr := p.s.Client.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}

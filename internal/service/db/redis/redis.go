// Package redis is the engine for Redis, Valkey and what else speaks RESP, versions 2
// and 3 (https://redis.io/docs/latest/develop/reference/protocol-spec/).
//
// Who somebody is at the server is decided by AUTH, by HELLO with AUTH, and by RESET;
// every other command goes through as it is. The engine reads the commands of the client
// and writes them anew, so that the server cannot read another command than the one that
// was decided about, and looks at the answers only to record errors.
//
// A server may take the client certificate for a user, or not, so the engine asks it
// (ACL WHOAMI). While the server has not agreed that the session is the user who was
// allowed, only logins get through.
package redis

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

const (
	defaultPort = "6379"
	// defaultUser is who a connection is that has not logged in.
	defaultUser  = "default"
	loginTimeout = 30 * time.Second
	bufferSize   = 16 << 10
)

// Engine speaks RESP.
type Engine struct{}

// New returns the engine.
func New() *Engine { return &Engine{} }

// Protocols returns the names by which databases ask for the engine.
func (*Engine) Protocols() []string { return []string{types.ProtocolRedis} }

// StartTLS returns at once: clients begin with TLS.
func (*Engine) StartTLS(context.Context, *typesv1.Database, net.Conn) (any, error) { return nil, nil }

// Serve carries one connection.
func (*Engine) Serve(ctx context.Context, s *engine.Session) error {
	c := &session{
		s: s, in: newReader(s.Client), allowed: map[string]bool{},
		seen: newSeen(s.Host),
	}
	err := c.serve(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, errGone) {
		_, _ = s.Client.Write(errorReply(err))
		return err
	}
	return nil
}

// errGone ends a session in an orderly way.
var errGone = errors.New("the connection ended")

// session is one connection.
type session struct {
	s    *engine.Session
	in   *reader
	seen *seen

	server *tls.Conn
	out    *bufio.Writer
	// answers is the server's side before the pumps run.
	answers *bufio.Reader

	// allowed are the users of the server that the user may be.
	allowed map[string]bool
	// first is who the server takes the connection for by itself; empty if for nobody.
	first string
}

func (c *session) serve(ctx context.Context) error {
	cmd, err := c.in.next()
	if err != nil {
		return c.ended(err)
	}
	user, err := c.opening(cmd)
	if err != nil {
		return err
	}
	if err := c.allow(ctx, user); err != nil {
		return err
	}
	if err := c.connect(ctx, user); err != nil {
		return err
	}
	defer func() { _ = c.server.NetConn().Close() }()
	if err := c.admit(ctx, cmd, user); err != nil {
		return err
	}
	return c.pump(ctx)
}

// ended makes the end of the client's side nothing to speak of, and records what is no
// RESP.
func (c *session) ended(err error) error {
	if errors.Is(err, fault.ErrInvalid) {
		c.seen.audit.Malformed(c.in.rest())
		return err
	}
	return errGone
}

// opening returns the user that the first command logs in as, or else who the certificate
// is for.
func (c *session) opening(cmd *command) (string, error) {
	if cmd.authenticates() {
		if err := cmd.whole(); err != nil {
			return "", c.ended(err)
		}
		if user, ok := cmd.user(); ok {
			return user, nil
		}
	}
	if route := c.s.User.Database; route != nil && route.User != "" {
		return route.User, nil
	}
	return defaultUser, nil
}

// allow decides whether the user may be a user of the server.
func (c *session) allow(ctx context.Context, user string) error {
	if c.allowed[user] {
		return nil
	}
	if err := c.s.Host.Authorize(ctx, user, ""); err != nil {
		return err
	}
	c.allowed[user] = true
	return nil
}

// connect opens the connection to the server, and finds out whom it takes it for.
func (c *session) connect(ctx context.Context, user string) error {
	return engine.Connect(ctx, c.s.Host, engine.Login{
		User: user, Port: defaultPort, Within: loginTimeout, Late: fault.Unreachable("the Redis server did not answer within %s", loginTimeout),
	}, func(ctx context.Context, raw net.Conn, config *tls.Config) error {
		c.server = tls.Client(raw, config)
		c.out = bufio.NewWriterSize(c.server, bufferSize)
		c.answers = bufio.NewReaderSize(c.server, bufferSize)
		err := c.server.HandshakeContext(ctx)
		if err == nil {
			c.first, err = c.whoami()
		}
		if err != nil {
			return fault.Unreachable("log in to the Redis server: %v: does it listen with tls-port, and trust the certificates of tctl auth sign --format=redis?", err)
		}
		return nil
	})
}

// whoami asks the server. One older than version 6 has no users but the default one.
func (c *session) whoami() (string, error) {
	if err := writeCommand(c.out, "ACL", "WHOAMI"); err != nil {
		return "", err
	}
	answer, err := c.ask()
	if err != nil {
		return "", err
	}
	text := string(answer)
	switch {
	case strings.HasPrefix(text, "$"):
		_, name, _ := strings.Cut(strings.TrimSuffix(text, "\r\n"), "\r\n")
		return name, nil
	case strings.HasPrefix(text, "-NOAUTH"):
		return "", nil
	}
	return defaultUser, nil
}

// ask flushes, and returns one answer of the server.
func (c *session) ask() ([]byte, error) {
	if err := c.out.Flush(); err != nil {
		return nil, err
	}
	return readReply(c.answers)
}

// admit goes command by command until the server agrees who the session is. The first
// command is always taken here: a login as the user that the server knows already is
// agreed to, whatever password comes with it.
func (c *session) admit(ctx context.Context, cmd *command, user string) error {
	for first := true; first || !c.allowed[c.first]; first = false {
		if !first {
			var err error
			if cmd, err = c.in.next(); err != nil {
				return c.ended(err)
			}
		}
		admitted := c.allowed[c.first]
		if admitted && !cmd.authenticates() {
			return c.pass(ctx, cmd)
		}
		if err := cmd.whole(); err != nil {
			return c.ended(err)
		}
		c.seen.command(cmd)
		c.seen.flush()
		answer, err := c.login(ctx, cmd)
		c.seen.answered()
		switch {
		case err != nil:
			return err
		case answer == nil:
			_, _ = c.s.Client.Write(errorLine("NOAUTH", fmt.Sprintf("the Redis server does not take the certificate for user %q: send AUTH %s <password> first", user, user)))
		default:
			if _, err := c.s.Client.Write(answer); err != nil {
				return errGone
			}
		}
	}
	return nil
}

// login passes a command that logs in on, and returns the answer; nil is for another
// command.
func (c *session) login(ctx context.Context, cmd *command) ([]byte, error) {
	user, has := cmd.user()
	switch {
	case cmd.is("QUIT"):
		_, _ = c.s.Client.Write([]byte("+OK\r\n"))
		return nil, errGone
	case !cmd.authenticates():
		return nil, nil
	case has:
		if err := c.allow(ctx, user); err != nil {
			return nil, err
		}
	}
	if has && user == c.first {
		if cmd.is("AUTH") {
			return []byte("+OK\r\n"), nil
		}
		cmd.dropAuth()
	}
	if err := cmd.write(c.out); err != nil {
		return nil, err
	}
	answer, err := c.ask()
	if err != nil {
		return nil, fault.Unreachable("the Redis server ended the connection at the login: %v", err)
	}
	if failed := answer[0] == '-'; failed {
		c.seen.failed(cmd.text(), string(answer[1:]))
	} else if has {
		c.first = user
	}
	return answer, nil
}

// pass passes a command on, unless it would make the session another user.
func (c *session) pass(ctx context.Context, cmd *command) error {
	switch {
	case cmd.authenticates():
		if err := cmd.whole(); err != nil {
			return c.ended(err)
		}
		if user, ok := cmd.user(); ok {
			if err := c.allow(ctx, user); err != nil {
				return err
			}
		}
	case cmd.is("RESET"):
		// Back to whom the server takes a connection for that has not logged in.
		if !c.allowed[defaultUser] {
			return fault.Denied("access denied: RESET would make this session user %q of the database", defaultUser)
		}
	}
	if err := cmd.write(c.out); err != nil {
		return c.ended(err)
	}
	c.seen.command(cmd)
	return nil
}

// pump passes commands and answers on until one side ends.
func (c *session) pump(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic in the answers of a Redis server: %v", p)
			}
		}()
		done <- c.answer()
	}()
	err := c.commands(ctx)
	// What was asked is still answered when the client has only finished asking.
	if errors.Is(err, errGone) {
		_ = c.server.CloseWrite()
	} else {
		_ = c.server.NetConn().Close()
	}
	if from := <-done; from != nil && errors.Is(err, errGone) {
		err = from
	}
	return err
}

// commands passes the commands on. Those that came together go on together, and are one
// record.
func (c *session) commands(ctx context.Context) error {
	for {
		if c.in.idle() {
			if err := c.out.Flush(); err != nil {
				return errGone
			}
			c.seen.flush()
		}
		cmd, err := c.in.next()
		if err != nil {
			_ = c.out.Flush()
			c.seen.flush()
			return c.ended(err)
		}
		if err := c.pass(ctx, cmd); err != nil {
			c.seen.flush()
			return err
		}
	}
}

// answer passes the answers on. When the server ends the connection nobody waits for more
// commands.
func (c *session) answer() error {
	defer func() { _ = c.s.Client.SetReadDeadline(time.Unix(1, 0)) }()
	buf := make([]byte, bufferSize)
	for {
		n, err := c.answers.Read(buf)
		if n > 0 {
			c.seen.answer(buf[:n])
			if _, werr := c.s.Client.Write(buf[:n]); werr != nil {
				return nil
			}
		}
		if err != nil {
			return nil //nolint:nilerr // the end of the server's side is the end
		}
	}
}

// errorReply tells the client an error.
func errorReply(err error) []byte {
	switch {
	case errors.Is(err, fault.ErrDenied):
		return errorLine("NOPERM", err.Error())
	case errors.Is(err, fault.ErrInvalid):
		return errorLine("ERR", "Protocol error: "+err.Error())
	}
	return errorLine("ERR", err.Error())
}

// errorLine is a simple error, which is one line.
func errorLine(code, text string) []byte {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return slices.Concat([]byte("-"+code+" "), []byte(clean), []byte("\r\n"))
}

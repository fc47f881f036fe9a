// Package mongodb is the engine for MongoDB's wire protocol
// (https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/).
//
//	client                engine                              server
//	hello            ->   who, may they? connect          ->  TLS with the certificate
//	                                                          isMaster, authenticate (MONGODB-X509)
//	                 <-   a single server, no compression
//	saslStart, ...   <->  answered here, never passed on
//	OP_MSG           ->   in which databases, may they?   ->  the same bytes
//	                 <-   errors are recorded             <-  the same bytes
//
// Each command names its database, so that each is decided about by itself, also by the
// databases that an aggregation or a mapReduce writes to and reads from. A document is
// checked as far as the decision needs it.
package mongodb

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

const (
	defaultPort  = "27017"
	loginTimeout = 30 * time.Second
	bufferSize   = 16 << 10
	// maxAllowed bounds the databases that are remembered as allowed.
	maxAllowed = 1000
)

// Engine speaks MongoDB's protocol.
type Engine struct{}

// New returns the engine.
func New() *Engine { return &Engine{} }

// Protocols returns the name by which databases ask for the engine.
func (*Engine) Protocols() []string { return []string{types.ProtocolMongoDB} }

// StartTLS returns at once: clients begin with TLS.
func (*Engine) StartTLS(context.Context, *typesv1.Database, net.Conn) (any, error) { return nil, nil }

// Serve carries one connection.
func (*Engine) Serve(ctx context.Context, s *engine.Session) error {
	c := &session{s: s, in: bufio.NewReaderSize(s.Client, bufferSize), allowed: map[string]bool{}, answered: make(chan error, 1)}
	c.seen = newSeen(s.Host)
	// A client that asks nothing is not waited for.
	stop := context.AfterFunc(ctx, func() { _ = s.Client.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := c.serve(ctx)
	if c.server != nil {
		_ = c.server.NetConn().Close()
		// A client that neither asks nor reads does not keep the session.
		_ = s.Client.SetWriteDeadline(time.Now().Add(loginTimeout))
		if from := <-c.answered; from != nil && errors.Is(err, errGone) {
			err = from
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		for _, id := range c.seen.left() {
			c.tell(opMsg, id, err)
		}
	}
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// errGone ends a session in an orderly way.
var errGone = errors.New("the connection ended")

// session is one connection.
type session struct {
	s    *engine.Session
	in   *bufio.Reader
	seen *seen

	// out is held while a message is written to the client.
	out    sync.Mutex
	nextID int32

	// user is who the session is, once server is there; hello is how that introduced
	// itself. refused is why there is none.
	user     string
	server   *tls.Conn
	hello    []byte
	refused  error
	answered chan error
	scram    *scram
	// allowed are the databases that the user may be in.
	allowed map[string]bool
}

func (c *session) serve(ctx context.Context) error {
	for {
		r, err := readRequest(c.in, c.s.Host.Limits().Message)
		var cmd *command
		if err == nil {
			cmd, err = look(r)
		}
		if err != nil {
			return c.unreadable(r, err)
		}
		if err := c.request(ctx, r, cmd); err != nil {
			return err
		}
	}
}

// unreadable ends a session with a message that cannot be decided about.
func (c *session) unreadable(r *request, err error) error {
	if kind := fault.Kind(err); kind == nil || r == nil {
		return errGone
	}
	c.s.Host.Audit().Malformed(r.raw)
	if !r.silent() {
		c.tell(r.head.op, r.head.id, err)
	}
	return err
}

// request answers one message, or passes it on.
func (c *session) request(ctx context.Context, r *request, cmd *command) error {
	switch {
	case cmd.greets():
		c.begin(ctx, named(cmd.body))
		return c.answer(r, hello(cmd, c.hello))
	case cmd.logsIn():
		doc, err := c.login(ctx, cmd)
		if err != nil {
			c.tell(r.head.op, r.head.id, err)
			return err
		}
		return c.answer(r, doc)
	}
	if c.begin(ctx, ""); c.refused == nil && c.server == nil {
		c.refused = fault.Denied("access denied: say which user of the database you want to be: tsh db login --db-user=<user>, or tsh proxy db with --db-user")
	}
	if c.refused != nil {
		c.tell(r.head.op, r.head.id, c.refused)
		return c.refused
	}
	if err := c.allow(ctx, cmd); err != nil {
		c.seen.failed(cmd.text(r.sequences, c.s.Host.Limits().Query), cmd.db, err)
		if r.rest > 0 {
			if _, err := io.CopyN(io.Discard, c.in, int64(r.rest)); err != nil {
				return errGone
			}
		}
		if !r.silent() {
			c.tell(r.head.op, r.head.id, err)
		}
		return nil
	}
	return c.pass(r, cmd)
}

// tied is who the certificate is for, or "".
func (c *session) tied() string {
	if route := c.s.User.Database; route != nil {
		return route.User
	}
	return ""
}

// begin logs in to the server as soon as it is known as whom. What is in the way of that
// is told when the client asks for something: one that is greeted with an error tries again
// and again.
func (c *session) begin(ctx context.Context, user string) {
	if user == "" {
		user = c.tied()
	}
	if user == "" || c.server != nil || c.refused != nil {
		return
	}
	if c.refused = c.s.Host.AuthorizeUser(ctx, user); c.refused != nil {
		return
	}
	c.user = user
	if c.server, c.hello, c.refused = connect(ctx, c.s, user); c.refused == nil {
		go func() { c.answered <- engine.Guard(c.answers) }()
	}
}

// become has the session be the user that a login names.
func (c *session) become(ctx context.Context, user string) error {
	c.begin(ctx, user)
	switch {
	case c.refused != nil:
		return c.refused
	case c.server == nil:
		return fault.Denied("access denied: the login names no user")
	case user != c.user:
		return fault.Denied("access denied: this session is that of database user %q, not of %q: run tsh db login --db-user=%s", c.user, user, user)
	}
	return nil
}

// allow decides whether the user may be in all databases that a command reaches.
func (c *session) allow(ctx context.Context, cmd *command) error {
	if cmd.everywhere() {
		return nil
	}
	for _, name := range cmd.names {
		if c.allowed[name] {
			continue
		}
		if err := c.s.Host.AuthorizeName(ctx, name); err != nil {
			return err
		}
		if len(c.allowed) < maxAllowed {
			c.allowed[name] = true
		}
	}
	return nil
}

// pass passes a message on.
func (c *session) pass(r *request, cmd *command) error {
	limit := c.s.Host.Limits().Query
	if r.rest == 0 {
		c.seen.asked(r, cmd, cmd.text(r.sequences, limit))
		if _, err := c.server.Write(r.raw); err != nil {
			return errGone
		}
		return nil
	}
	c.seen.expect(r, cmd)
	if _, err := c.server.Write(r.raw); err != nil {
		return errGone
	}
	follow := &sections{limit: limit}
	if r.flags&flagChecksum != 0 {
		follow.checksum = 4
	}
	buf := make([]byte, bufferSize)
	for left := r.rest; left > 0; {
		n, err := c.in.Read(buf[:min(len(buf), left)])
		if err != nil {
			return errGone
		}
		if err := follow.feed(buf[:n], left); err != nil {
			return c.unreadable(&request{head: r.head, flags: flagMore, raw: r.raw[:min(len(r.raw), maxName)]}, err)
		}
		if _, err := c.server.Write(buf[:n]); err != nil {
			return errGone
		}
		left -= n
	}
	var docs []sequence
	if i := indexNUL(follow.kept); i >= 0 {
		docs = []sequence{{string(follow.kept[:i]), follow.kept[i+1:]}}
	}
	c.seen.asked(r, cmd, cmd.text(docs, limit))
	return nil
}

// answers passes the answers on, until the server's side ends. Then nobody waits for more
// commands.
func (c *session) answers() error {
	defer func() { _ = c.s.Client.SetReadDeadline(time.Unix(1, 0)) }()
	in := bufio.NewReaderSize(c.server, bufferSize)
	limit := c.s.Host.Limits().Message
	for {
		raw := make([]byte, headSize, 512)
		if _, err := io.ReadFull(in, raw); err != nil {
			return nil //nolint:nilerr // the end of the server's side is the end
		}
		h, err := parseHead(raw)
		if err != nil {
			return fault.Invalid("the MongoDB server sent %v", err)
		}
		rest := int(h.size) - headSize
		whole := min(rest, limit)
		if rest > limit {
			// Only the flags of a long answer are looked at: errors are short.
			whole = 4
		}
		raw = append(raw, make([]byte, whole)...)
		if _, err := io.ReadFull(in, raw[headSize:]); err != nil {
			return nil //nolint:nilerr // as above
		}
		c.seen.answered(h, raw[headSize:])
		c.out.Lock()
		_, err = c.s.Client.Write(raw)
		if err == nil && whole < rest {
			_, err = io.CopyN(c.s.Client, in, int64(rest-whole))
		}
		c.out.Unlock()
		if err != nil {
			return nil //nolint:nilerr // the end of either side is the end
		}
	}
}

// answer answers a message of the client's here.
func (c *session) answer(r *request, doc []byte) error {
	if r.silent() {
		return nil
	}
	return c.send(r.head.op, r.head.id, doc)
}

func (c *session) send(op, to int32, doc []byte) error {
	if op == opQuery {
		op = opReply
	} else {
		op = opMsg
	}
	c.out.Lock()
	defer c.out.Unlock()
	c.nextID++
	if _, err := c.s.Client.Write(message(op, c.nextID, to, doc)); err != nil {
		return errGone
	}
	return nil
}

// tell answers with an error.
func (c *session) tell(op, to int32, err error) {
	code, name := int32(1), "InternalError"
	switch {
	case errors.Is(err, fault.ErrDenied):
		code, name = 13, "Unauthorized"
	case errors.Is(err, fault.ErrUnauthenticated):
		code, name = 18, "AuthenticationFailed"
	case errors.Is(err, fault.ErrInvalid):
		code, name = 9, "FailedToParse"
	case errors.Is(err, fault.ErrUnsupported):
		code, name = 59, "CommandNotFound"
	case errors.Is(err, fault.ErrUnreachable):
		code, name = 6, "HostUnreachable"
	}
	_ = c.send(op, to, new(builder).double("ok", 0).str("errmsg", err.Error()).int("code", code).str("codeName", name).doc())
}

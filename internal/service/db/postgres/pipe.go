package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// bufferSize is that of a TLS record: no read brings more.
const bufferSize = 16 << 10

// pipe passes on what both sides send after the login.
type pipe struct {
	s      *engine.Session
	server *tls.Conn
	// cancel notes the key with which the session is cancelled.
	cancel func(key []byte) func()

	requests *requests
	asked    *asked
	// copied is how much of a COPY went out.
	copied int64
	forget func()
	// left is set once the client has said that it goes.
	left atomic.Bool
	// refused is why the agent ended the session.
	refused atomic.Pointer[error]
}

func newPipe(s *engine.Session, server *tls.Conn) *pipe {
	p := &pipe{s: s, server: server, requests: &requests{idle: s.Host.Idle}, forget: func() {}}
	p.asked = newAsked(s.Host.Audit(), s.Host.Limits(), p.requests)
	return p
}

// run passes on until either side ends. The client gets greeting first.
func (p *pipe) run(ctx context.Context, greeting []byte) error {
	defer func() { p.forget() }()
	var up sync.WaitGroup
	var clientErr error
	up.Go(func() {
		clientErr = engine.Guard(p.toServer)
		// What is on its way to the client is still read, and then the server hangs up.
		if p.left.Load() {
			_ = p.server.CloseWrite()
			return
		}
		_ = p.server.NetConn().Close()
	})
	err := p.toClient(ctx, greeting)
	_ = p.server.NetConn().Close()
	_ = p.s.Client.Close()
	up.Wait()
	if why := p.refused.Load(); why != nil {
		return *why
	}
	if p.left.Load() || ctx.Err() != nil {
		return nil
	}
	return errors.Join(clientErr, err)
}

// toServer passes on what the client sends.
func (p *pipe) toServer() error {
	f := &frames{want: p.asked.want, got: func(kind byte, body []byte, size int) {
		if kind == 'X' {
			p.left.Store(true)
		}
		p.asked.got(kind, body, size)
	}}
	buf := make([]byte, bufferSize)
	for {
		n, err := p.s.Client.Read(buf)
		if n > 0 {
			if lost := f.feed(buf[:n]); lost != nil {
				// Whatever comes next could not be recorded.
				p.s.Host.Audit().Malformed(buf[:n])
				return p.refuse(lost)
			}
			if p.asked.unknown && p.asked.limits.RefuseUnknown {
				return p.refuse(fault.Invalid("a message that cannot be read: this database takes only what can be recorded"))
			}
			if _, err := p.server.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return ignoreEnd(err)
		}
	}
}

// refuse ends the session for a reason that the client is told of.
func (p *pipe) refuse(why error) error {
	p.refused.Store(&why)
	return why
}

// toClient passes on what the server sends.
func (p *pipe) toClient(ctx context.Context, greeting []byte) error {
	f := &frames{want: wantAnswer, got: p.answer}
	buf := make([]byte, bufferSize)
	// The greeting goes out together with what comes next.
	n := copy(buf, greeting)
	if n < len(greeting) {
		if _, err := p.s.Client.Write(greeting); err != nil {
			return err
		}
		n = 0
	}
	broken := false
	for {
		m, err := p.server.Read(buf[n:])
		if m > 0 {
			// The audit needs the frames, the client does not.
			broken = broken || f.feed(buf[n:n+m]) != nil
			if _, err := p.s.Client.Write(buf[:n+m]); err != nil {
				return err
			}
			n = 0
		}
		if err == nil {
			continue
		}
		switch why := p.refused.Load(); {
		case broken || !f.whole():
		case ctx.Err() != nil:
			_, _ = p.s.Client.Write(endMessage(context.Cause(ctx)))
		case why != nil:
			_, _ = p.s.Client.Write(errorMessage(*why))
		case !errors.Is(err, io.EOF) && !p.left.Load():
			_, _ = p.s.Client.Write(endMessage(fault.Unreachable("the connection to the PostgreSQL server broke")))
		}
		return ignoreEnd(err)
	}
}

// wantAnswer is how much of a message of the server is looked at.
func wantAnswer(kind byte, _ int) int {
	switch kind {
	case 'E':
		return 4 << 10
	case 'K':
		return maxCancelKey
	case 't':
		return 2 + 4*maxParameters
	case 'Z':
		return 1
	}
	return 0
}

// answer notes a message of the server.
func (p *pipe) answer(kind byte, body []byte, size int) {
	switch kind {
	case 'D', 'T', 'N', 'S', 'A':
		if kind == 'T' {
			p.requests.answered('D')
		}
	case 'G':
		p.requests.copyIn()
	case 'H':
		p.copied = 0
	case 'd':
		p.copied += int64(size)
	case 'Z':
		if len(body) == 1 {
			p.requests.ready(body[0])
		}
	case 'C', 'I', 's':
		p.requests.answered('E')
	case '1':
		p.requests.answered('P')
	case '2':
		p.requests.answered('B')
	case '3':
		p.requests.answered('C')
	case 'n':
		p.requests.answered('D')
	case 't':
		p.described(body)
	case 'E':
		p.failed(body)
	case 'c':
		copyEvent(p.s.Host.Audit(), p.requests.current(), "out", p.copied, true)
	case 'K':
		p.forget()
		p.forget = p.cancel(append([]byte(nil), body...))
	}
}

// described learns the types of a statement's parameters.
func (p *pipe) described(body []byte) {
	if st := p.requests.described(); st != nil && len(body) > 2 {
		st.learn(body[2:])
	}
}

// failed records what the server refused.
func (p *pipe) failed(body []byte) {
	if q, ok := p.requests.failed(); ok {
		p.s.Host.Audit().Query(engine.Query{Text: q.text, Parameters: q.params, Err: errors.New(errorText(body))})
	}
}

// copyEvent records the end of a COPY, and how much it moved.
func copyEvent(a engine.Audit, query, way string, bytes int64, success bool) {
	a.Event(audit.DatabaseQuery, map[string]any{"db_query": query, "copy": way, "copy_bytes": bytes, "success": success})
}

// ignoreEnd is nil for what the end of a connection looks like.
func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

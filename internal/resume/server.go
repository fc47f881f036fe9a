package resume

import (
	"bufio"
	"bytes"
	"container/list"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/fault"
)

// Defaults of a ServerConfig whose fields are zero.
const (
	DefaultKeep       = 5 * time.Minute
	DefaultMaxAway    = 4096
	DefaultMaxPerUser = 512
	DefaultMaxHeld    = 128 << 20
	DefaultHandshake  = 15 * time.Second
)

// ServerConfig says how a node keeps connections.
type ServerConfig struct {
	// Greeting is the identification of the SSH server, without its end; the comment
	// has to be Mark.
	Greeting string
	// Keep is how long a connection waits for a new path.
	Keep time.Duration
	// MaxAway bounds the connections that have no path, MaxPerUser those of one user.
	// The one that has waited longest makes room.
	MaxAway, MaxPerUser int
	// MaxHeld is from how many bytes held for all connections on those without a path
	// take no more to send.
	MaxHeld int64
	// Handshake bounds the time until a new path is what it will be.
	Handshake time.Duration
	// Elsewhere opens connections to others that may have what this Server does not, for
	// a client at the address; their Resume is asked. Nil is nobody.
	Elsewhere func(from net.Addr) iter.Seq[net.Conn]
}

// Policy is what a node knows of the user behind a connection.
type Policy struct {
	// User is whose connection it is, for the limit of each.
	User string
	// Check is asked before the connection goes on on a path from the address; an
	// error refuses it. Nil allows.
	Check func(from net.Addr) error
	// Resumed is told that the connection goes on on a path from the address; it may be
	// nil.
	Resumed func(from net.Addr)
}

// Server is the node's end. It is safe for concurrent use.
type Server struct {
	cfg ServerConfig
	// held is the memory of all chunks.
	held atomic.Int64

	mu    sync.Mutex
	conns map[token]*Conn
	// away are the connections that have no path, the longest first.
	away  *list.List
	users map[string]int
}

// place is where a connection without a path stands among the others; the Server's
// mutex guards it.
type place struct {
	elem *list.Element
	user string
}

// NewServer returns a Server without connections.
func NewServer(cfg ServerConfig) (*Server, error) {
	if !speaks(cfg.Greeting) {
		return nil, fault.Invalid("resume: the comment of the greeting has to be %q", Mark)
	}
	setDefault(&cfg.Keep, DefaultKeep)
	setDefault(&cfg.MaxAway, DefaultMaxAway)
	setDefault(&cfg.MaxPerUser, DefaultMaxPerUser)
	setDefault(&cfg.MaxHeld, DefaultMaxHeld)
	setDefault(&cfg.Handshake, DefaultHandshake)
	return &Server{cfg: cfg, conns: map[token]*Conn{}, away: list.New(), users: map[string]int{}}, nil
}

func setDefault[T int | int64 | time.Duration](v *T, fallback T) {
	if *v <= 0 {
		*v = fallback
	}
}

// Accept finds out what a new connection is. It returns one to serve SSH on, a *Conn
// or one like nc; or nil if nc carries an earlier connection again, and then a channel
// that is closed when it does no more. With an error nc is the caller's to close;
// without, it belongs to what was returned.
func (s *Server) Accept(nc net.Conn) (conn net.Conn, over <-chan struct{}, err error) {
	if err := nc.SetDeadline(time.Now().Add(s.cfg.Handshake)); err != nil {
		return nil, nil, err
	}
	greeting := []byte(s.cfg.Greeting + "\r\n")
	if _, err := nc.Write(greeting); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(nc)
	plain := &plainConn{Conn: nc, r: r, greeted: greeting}
	first, err := r.Peek(1)
	if err == nil && first[0] == lineStart[0] {
		if first, err = r.Peek(len(lineStart)); err == nil && string(first) == lineStart {
			return s.greeted(nc, r, plain)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return plain, nil, nc.SetDeadline(time.Time{})
}

// greeted handles a connection that begins with a line of ours.
func (s *Server) greeted(nc net.Conn, r *bufio.Reader, plain net.Conn) (net.Conn, <-chan struct{}, error) {
	text, err := readLine(r)
	if err != nil {
		return nil, nil, unexpected(err)
	}
	switch verb, words := split(text); verb {
	case verbNew:
		c, err := s.begin(nc, r, words)
		if err != nil {
			return nil, nil, err // and not a *Conn that is nil
		}
		return c, nil, nil
	case verbAgain:
		over, err := s.again(nc, r, words, false)
		return nil, over, err
	}
	// A later version: SSH follows.
	if _, err := nc.Write(line(verbRefused)); err != nil {
		return nil, nil, err
	}
	return plain, nil, nc.SetDeadline(time.Time{})
}

// begin makes a connection that can be resumed.
func (s *Server) begin(nc net.Conn, r *bufio.Reader, words []string) (*Conn, error) {
	peer, err := parseNew(words)
	if err != nil {
		return nil, err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	own := key.PublicKey().Bytes()
	shared, err := agree(key, peer, peer, own)
	if err != nil {
		return nil, err
	}
	if _, err := nc.Write(line(verbNew, encode(own))); err != nil {
		return nil, err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	c := newConn(shared)
	c.server = s
	c.in.held, c.out.held = &s.held, &s.held
	s.mu.Lock()
	s.conns[shared.token] = c
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attachLocked(nc, r, 0)
	return c, nil
}

// Keep makes the connection outlive its path from now on. Until then, who is at the
// other end has not logged in, and the connection ends with its path.
func (c *Conn) Keep(p Policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return
	}
	c.policy, c.keep = p, c.server.cfg.Keep
	c.drained.Broadcast()
	c.kickLocked()
}

// errProof refuses who does not have the secret.
var errProof = fault.Unauthenticated("the proof for resuming a connection is wrong")

// again attaches nc to an earlier connection, to one of this Server if it has to be
// here.
func (s *Server) again(nc net.Conn, r *bufio.Reader, words []string, here bool) (<-chan struct{}, error) {
	a, err := parseAgain(words)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	c := s.conns[a.token]
	s.mu.Unlock()
	if c == nil {
		if s.cfg.Elsewhere == nil || here {
			return nil, gone(nc)
		}
		return s.elsewhere(nc, r, line(append([]string{verbAgain}, words...)...))
	}
	a.node = randomNonce()
	if _, err := nc.Write(line(verbAgain, encode(a.node[:]))); err != nil {
		return nil, err
	}
	var proof [proofSize]byte
	if _, err := io.ReadFull(r, proof[:]); err != nil {
		return nil, unexpected(err)
	}
	a.clientReceived = binary.BigEndian.Uint64(proof[:])
	if !a.fromClient(c.secrets).equal(proof[8:]) {
		return nil, errProof
	}
	return c.goOn(nc, r, &a)
}

// Resume is Accept for a path that another Server passes on: it can only carry an
// earlier connection, and the client has been greeted.
func (s *Server) Resume(nc net.Conn) (over <-chan struct{}, err error) {
	if err := nc.SetDeadline(time.Now().Add(s.cfg.Handshake)); err != nil {
		return nil, err
	}
	r := bufio.NewReader(nc)
	text, err := readLine(r)
	if err != nil {
		return nil, unexpected(err)
	}
	verb, words := split(text)
	if verb != verbAgain {
		return nil, fault.Invalid("only a connection from before can be passed on")
	}
	return s.again(nc, r, words, true)
}

// elsewhere passes a path on to who has the connection.
func (s *Server) elsewhere(nc net.Conn, r *bufio.Reader, first []byte) (<-chan struct{}, error) {
	for other := range s.cfg.Elsewhere(nc.RemoteAddr()) {
		in := bufio.NewReader(other)
		answer, err := ask(other, in, first)
		if err != nil {
			_ = other.Close()
			continue
		}
		if _, err := nc.Write([]byte(answer + "\r\n")); err != nil {
			_ = other.Close()
			return nil, err
		}
		_ = other.SetDeadline(time.Time{})
		_ = nc.SetDeadline(time.Time{})
		return pass(nc, r, other, in), nil
	}
	return nil, gone(nc)
}

// ask says the client's first line and returns the answer, unless that is no.
func ask(other net.Conn, in *bufio.Reader, first []byte) (string, error) {
	if _, err := other.Write(first); err != nil {
		return "", err
	}
	answer, err := readLine(in)
	if err != nil {
		return "", err
	}
	if verb, _ := split(answer); verb != verbAgain {
		return "", errGone
	}
	return answer, nil
}

// pass copies both ways until either end closes. What it returns is closed then.
func pass(a net.Conn, fromA io.Reader, b net.Conn, fromB io.Reader) <-chan struct{} {
	over := make(chan struct{})
	var work sync.WaitGroup
	pour := func(to net.Conn, from io.Reader) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, passBuffer))
		_, _ = a.Close(), b.Close()
	}
	work.Go(func() { pour(b, fromA) })
	work.Go(func() { pour(a, fromB) })
	go func() {
		defer close(over)
		work.Wait()
	}()
	return over
}

// passBuffer is what a direction of a path that is passed on holds.
const passBuffer = 32 << 10

// gone says that there is no such connection.
func gone(nc net.Conn) error {
	_, _ = nc.Write(line(verbGone))
	return errGone
}

// goOn attaches a path whose other end has proven to be the client.
func (c *Conn) goOn(nc net.Conn, r *bufio.Reader, a *attempt) (<-chan struct{}, error) {
	c.mu.Lock()
	check, resumed, kept := c.policy.Check, c.policy.Resumed, c.keep > 0
	c.mu.Unlock()
	if !kept {
		return nil, gone(nc)
	}
	var refusal error
	if check != nil {
		refusal = check(nc.RemoteAddr())
	}
	if refusal != nil {
		a.status = statusRefused
	}
	if err := c.claim(a); err != nil {
		return nil, errors.Join(err, gone(nc))
	}
	proof := a.fromNode(c.secrets)
	answer := binary.BigEndian.AppendUint64([]byte{a.status}, a.nodeReceived)
	if _, err := nc.Write(append(answer, proof[:]...)); err != nil {
		return nil, err
	}
	if refusal != nil {
		return nil, refusal
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	done, err := c.carryOn(nc, r, a)
	if err == nil && resumed != nil {
		resumed(nc.RemoteAddr())
	}
	return done, err
}

// carryOn attaches a path that both ends have agreed on.
func (c *Conn) carryOn(nc net.Conn, r *bufio.Reader, a *attempt) (<-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.closing || c.attempt != a.number {
		return nil, errStale
	}
	c.server.back(c)
	return c.attachLocked(nc, r, a.clientReceived).done, nil
}

// claim makes the attempt the newest and takes the path off, so that the count of what
// was received stands still.
func (c *Conn) claim(a *attempt) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil || c.closing:
		return errGone
	case a.number <= c.attempt:
		return fault.Denied("attempt %d to resume a connection comes after attempt %d", a.number, c.attempt)
	case a.clientReceived < c.taken || a.clientReceived > c.sent:
		return fault.Invalid("the client says it received %d bytes of %d", a.clientReceived, c.sent)
	}
	c.attempt = a.number
	if a.status != statusResumed {
		return nil
	}
	if c.path != nil {
		c.lostLocked(c.path, errStale)
	}
	a.nodeReceived = c.received
	return nil
}

// awayLocked is what a node does with a connection that lost its path.
func (c *Conn) awayLocked() {
	s := c.server
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = time.AfterFunc(c.keep, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.path == nil && c.err == nil {
			c.endLocked(fault.Unreachable("the client did not come back within %s", c.keep))
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(c)
	user := c.policy.User
	c.place = place{s.away.PushBack(c), user}
	s.users[user]++
	var victim *Conn
	for e := s.away.Front(); e != nil && victim == nil; e = e.Next() {
		if o := e.Value.(*Conn); s.away.Len() > s.cfg.MaxAway || s.users[user] > s.cfg.MaxPerUser && o.place.user == user {
			victim = o
		}
	}
	if victim != nil {
		s.leaveLocked(victim)
		// On its own: its mutex is taken before that of the Server.
		go victim.evict()
	}
}

// evict ends a connection that has to make room, unless it just came back.
func (c *Conn) evict() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path == nil {
		c.endLocked(fault.Limit("too many connections wait for their clients"))
	}
}

// leaveLocked takes the connection out of those that are away.
func (s *Server) leaveLocked(c *Conn) {
	if c.place.elem == nil {
		return
	}
	s.away.Remove(c.place.elem)
	if s.users[c.place.user]--; s.users[c.place.user] == 0 {
		delete(s.users, c.place.user)
	}
	c.place = place{}
}

// back notes that the connection has a path again.
func (s *Server) back(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(c)
}

// forget removes a connection that has ended.
func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(c)
	if s.conns[c.secrets.token] == c {
		delete(s.conns, c.secrets.token)
	}
}

// Stats is what a Server has now.
type Stats struct {
	// Open are the connections, Away those that have no path.
	Open, Away int
	// Held are the bytes of memory in their buffers.
	Held int64
}

// Stats returns what there is now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Open: len(s.conns), Away: s.away.Len(), Held: s.held.Load()}
}

// plainConn is a connection of plain SSH, of which something was read or sent already.
type plainConn struct {
	net.Conn
	// ahead and then r are read before Conn; only Read uses them.
	ahead []byte
	r     *bufio.Reader
	// greeted is the identification that was sent and will be written once more; only
	// Write uses it.
	greeted []byte
}

// Read reads.
func (p *plainConn) Read(b []byte) (int, error) {
	if len(p.ahead) > 0 {
		n := copy(b, p.ahead)
		p.ahead = p.ahead[n:]
		return n, nil
	}
	if p.r != nil {
		if p.r.Buffered() > 0 {
			return p.r.Read(b)
		}
		p.r = nil
	}
	return p.Conn.Read(b)
}

// Write writes, all but the identification that was sent.
func (p *plainConn) Write(b []byte) (int, error) {
	if p.greeted == nil {
		return p.Conn.Write(b)
	}
	if !bytes.HasPrefix(b, p.greeted) {
		return 0, fault.Invalid("the SSH server does not begin with its identification")
	}
	skip := len(p.greeted)
	p.greeted = nil
	if len(b) == skip {
		return skip, nil
	}
	n, err := p.Conn.Write(b[skip:])
	return skip + n, err
}

// CloseWrite ends the outgoing direction.
func (p *plainConn) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return p.Close()
}

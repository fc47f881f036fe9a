package postgres

import (
	"context"
	"crypto/sha256"
	"net"
	"sync"
	"time"

	"teleport/internal/budget"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// A client that wants its query cancelled opens another connection and sends the process
// id and the secret that the server gave it at the login: they are the server's own, so
// that what a client knows of itself (pg_backend_pid) stays true, and so that another
// agent of the same database can pass the request on as well.

const (
	cancelTimeout = 15 * time.Second
	// cancelRate and cancelBurst bound how often somebody may send a key that is of no
	// session here, and so guess.
	cancelRate, cancelBurst = 2, 10
	maxGuessers             = 10_000
	// maxCancelKey is the longest key that the protocol allows, with the process id.
	maxCancelKey = 4 + 256
)

// cancels knows the sessions by their keys.
type cancels struct {
	guesses *budget.Sources

	mu       *sync.Mutex
	sessions map[cancelKey]cancelTarget
}

// cancelKey is a hash, so that a comparison says nothing about the key.
type cancelKey struct {
	database string
	key      [sha256.Size]byte
}

type cancelTarget struct {
	user string
	do   func(ctx context.Context) error
}

func newCancels() cancels {
	return cancels{guesses: budget.NewSources(cancelRate, cancelBurst, maxGuessers), mu: &sync.Mutex{}, sessions: map[cancelKey]cancelTarget{}}
}

// add notes how a session of the user is cancelled, until the function that it returns
// is called.
func (c *cancels) add(database, user string, key []byte, do func(ctx context.Context) error) func() {
	k := cancelKey{database, sha256.Sum256(key)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[k] = cancelTarget{user, do}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.sessions, k)
	}
}

// anybody is who is not known, and has only the key to show.
const anybody = ""

// run cancels what runs in the session with the key, if it is the user's.
func (c *cancels) run(ctx context.Context, database string, key []byte, user string) error {
	c.mu.Lock()
	target, ok := c.sessions[cancelKey{database, sha256.Sum256(key)}]
	c.mu.Unlock()
	if ok && (user == anybody || user == target.user) {
		return target.do(ctx)
	}
	if !c.guesses.Allow(user, time.Now()) {
		return fault.Limit("too many requests to cancel what is not there")
	}
	if ok {
		return fault.Denied("a request to cancel came from %q for a session of %q", user, target.user)
	}
	return errNoSession
}

var errNoSession = fault.NotFound("a request to cancel is for no session here")

// cancelFor passes the CancelRequest of a user on.
func (e *Engine) cancelFor(ctx context.Context, s *engine.Session, key []byte) error {
	if len(key) < 8 || len(key) > maxCancelKey {
		return fault.Invalid("a request to cancel with a key of %d bytes", len(key))
	}
	ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
	defer cancel()
	err := e.cancels.run(ctx, s.Database.GetMetadata().GetName(), key, s.User.Name)
	if err != errNoSession { //nolint:errorlint // that very one
		return err
	}
	// The session may be at another agent of the database: the server knows the key.
	raw, err := s.Host.Dial(ctx, portOf(s.Database))
	if err != nil {
		return err
	}
	return passCancel(ctx, s.Host, raw, key)
}

// sendCancel sends the key to the server of a session.
func sendCancel(ctx context.Context, host engine.Host, addr net.Addr, key []byte) error {
	ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
	defer cancel()
	raw, err := host.Redial(ctx, addr)
	if err != nil {
		return err
	}
	return passCancel(ctx, host, raw, key)
}

// passCancel sends the key, and waits for the server to hang up: then it has done what it
// does.
func passCancel(ctx context.Context, host engine.Host, raw net.Conn, key []byte) error {
	defer func() { _ = raw.Close() }()
	cfg, err := host.TLS(ctx, "")
	if err != nil {
		return err
	}
	conn, err := encrypt(ctx, raw, cfg)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if _, err := conn.Write(startupMessage(codeCancel, key)); err != nil {
		return err
	}
	_, _ = conn.Read(make([]byte, 1))
	return nil
}

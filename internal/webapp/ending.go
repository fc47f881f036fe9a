package webapp

import (
	"crypto/sha256"
	"net"
	"sync"
)

// maxOpened bounds the sessions of which this Proxy remembers by which login they came.
const maxOpened = 4 * maxSessions

// ending knows what ends when somebody logs out: the connections of each session, by its
// id, and the sessions that were opened by each login at the Proxy.
type ending struct {
	mu     sync.Mutex
	conns  map[string]map[net.Conn]bool
	opened map[sessionKey]sessionKey
}

// sessionKey is the hash of what shows a session.
type sessionKey [sha256.Size]byte

func cookieKey(app, secret string) sessionKey {
	return sha256.Sum256([]byte("cookie\x00" + app + "\x00" + secret))
}

func loginKey(secret string) sessionKey { return sha256.Sum256([]byte("login\x00" + secret)) }

func newEnding() *ending {
	return &ending{conns: map[string]map[net.Conn]bool{}, opened: map[sessionKey]sessionKey{}}
}

// enter notes a connection of a session, until the function that it returns is called.
func (e *ending) enter(id string, conn net.Conn) (leave func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns[id] == nil {
		e.conns[id] = map[net.Conn]bool{}
	}
	e.conns[id][conn] = true
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if delete(e.conns[id], conn); len(e.conns[id]) == 0 {
			delete(e.conns, id)
		}
	}
}

// end closes the connections of a session.
func (e *ending) end(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for conn := range e.conns[id] {
		// It calls leave, which waits for the lock.
		go func() { _ = conn.Close() }()
	}
}

// open notes that a session was opened by a login.
func (e *ending) open(login, session sessionKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for old := range e.opened {
		if len(e.opened) < maxOpened {
			break
		}
		delete(e.opened, old)
	}
	e.opened[session] = login
}

// openedBy returns the sessions of a login, and forgets them.
func (e *ending) openedBy(login sessionKey) []sessionKey {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []sessionKey
	for session, by := range e.opened {
		if by == login {
			out = append(out, session)
			delete(e.opened, session)
		}
	}
	return out
}

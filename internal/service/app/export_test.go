package app

import "context"

// LookAtSessions writes the chunks and ends that are due by the clock of the configuration.
func (s *Service) LookAtSessions(ctx context.Context) { s.sessions.look(ctx) }

// Sessions returns how many are remembered.
func (s *Service) Sessions() int {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	return len(s.sessions.open)
}

// Framing passes a stream of HTTP/1, in pieces, through what watches over it, and returns
// what comes out and whether all of it was good.
func Framing(pieces ...[]byte) (out []byte, good bool) {
	f := newFraming()
	for _, p := range pieces {
		n := f.check(p)
		out = append(out, p[:n]...)
		if f.spoilt {
			return out, false
		}
	}
	return out, true
}

// Plain is the form of a header's name by which its spellings are compared.
func Plain(name string) string { return plain(name) }

// CheckDial says whether an address may be dialled.
func CheckDial(addr string) error { return checkDial(addr) }

// EndSessions ends the sessions that have no connections.
func (s *Service) EndSessions(ctx context.Context) { s.sessions.endAll(ctx) }

// EndConnections ends all of them.
func (s *Service) EndConnections() {
	for _, c := range s.live.list() {
		c.end("test")
	}
}

// Quiet reports whether no connection is left, nor any session that has one.
func (s *Service) Quiet() bool {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	for _, one := range s.sessions.open {
		if one.conns > 0 {
			return false
		}
	}
	return s.live.count() == 0
}

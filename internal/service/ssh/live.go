package ssh

import (
	"context"
	"sync"
	"sync/atomic"

	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// connection is a connection of a user that is open now.
type connection struct {
	*sshaccess.Connection
	s *Service
	// resumptions counts how often its client came back.
	resumptions atomic.Int64

	userMu sync.Mutex
	// giveUp gives the local user up, if it was made for the connection.
	giveUp func(context.Context)

	pam pamWord
}

// connected notes a connection that has logged in. It decides again first: what was
// changed between the login and now closed what was noted, and this connection was not.
func (s *Service) connected(ctx context.Context, sc *sshd.Conn) func() {
	id, err := userOf(sc.Login())
	if err != nil {
		sc.Disconnect(err.Error())
		return func() {}
	}
	c := &connection{Connection: s.guard.Connected(ctx, s.place(), sc, id), s: s}
	s.live.Add(c)
	if d := s.decideConn(id, sc.User()); !d.Allowed {
		c.Close(ctx, s.told(sc.User(), d))
	}
	s.keep(ctx, c)
	return func() {
		s.live.Remove(c)
		c.leaveUser(ctx)
		c.Ended(ctx)
	}
}

package proxy

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

const (
	// lockNotice is how long what a lock forbids goes on here: the node ends it as
	// well, and is to get its message through to the user first.
	lockNotice = 3 * time.Second
	// lookAgain is the pause between two looks at what is to end.
	lookAgain = 50 * time.Millisecond
)

// passage is a connection of a user to a node, or to an agent of something else, that is
// open now.
type passage struct {
	caller *identity.Identity
	nodeID string
	// client is the user's end: to close it ends it.
	client    net.Conn
	condemned sync.Once
	over      chan struct{}
}

// passages knows those that are open now.
type passages struct {
	mu   sync.Mutex
	open map[*passage]struct{}
}

func newPassages() *passages { return &passages{open: map[*passage]struct{}{}} }

func (r *passages) list() []*passage {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*passage, 0, len(r.open))
	for one := range r.open {
		out = append(out, one)
	}
	return out
}

// enter notes a passage that is about to open, and returns what takes it off again. It
// fails if a lock came meanwhile: who ends passages did not see this one.
func (s *Service) enter(caller *identity.Identity, nodeID string, client net.Conn) (leave func(), err error) {
	one := &passage{caller: caller, nodeID: nodeID, client: client, over: make(chan struct{})}
	s.passages.mu.Lock()
	s.passages.open[one] = struct{}{}
	s.passages.mu.Unlock()
	leave = func() {
		s.passages.mu.Lock()
		defer s.passages.mu.Unlock()
		delete(s.passages.open, one)
		close(one.over)
	}
	if err := s.locked(caller, nodeID); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// locked refuses a user, on the way to the node where that is known.
func (s *Service) locked(caller *identity.Identity, nodeID string) error {
	if err := s.lockedOut(); err != nil {
		return err
	}
	user := caller.User
	return access.CheckLocks(s.cfg.Cache.Locks(), access.Facts{
		User: user.Name, Roles: user.Roles, MFADevice: user.MFADevice, ServerID: nodeID, JoinToken: s.cfg.Cache.JoinToken(nodeID),
	}, time.Now())
}

// rejected records that a lock refused a user.
func (s *Service) rejected(ctx context.Context, caller *identity.Identity, req *proxyv1.DialRequest, clientAddr string, err error) error {
	s.metrics.notOpened(req.GetService())
	s.emitRefusal(ctx, audit.SessionRejected, caller, req, clientAddr, err)
	return fmt.Errorf("user %q to %q: %w", caller.User.Name, target(req), err)
}

// lockedOut refuses everybody while this Proxy is locked itself.
func (s *Service) lockedOut() error {
	if reason := s.cfg.Cache.LockedOut(); reason != "" {
		return fault.New(fault.ErrDenied, "%s", reason).WithCode(access.CodeLocked)
	}
	return s.lockedHost(s.cfg.Holder.HostID())
}

// lockedOutText is why lockedOut refuses, or "".
func (s *Service) lockedOutText() string {
	if err := s.lockedOut(); err != nil {
		return err.Error()
	}
	return ""
}

// lockedHost refuses a host that is locked.
func (s *Service) lockedHost(hostID string) error {
	locks := s.cfg.Cache.Locks()
	if len(locks) == 0 {
		return nil
	}
	return access.CheckLocks(locks, access.Facts{ServerID: hostID, JoinToken: s.cfg.Cache.JoinToken(hostID)}, time.Now())
}

// condemn ends the passages that a lock forbids, soon, and returns how many are left.
func (s *Service) condemn(ctx context.Context) int {
	n := 0
	for _, one := range s.passages.list() {
		err := s.locked(one.caller, one.nodeID)
		if err == nil {
			continue
		}
		n++
		one.condemned.Do(func() { s.conns.Go(func() { s.end(ctx, one, err) }) })
	}
	return n
}

// end ends a passage, unless the node does it before.
func (s *Service) end(ctx context.Context, one *passage, reason error) {
	notice := time.NewTimer(lockNotice)
	defer notice.Stop()
	select {
	case <-one.over:
		return
	case <-notice.C:
	}
	_ = one.client.Close()
	remote := one.client.RemoteAddr().String()
	s.cfg.Log.InfoContext(ctx, "connection of a user closed", "user", one.caller.User.Name, "node", one.nodeID, "remote_addr", remote, "reason", reason)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emitTimeout)
	defer cancel()
	event := audit.New(audit.ClientDisconnect, map[string]any{
		"user": one.caller.User.Name, "server_id": one.nodeID, "reason": reason.Error(), "addr.remote": remote,
		"proxy_id": s.cfg.Holder.HostID(), "success": true,
	})
	if err := s.cfg.Emit(ctx, event); err != nil {
		s.cfg.Log.WarnContext(ctx, "a disconnection could not be recorded", "user", one.caller.User.Name, "error", err)
	}
}

// EnforceLocks returns when nothing that a lock forbids goes through this Proxy any
// more: no user, no tunnel.
func (s *Service) EnforceLocks(ctx context.Context) error {
	for s.servers.visits.CloseLocked(ctx)+s.condemn(ctx) > 0 || s.tunnels.Refused() > 0 {
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// followLocks ends what new locks forbid until ctx ends. What is new is refused at
// once; the tunnels of a locked host stay as long as the users that come through.
func (s *Service) followLocks(ctx context.Context) error {
	var closing sync.WaitGroup
	defer closing.Wait()
	for {
		changed := s.cfg.Cache.Changed(types.KindLock)
		s.condemn(ctx)
		if s.tunnels.Refused() > 0 {
			closing.Go(func() {
				notice := time.NewTimer(lockNotice)
				defer notice.Stop()
				select {
				case <-notice.C:
					s.tunnels.Recheck(ctx)
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

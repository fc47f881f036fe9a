package sshd

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Conn is an authenticated connection.
type Conn struct {
	ssh   *ssh.ServerConn
	net   net.Conn
	login *Login
	live  live
	// sessions counts those that are open or being opened; noMore is set when the
	// client says that it will open no more.
	sessions atomic.Int64
	noMore   atomic.Bool
	// began is when the connection logged in; active is the time of LastActive after
	// it. A clock that is set does not change them.
	began    time.Time
	active   atomic.Int64
	forwards forwards
}

// User is the operating-system user that the client logs in as.
func (c *Conn) User() string { return c.ssh.User() }

// Login is what Authenticate returned for the key that was proved.
func (c *Conn) Login() *Login { return c.login }

// RemoteAddr is the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.ssh.RemoteAddr() }

// LocalAddr is the address the client reached.
func (c *Conn) LocalAddr() net.Addr { return c.ssh.LocalAddr() }

// NetConn is the connection that ServeConn was given.
func (c *Conn) NetConn() net.Conn { return c.net }

// ID identifies the connection: its exchange hash in hexadecimal.
func (c *Conn) ID() string { return hex.EncodeToString(c.ssh.SessionID()) }

// serve answers requests and channels until the connection is over, then waits
// for its sessions.
func (s *Server) serve(ctx context.Context, c *Conn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	if s.cfg.Carrier != nil {
		s.carry(ctx, c, chans, reqs)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	c.touch()
	if s.cfg.Connected != nil {
		defer s.cfg.Connected(ctx, c)()
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer c.forwards.close()
	defer cancel()
	work.Go(func() { s.serveGlobal(ctx, c, reqs, &work) })
	work.Go(func() { s.keepAlive(ctx, c) })
	for nc := range chans {
		s.channel(ctx, c, nc, &work)
	}
}

// channel accepts a session or refuses, saying why.
func (s *Server) channel(ctx context.Context, c *Conn, nc ssh.NewChannel, work *sync.WaitGroup) {
	c.touch()
	switch nc.ChannelType() {
	case "session":
	case directTCP, directUnix:
		work.Go(func() {
			defer s.guard(ctx, c)
			s.direct(ctx, c, nc)
		})
		return
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "channel type "+printable(nc.ChannelType())+" is not supported")
		return
	}
	if !s.maySession(ctx, c, nc) {
		return
	}
	work.Go(func() {
		defer c.sessions.Add(-1)
		defer s.guard(ctx, c)
		s.session(ctx, c, nc)
	})
}

// maySession counts one more session, or rejects the channel.
func (s *Server) maySession(ctx context.Context, c *Conn, nc ssh.NewChannel) bool {
	if c.noMore.Load() {
		_ = nc.Reject(ssh.Prohibited, "the client said that it would open no more sessions")
		return false
	}
	limit := s.cfg.MaxSessions
	if c.login.MaxSessions > 0 {
		limit = min(limit, c.login.MaxSessions)
	}
	if c.sessions.Add(1) > int64(limit) {
		c.sessions.Add(-1)
		text := ""
		if c.login.TooMany != nil {
			text = c.login.TooMany(ctx)
		}
		if text == "" {
			text = "too many sessions on this connection: close one or connect again"
		}
		_ = nc.Reject(ssh.ResourceShortage, printable(text))
		return false
	}
	return true
}

// guard ends the connection, and nothing else, when something of it panics.
func (s *Server) guard(ctx context.Context, c *Conn) {
	if r := recover(); r != nil {
		s.cfg.Log.ErrorContext(ctx, "panic in ssh connection", "panic", r, "stack", string(debug.Stack()))
		_ = c.ssh.Close()
	}
}

// serveGlobal answers requests that are not about a channel, one after the other.
func (s *Server) serveGlobal(ctx context.Context, c *Conn, reqs <-chan *ssh.Request, work *sync.WaitGroup) {
	defer s.guard(ctx, c)
	for r := range reqs {
		switch r.Type {
		case keepAliveRequest:
			_ = r.Reply(true, nil)
			continue
		case noMoreSessions:
			c.noMore.Store(true)
			_ = r.Reply(true, nil)
		case listenTCP, listenUnix:
			ok, answer := s.listen(ctx, c, r, work)
			_ = r.Reply(ok, answer)
		case cancelTCP, cancelUnix:
			_ = r.Reply(c.cancel(r), nil)
		default:
			// Programs have names of their own for signs of life: none of them is the user's doing.
			_ = r.Reply(false, nil)
			continue
		}
		c.touch()
	}
}

// Global requests of OpenSSH's PROTOCOL document.
const (
	keepAliveRequest = "keepalive@openssh.com"
	noMoreSessions   = "no-more-sessions@openssh.com"
)

var errNoAnswer = errors.New("the client does not answer keepalives")

// keepAlive asks the client for a sign of life now and then and closes the
// connection when there is none.
func (s *Server) keepAlive(ctx context.Context, c *Conn) {
	tick := time.NewTicker(s.cfg.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limit := time.AfterFunc(s.cfg.KeepAlive*time.Duration(s.cfg.KeepAliveMax), func() {
			s.cfg.Log.InfoContext(ctx, "ssh connection closed", "remote", addrText(c.RemoteAddr()), "error", errNoAnswer)
			_ = c.ssh.Close()
		})
		_, _, err := c.ssh.SendRequest(keepAliveRequest, true, nil)
		limit.Stop()
		if err != nil {
			return
		}
	}
}

package sshd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// Channels and requests of RFC 4254 section 7, and of OpenSSH's PROTOCOL document
// for Unix sockets.
const (
	directTCP      = "direct-tcpip"
	directUnix     = "direct-streamlocal@openssh.com"
	forwardedTCP   = "forwarded-tcpip"
	forwardedUnix  = "forwarded-streamlocal@openssh.com"
	listenTCP      = "tcpip-forward"
	listenUnix     = "streamlocal-forward@openssh.com"
	cancelTCP      = "cancel-tcpip-forward"
	cancelUnix     = "cancel-streamlocal-forward@openssh.com"
	agentChannel   = "auth-agent@openssh.com"
	agentRequest   = "auth-agent-req@openssh.com"
	x11Channel     = "x11"
	x11Request     = "x11-req"
	maxForwardHost = 256
	maxSocketPath  = 1024
)

// Target is an end of a forwarded connection on this host's side: a host and port,
// or the path of a Unix socket.
type Target struct {
	Host string
	Port uint16
	Path string
}

// Unix reports whether the target is a Unix socket.
func (t Target) Unix() bool { return t.Path != "" }

// String returns host:port or the path.
func (t Target) String() string {
	if t.Unix() {
		return t.Path
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
}

// Forwarding is what a server lets clients do beyond sessions. Each function decides
// whether the user may, and acts with the user's rights. The text of a *Refusal, and
// of an error with a fault kind, is sent to the client. A function that is nil refuses.
type Forwarding struct {
	// Dial connects to where the client asked for (ssh -L, -D and -W). origin is what the
	// client says about who connected to it.
	Dial func(ctx context.Context, c *Conn, to Target, origin string) (net.Conn, error)
	// Listen opens a listener (ssh -R). Port 0 asks for any. Closing it is up to the
	// server.
	Listen func(ctx context.Context, c *Conn, at Target) (net.Listener, error)
	// Agent opens the socket that programs of the session reach the client's SSH agent
	// through, and returns the variables that tell them.
	Agent func(ctx context.Context, s *Session) (net.Listener, []string, error)
	// X11 opens a display for the session, and returns the variables that tell its
	// programs.
	X11 func(ctx context.Context, s *Session, r X11) (net.Listener, []string, error)
	// Closed is told what a forwarded connection moved. It may be nil.
	Closed func(c *Conn, f Forwarded)
}

// Forwarded is a forwarded connection that is over.
type Forwarded struct {
	// Channel is the type of channel, such as direct-tcpip.
	Channel string
	To      Target
	// Received and Sent are bytes from and to the client.
	Received, Sent int64
}

// forwards are those of one connection.
type forwards struct {
	open atomic.Int64

	mu sync.Mutex
	// listeners are those that the client asked for, by what it asked.
	listeners map[Target]net.Listener
	ended     bool
}

// noForwarding is the answer where nothing is configured.
const noForwarding = "forwarding is not allowed on this server"

// directPayload is the extra data of direct-tcpip and forwarded-tcpip.
type directPayload struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// direct serves a channel that leads to a host or socket of this side.
func (s *Server) direct(ctx context.Context, c *Conn, nc ssh.NewChannel) {
	to, origin, err := parseDirect(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, printable(err.Error()))
		return
	}
	if s.cfg.Forwarding.Dial == nil {
		_ = nc.Reject(ssh.Prohibited, noForwarding)
		return
	}
	if c.forwards.open.Add(1) > int64(s.cfg.MaxForwards) {
		c.forwards.open.Add(-1)
		_ = nc.Reject(ssh.ResourceShortage, "too many forwarded connections: close some or connect again")
		return
	}
	defer c.forwards.open.Add(-1)
	peer, err := s.cfg.Forwarding.Dial(ctx, c, to, origin)
	if err != nil {
		reason, text := s.whyNot(ctx, to.String(), err)
		_ = nc.Reject(reason, text)
		return
	}
	defer func() { _ = peer.Close() }()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	s.splice(ctx, c, Forwarded{Channel: nc.ChannelType(), To: to}, ch, reqs, peer)
}

// whyNot returns what to tell a client whose forward failed.
func (s *Server) whyNot(ctx context.Context, what string, err error) (ssh.RejectionReason, string) {
	var refused *Refusal
	if errors.As(err, &refused) {
		return ssh.Prohibited, printable(refused.Text)
	}
	var op *net.OpError
	if fault.Kind(err) != nil || errors.As(err, &op) {
		return ssh.ConnectionFailed, printable(err.Error())
	}
	s.cfg.Log.InfoContext(ctx, "forward failed", "to", what, "error", err)
	return ssh.ConnectionFailed, "cannot connect to " + printable(what)
}

func parseDirect(kind string, payload []byte) (Target, string, error) {
	if kind == directUnix {
		var m struct {
			Path, Reserved string
			Zero           uint32
		}
		if err := ssh.Unmarshal(payload, &m); err != nil {
			return Target{}, "", fmt.Errorf("parse %s: %w", kind, err)
		}
		t, err := socketTarget(m.Path)
		return t, "", err
	}
	var m directPayload
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return Target{}, "", fmt.Errorf("parse %s: %w", kind, err)
	}
	t, err := hostTarget(m.Host, m.Port)
	if err == nil && (t.Port == 0 || t.Host == "") {
		err = fault.Invalid("cannot connect to %q port %d", m.Host, m.Port)
	}
	origin := ""
	if len(m.OriginHost) <= maxForwardHost && m.OriginPort <= 0xffff {
		origin = net.JoinHostPort(m.OriginHost, strconv.Itoa(int(m.OriginPort)))
	}
	return t, origin, err
}

func hostTarget(host string, port uint32) (Target, error) {
	if len(host) > maxForwardHost || printable(host) != host || port > 0xffff {
		return Target{}, fault.Invalid("bad host of %d bytes or port %d", len(host), port)
	}
	return Target{Host: host, Port: uint16(port)}, nil
}

func socketTarget(path string) (Target, error) {
	if len(path) == 0 || len(path) > maxSocketPath || path[0] != '/' || printable(path) != path {
		return Target{}, fault.Invalid("bad path of a socket, %d bytes: it must be absolute and printable", len(path))
	}
	return Target{Path: path}, nil
}

// listen serves tcpip-forward and streamlocal-forward. The answer has the port if the
// client asked for any.
func (s *Server) listen(ctx context.Context, c *Conn, r *ssh.Request, work *sync.WaitGroup) (ok bool, answer []byte) {
	asked, err := parseListen(r)
	if err != nil || s.cfg.Forwarding.Listen == nil {
		return false, nil
	}
	if !c.forwards.room(asked, s.cfg.MaxListeners) {
		s.cfg.Log.InfoContext(ctx, "listener refused: the client has it already, or too many", "at", asked.String())
		return false, nil
	}
	ln, err := s.cfg.Forwarding.Listen(ctx, c, asked)
	if err != nil {
		s.cfg.Log.InfoContext(ctx, "listener refused", "at", asked.String(), "error", err)
		return false, nil
	}
	key := asked
	if tcp, isTCP := ln.Addr().(*net.TCPAddr); isTCP && asked.Port == 0 {
		key.Port = uint16(tcp.Port)
		answer = ssh.Marshal(struct{ Port uint32 }{uint32(tcp.Port)})
	}
	if !c.forwards.add(key, ln) {
		_ = ln.Close()
		return false, nil
	}
	work.Go(func() {
		s.acceptAll(ctx, c, ln, func(peer net.Conn) (string, []byte) {
			if key.Unix() {
				return forwardedUnix, ssh.Marshal(struct{ Path, Reserved string }{key.Path, ""})
			}
			host, port := originOf(peer.RemoteAddr())
			return forwardedTCP, ssh.Marshal(directPayload{key.Host, uint32(key.Port), host, port})
		}, key)
	})
	return true, answer
}

func originOf(a net.Addr) (host string, port uint32) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.IP.String(), uint32(tcp.Port)
	}
	return "127.0.0.1", 0
}

func parseListen(r *ssh.Request) (Target, error) {
	if r.Type == listenUnix || r.Type == cancelUnix {
		var m struct{ Path string }
		if err := ssh.Unmarshal(r.Payload, &m); err != nil {
			return Target{}, fmt.Errorf("parse %s: %w", r.Type, err)
		}
		return socketTarget(m.Path)
	}
	var m struct {
		Host string
		Port uint32
	}
	if err := ssh.Unmarshal(r.Payload, &m); err != nil {
		return Target{}, fmt.Errorf("parse %s: %w", r.Type, err)
	}
	return hostTarget(m.Host, m.Port)
}

// cancel serves cancel-tcpip-forward and cancel-streamlocal-forward.
func (c *Conn) cancel(r *ssh.Request) bool {
	at, err := parseListen(r)
	if err != nil {
		return false
	}
	c.forwards.mu.Lock()
	ln := c.forwards.listeners[at]
	delete(c.forwards.listeners, at)
	c.forwards.mu.Unlock()
	return ln != nil && ln.Close() == nil
}

// room reports whether one more listener may be opened.
func (f *forwards) room(at Target, limit int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.ended && len(f.listeners) < limit && f.listeners[at] == nil
}

func (f *forwards) add(at Target, ln net.Listener) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.listeners[at] != nil {
		return false
	}
	if f.listeners == nil {
		f.listeners = map[Target]net.Listener{}
	}
	f.listeners[at] = ln
	return true
}

// close ends the listeners; no more are added.
func (f *forwards) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for _, ln := range f.listeners {
		_ = ln.Close()
	}
	f.listeners = nil
}

// acceptAll opens a channel to the client for each connection to ln, until ln or the
// connection is closed, and then waits for them to end.
func (s *Server) acceptAll(ctx context.Context, c *Conn, ln net.Listener, channel func(peer net.Conn) (kind string, payload []byte), at Target) {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		peer, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.cfg.Log.InfoContext(ctx, "forwarded listener ended", "at", at.String(), "error", err)
				_ = ln.Close()
			}
			return
		}
		if c.forwards.open.Add(1) > int64(s.cfg.MaxForwards) {
			c.forwards.open.Add(-1)
			_ = peer.Close()
			continue
		}
		conns.Go(func() {
			defer c.forwards.open.Add(-1)
			defer func() { _ = peer.Close() }()
			c.touch()
			kind, payload := channel(peer)
			ch, reqs, err := c.ssh.OpenChannel(kind, payload)
			if err != nil {
				return
			}
			s.splice(ctx, c, Forwarded{Channel: kind, To: at}, ch, reqs, peer)
		})
	}
}

// deliverGrace is how long a peer may take for what came before the client closed.
const deliverGrace = 10 * time.Second

// splice copies both ways until both ended, or the client closed the channel.
func (s *Server) splice(ctx context.Context, c *Conn, f Forwarded, ch ssh.Channel, reqs <-chan *ssh.Request, peer net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = peer.Close() })
	defer stop()
	var work, copies sync.WaitGroup
	delivered := make(chan struct{})
	// The requests end when the channel does: then nobody takes what the peer sends,
	// and it may have what came before.
	work.Go(func() {
		ssh.DiscardRequests(reqs)
		limit := time.NewTimer(deliverGrace)
		defer limit.Stop()
		select {
		case <-delivered:
		case <-limit.C:
		}
		_ = peer.Close()
	})
	copies.Go(func() {
		defer close(delivered)
		in := &counted{to: peer, n: &f.Received, touch: c.touch}
		copyGrowing(in, ch, nil)
		closeWrite(peer)
		if in.failed {
			_ = ch.Close()
		}
	})
	copies.Go(func() {
		copyGrowing(&counted{to: ch, n: &f.Sent, touch: c.touch}, peer, nil)
		_ = ch.CloseWrite()
	})
	copies.Wait()
	_ = ch.Close()
	_ = peer.Close()
	work.Wait()
	c.touch()
	if s.cfg.Forwarding.Closed != nil {
		s.cfg.Forwarding.Closed(c, f)
	}
}

// counted counts what is written.
type counted struct {
	to     writer
	n      *int64
	touch  func()
	failed bool
}

// Write writes.
func (w *counted) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	*w.n += int64(n)
	w.failed = err != nil
	w.touch()
	return n, err
}

// closeWrite passes the end of input on where the connection can say it.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = conn.Close()
}

package sshd

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
)

// Carrier makes of a Server one that runs nothing: each connection is carried to
// another SSH server, channel by channel and request by request, in both directions. The
// functions are asked before anything is, as those of Forwarding and Config.Session
// are; an error refuses, and the text of a *Refusal is shown to the user.
type Carrier struct {
	// Upstream returns the connection to the other server, which Authorize has opened.
	// The server closes it.
	Upstream func(c *Conn) Upstream
	// Session is asked when the client has said what to run. It returns what is told how
	// that ended.
	Session func(ctx context.Context, s *Session) (ended func(Exit), err error)
	// Dial is about connections from the other server (ssh -L, -D and -W).
	Dial func(ctx context.Context, c *Conn, to Target, origin string) error
	// Listen is about listeners of the other server (ssh -R), Listening is told which one
	// was opened, with its port. If it fails the listener is closed.
	Listen, Listening func(ctx context.Context, c *Conn, at Target) error
	// Agent and X11 are about the client's agent and display.
	Agent, X11 func(ctx context.Context, s *Session) error
	// Closed is told what a forwarded connection moved.
	Closed func(c *Conn, f Forwarded)
}

// Upstream is a connection to another SSH server that has logged in.
type Upstream struct {
	Conn     ssh.Conn
	Channels <-chan ssh.NewChannel
	Requests <-chan *ssh.Request
}

// Coalesce returns a connection to an SSH server on which small writes that follow each
// other are one, as those of a Server are: one by one, each may have to wait until the
// other side acknowledges the one before.
func Coalesce(nc net.Conn) net.Conn { return newBuffered(nc) }

const (
	endOfWrite = "eow@openssh.com"
	flowOf     = "xon-xoff"
	exitStatus = "exit-status"
	exitSignal = "exit-signal"
	// exitNotRun is the exit status of what was refused.
	exitNotRun = 254
)

// carried is a connection on its way to another server.
type carried struct {
	s    *Server
	c    *Conn
	up   Upstream
	work sync.WaitGroup

	// mu is held while a listener is asked for: connections to it wait until it is known.
	mu        sync.Mutex
	listeners map[Target]struct{}
	// agents and displays are the sessions that have one.
	agents, displays int
}

// carry serves a connection until it is over, and closes the other one.
func (s *Server) carry(ctx context.Context, c *Conn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	k := &carried{s: s, c: c, up: s.cfg.Carrier.Upstream(c), listeners: map[Target]struct{}{}}
	ctx, cancel := context.WithCancel(ctx)
	c.touch()
	if s.cfg.Connected != nil {
		defer s.cfg.Connected(ctx, c)()
	}
	defer k.work.Wait()
	defer func() { _ = k.up.Conn.Close() }()
	defer cancel()
	k.run(ctx, func() { k.fromClient(ctx, reqs) })
	k.run(ctx, func() { k.fromServer(k.up.Requests) })
	k.run(ctx, func() {
		for nc := range k.up.Channels {
			k.run(ctx, func() { k.back(ctx, nc) })
		}
	})
	k.run(ctx, func() { s.keepAlive(ctx, c) })
	k.run(ctx, func() { k.pulse(ctx) })
	k.run(ctx, func() {
		_ = k.up.Conn.Wait()
		if ctx.Err() == nil {
			c.Disconnect("the connection to the server was lost")
		}
	})
	for nc := range chans {
		k.channel(ctx, nc)
	}
}

// run has f run on its own; a panic ends this connection and no more.
func (k *carried) run(ctx context.Context, f func()) {
	k.work.Go(func() {
		defer k.s.guard(ctx, k.c)
		f()
	})
}

// pulse closes the connection to the server when it gives no sign of life.
func (k *carried) pulse(ctx context.Context) {
	tick := time.NewTicker(k.s.cfg.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limit := time.AfterFunc(k.s.cfg.KeepAlive*time.Duration(k.s.cfg.KeepAliveMax), func() { _ = k.up.Conn.Close() })
		_, _, err := k.up.Conn.SendRequest(keepAliveRequest, true, nil)
		limit.Stop()
		if err != nil {
			return
		}
	}
}

// channel takes a channel that the client opens.
func (k *carried) channel(ctx context.Context, nc ssh.NewChannel) {
	k.c.touch()
	switch nc.ChannelType() {
	case directTCP, directUnix:
		k.run(ctx, func() { k.direct(ctx, nc) })
	case "session":
		if k.s.maySession(ctx, k.c, nc) {
			k.run(ctx, func() {
				defer k.c.sessions.Add(-1)
				k.session(ctx, nc)
			})
		}
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "channel type "+printable(nc.ChannelType())+" is not supported")
	}
}

// fromClient answers the client's requests that are not about a channel.
func (k *carried) fromClient(ctx context.Context, reqs <-chan *ssh.Request) {
	for r := range reqs {
		switch r.Type {
		case keepAliveRequest:
			_ = r.Reply(true, nil)
			continue
		case noMoreSessions:
			k.c.noMore.Store(true)
			_ = r.Reply(true, nil)
		case listenTCP, listenUnix:
			ok, answer := k.listen(ctx, r)
			_ = r.Reply(ok, answer)
		case cancelTCP, cancelUnix:
			_ = r.Reply(k.cancel(r), nil)
		default:
			_ = r.Reply(false, nil)
			continue
		}
		k.c.touch()
	}
}

// fromServer answers those of the server. It may ask for signs of life, and tell its
// host keys, which are none of the client's.
func (k *carried) fromServer(reqs <-chan *ssh.Request) {
	for r := range reqs {
		_ = r.Reply(r.Type == keepAliveRequest, nil)
	}
}

// listen asks the server for a listener.
func (k *carried) listen(ctx context.Context, r *ssh.Request) (ok bool, answer []byte) {
	at, err := parseListen(r)
	if err != nil {
		return false, nil
	}
	refused := func(err error) (bool, []byte) {
		k.s.cfg.Log.InfoContext(ctx, "listener refused", "at", at.String(), "error", err)
		return false, nil
	}
	if err := k.s.cfg.Carrier.Listen(ctx, k.c, at); err != nil {
		return refused(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, have := k.listeners[at]; have || len(k.listeners) >= k.s.cfg.MaxListeners {
		return refused(errors.New("the client has it already, or too many"))
	}
	granted, answer, err := k.up.Conn.SendRequest(r.Type, true, r.Payload)
	if err != nil || !granted {
		return false, nil
	}
	var port struct{ Port uint32 }
	if !at.Unix() && at.Port == 0 && ssh.Unmarshal(answer, &port) == nil {
		at.Port = uint16(port.Port)
	}
	if err := k.s.cfg.Carrier.Listening(ctx, k.c, at); err != nil {
		_, _, _ = k.up.Conn.SendRequest(map[string]string{listenTCP: cancelTCP, listenUnix: cancelUnix}[r.Type], true, cancelPayload(at))
		return refused(err)
	}
	k.listeners[at] = struct{}{}
	return true, answer
}

func cancelPayload(at Target) []byte {
	if at.Unix() {
		return ssh.Marshal(struct{ Path string }{at.Path})
	}
	return ssh.Marshal(struct {
		Host string
		Port uint32
	}{at.Host, uint32(at.Port)})
}

// cancel closes a listener.
func (k *carried) cancel(r *ssh.Request) bool {
	at, err := parseListen(r)
	if err != nil {
		return false
	}
	k.mu.Lock()
	_, have := k.listeners[at]
	delete(k.listeners, at)
	k.mu.Unlock()
	if !have {
		return false
	}
	ok, _, err := k.up.Conn.SendRequest(r.Type, true, r.Payload)
	return err == nil && ok
}

// enter counts one more forwarded connection, if there may be one.
func (k *carried) enter() bool {
	if k.c.forwards.open.Add(1) > int64(k.s.cfg.MaxForwards) {
		k.leave()
		return false
	}
	return true
}

func (k *carried) leave() { k.c.forwards.open.Add(-1) }

const tooManyForwards = "too many forwarded connections: close some or connect again"

// direct carries a connection that starts at the client's side.
func (k *carried) direct(ctx context.Context, nc ssh.NewChannel) {
	to, origin, err := parseDirect(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, printable(err.Error()))
		return
	}
	if !k.enter() {
		_ = nc.Reject(ssh.ResourceShortage, tooManyForwards)
		return
	}
	defer k.leave()
	if err := k.s.cfg.Carrier.Dial(ctx, k.c, to, origin); err != nil {
		reason, text := k.s.whyNot(ctx, to.String(), err)
		_ = nc.Reject(reason, text)
		return
	}
	k.through(ctx, Forwarded{Channel: nc.ChannelType(), To: to}, nc, k.up.Conn)
}

// back carries a connection that starts at the server's side, if the client asked for
// such.
func (k *carried) back(ctx context.Context, nc ssh.NewChannel) {
	at, known := k.wanted(nc)
	if !known {
		_ = nc.Reject(ssh.Prohibited, "nobody asked for it")
		return
	}
	if !k.enter() {
		_ = nc.Reject(ssh.ResourceShortage, tooManyForwards)
		return
	}
	defer k.leave()
	k.c.touch()
	k.through(ctx, Forwarded{Channel: nc.ChannelType(), To: at}, nc, k.c.ssh)
}

// wanted finds what a channel of the server is about.
func (k *carried) wanted(nc ssh.NewChannel) (Target, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch nc.ChannelType() {
	case agentChannel:
		return Target{Path: "agent"}, k.agents > 0
	case x11Channel:
		return Target{Path: "x11"}, k.displays > 0
	case forwardedUnix:
		var m struct{ Path, Reserved string }
		if ssh.Unmarshal(nc.ExtraData(), &m) != nil {
			return Target{}, false
		}
		at := Target{Path: m.Path}
		_, ok := k.listeners[at]
		return at, ok
	case forwardedTCP:
		var m directPayload
		if ssh.Unmarshal(nc.ExtraData(), &m) != nil || m.Port > 0xffff {
			return Target{}, false
		}
		at := Target{Host: m.Host, Port: uint16(m.Port)}
		if _, ok := k.listeners[at]; ok {
			return at, true
		}
		for other := range k.listeners { // servers differ in how they call "any address"
			if !other.Unix() && other.Port == at.Port {
				return other, true
			}
		}
	}
	return Target{}, false
}

// through opens the same channel on the other connection and joins both.
func (k *carried) through(ctx context.Context, f Forwarded, nc ssh.NewChannel, to ssh.Conn) {
	far, farReqs, err := to.OpenChannel(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		reject(nc, err)
		return
	}
	near, nearReqs, err := nc.Accept()
	if err != nil {
		go ssh.DiscardRequests(farReqs)
		_ = far.Close()
		return
	}
	sent, received := &f.Sent, &f.Received
	if to == k.c.ssh { // the near end is the server
		sent, received = received, sent
	}
	k.join(ctx, end{near, nearReqs, received}, end{far, farReqs, sent})
	k.c.touch()
	k.s.cfg.Carrier.Closed(k.c, f)
}

// reject passes on why the other side did not open a channel.
func reject(nc ssh.NewChannel, err error) {
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) {
		_ = nc.Reject(refused.Reason, printable(refused.Message))
		return
	}
	_ = nc.Reject(ssh.ConnectionFailed, "the other side is gone")
}

// end is one end of a forwarded connection.
type end struct {
	ch   ssh.Channel
	reqs <-chan *ssh.Request
	// read counts what came from it.
	read *int64
}

// join copies both ways until both ended, or one side closed its channel: then the
// other may have what came before.
func (k *carried) join(ctx context.Context, a, b end) {
	var copies, closers sync.WaitGroup
	one := func(from, to end) {
		delivered := make(chan struct{})
		copies.Go(func() {
			defer k.s.guard(ctx, k.c)
			defer close(delivered)
			w := &counted{to: to.ch, n: from.read, touch: k.c.touch}
			copyGrowing(w, from.ch, nil)
			_ = to.ch.CloseWrite()
			if w.failed {
				_ = from.ch.Close()
			}
		})
		closers.Go(func() {
			ssh.DiscardRequests(from.reqs)
			limit := time.NewTimer(deliverGrace)
			defer limit.Stop()
			select {
			case <-delivered:
			case <-limit.C:
			}
			_ = to.ch.Close()
		})
	}
	one(a, b)
	one(b, a)
	copies.Wait()
	_ = a.ch.Close()
	_ = b.ch.Close()
	closers.Wait()
}

// session carries a session channel until both sides have closed it.
func (k *carried) session(ctx context.Context, nc ssh.NewChannel) {
	far, farReqs, err := k.up.Conn.OpenChannel("session", nil)
	if err != nil {
		reject(nc, err)
		return
	}
	near, nearReqs, err := nc.Accept()
	if err != nil {
		go ssh.DiscardRequests(farReqs)
		_ = far.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	v := &carriedSession{
		k: k, far: far, started: make(chan struct{}), delivered: make(chan struct{}),
		se: &Session{conn: k.c, cfg: &k.s.cfg, id: uuid.NewString(), ch: near},
	}
	v.exit.Store(&Exit{Code: 255})
	k.c.live.add(v.se)
	var work sync.WaitGroup
	defer func() {
		k.c.touch()
		k.c.live.remove(v.se)
		cancel()
		work.Wait()
		k.forget(v.se)
		if v.ended != nil {
			v.ended(*v.exit.Load())
		}
	}()
	work.Go(func() {
		defer k.s.guard(ctx, k.c)
		v.fromServer(farReqs)
	})
	for r := range nearReqs {
		if ofUser(r.Type) {
			k.c.touch()
		}
		v.fromClient(ctx, r, &work)
	}
	// The client is done; the server may have what came before.
	if v.running {
		limit := time.NewTimer(deliverGrace)
		defer limit.Stop()
		select {
		case <-v.delivered:
		case <-limit.C:
		}
	} else {
		close(v.started)
	}
	_ = far.Close()
}

// forget takes agent and display of a session that is over off the count.
func (k *carried) forget(se *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if se.agent {
		k.agents--
	}
	if se.x11 {
		k.displays--
	}
}

// carriedSession is a session channel on its way to the server.
type carriedSession struct {
	k   *carried
	se  *Session
	far ssh.Channel
	// running is set, and started closed, once the server runs something; started is
	// closed too when nothing will.
	running bool
	started chan struct{}
	// delivered is closed when the server has all of the input.
	delivered chan struct{}
	// output are the copies to the client.
	output sync.WaitGroup
	// exit is how it ended, as the server says.
	exit  atomic.Pointer[Exit]
	ended func(Exit)
}

// fromClient passes on a request of the client, if it may be.
func (v *carriedSession) fromClient(ctx context.Context, r *ssh.Request, work *sync.WaitGroup) {
	switch r.Type {
	case "shell", "exec", "subsystem":
		if v.running || v.ended != nil {
			_ = r.Reply(false, nil)
			return
		}
		v.start(ctx, r, work)
		return
	case "env", "pty-req", agentRequest, x11Request:
		if v.running {
			_ = r.Reply(false, nil)
			return
		}
	}
	if !v.may(ctx, r) {
		_ = r.Reply(false, nil)
		return
	}
	ok, err := v.far.SendRequest(r.Type, r.WantReply, r.Payload)
	ok = err == nil && (ok || !r.WantReply)
	if ok {
		v.granted(r)
	}
	_ = r.Reply(ok, nil)
}

// may reports whether a request is passed on: one of a known form that nobody refuses.
func (v *carriedSession) may(ctx context.Context, r *ssh.Request) bool {
	s, se := v.k.s, v.se
	switch r.Type {
	case "env":
		name, value, err := parseEnv(r.Payload)
		if err != nil || len(se.env) >= maxEnvs {
			return false
		}
		se.env = append(se.env, name+"="+value)
		return true
	case "pty-req":
		_, err := parsePty(r.Payload)
		return err == nil && se.pty == nil && !se.conn.login.NoTerminal
	case "window-change":
		_, err := parseSize(r.Payload)
		return err == nil
	case agentRequest:
		return !se.agent && v.asked(ctx, r.Type, s.cfg.Carrier.Agent)
	case x11Request:
		_, err := parseX11(r.Payload)
		return err == nil && !se.x11 && v.asked(ctx, r.Type, s.cfg.Carrier.X11)
	case "signal":
		_, err := parseSignal(r.Payload)
		return err == nil
	case "break", endOfWrite:
		return true
	}
	return false
}

// asked asks about an agent or a display, and keeps the text of a refusal for the user.
func (v *carriedSession) asked(ctx context.Context, what string, ask func(context.Context, *Session) error) bool {
	err := ask(ctx, v.se)
	if err != nil {
		v.k.s.refuseExtra(ctx, v.se, what, err)
	}
	return err == nil
}

// granted notes what the server agreed to.
func (v *carriedSession) granted(r *ssh.Request) {
	se := v.se
	switch r.Type {
	case "pty-req":
		if req, err := parsePty(r.Payload); err == nil {
			se.mu.Lock()
			se.pty = &req
			se.mu.Unlock()
		}
	case "window-change":
		_ = se.live(r) // there is no terminal here: it keeps the size and tells who asked
	case agentRequest, x11Request:
		v.k.mu.Lock()
		defer v.k.mu.Unlock()
		if r.Type == agentRequest {
			se.agent = true
			v.k.agents++
			return
		}
		se.x11 = true
		v.k.displays++
	}
}

// start has the server run what the client asks for.
func (v *carriedSession) start(ctx context.Context, r *ssh.Request, work *sync.WaitGroup) {
	se := v.se
	var err error
	if r.Type != "shell" {
		limit := maxCommand
		if r.Type == "subsystem" {
			limit = maxName
		}
		if se.command, err = parseText(r.Payload, limit); err != nil {
			_ = r.Reply(false, nil)
			return
		}
	}
	se.kind = Kind(r.Type)
	if v.ended, err = v.k.s.cfg.Carrier.Session(ctx, se); err != nil {
		v.ended = nil
		_ = r.Reply(true, nil)
		v.refuse(ctx, err)
		return
	}
	ok, err := v.far.SendRequest(r.Type, true, r.Payload)
	if err != nil || !ok {
		v.exit.Store(&Exit{Code: exitNotRun})
		_ = r.Reply(false, nil)
		return
	}
	// The answer goes first: the client must not see output before it.
	_ = r.Reply(true, nil)
	v.running = true
	if se.Interactive() {
		for _, note := range se.notes {
			se.tell(printable(note) + "\r\n")
		}
	}
	pour := func(f func()) func() {
		return func() {
			defer v.k.s.guard(ctx, v.k.c)
			f()
		}
	}
	work.Go(pour(func() {
		defer close(v.delivered)
		copyGrowing(v.far, se, nil)
		_ = v.far.CloseWrite()
	}))
	v.output.Go(pour(func() { copyGrowing(se, v.far, nil) }))
	v.output.Go(pour(func() { copyGrowing(se.Stderr(), v.far.Stderr(), nil) }))
	close(v.started)
}

// refuse tells the user why nothing is run.
func (v *carriedSession) refuse(ctx context.Context, err error) {
	line := "\n"
	if v.se.Interactive() {
		line = "\r\n"
	}
	_, text := v.k.s.whyNot(ctx, "session", err)
	v.se.tell(text + line)
	v.se.finish(Exit{Code: exitNotRun})
}

// fromServer passes on what the server says about the session, and closes the
// client's channel once the server has closed its own and all output is through.
func (v *carriedSession) fromServer(reqs <-chan *ssh.Request) {
	for r := range reqs {
		switch r.Type {
		case exitStatus:
			var m struct{ Code uint32 }
			if ssh.Unmarshal(r.Payload, &m) != nil {
				continue
			}
			v.exit.Store(&Exit{Code: int(m.Code)})
		case exitSignal:
			var m struct {
				Name              string
				Core              bool
				Message, Language string
			}
			if ssh.Unmarshal(r.Payload, &m) != nil {
				continue
			}
			v.exit.Store(&Exit{Code: 255, Signal: printable(m.Name), Core: m.Core})
		case endOfWrite, flowOf:
		default:
			_ = r.Reply(false, nil)
			continue
		}
		_, _ = v.se.ch.SendRequest(r.Type, false, r.Payload)
	}
	<-v.started
	v.output.Wait()
	v.se.endOutput()
	_ = v.se.ch.Close()
}

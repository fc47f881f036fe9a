package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/retry"
)

// pulse says how a link notices that the other end is gone.
type pulse struct{ interval, timeout time.Duration }

// link is one tunnel, seen from either end.
type link struct {
	ssh   ssh.Conn
	wire  *wire
	pulse pulse
	log   *slog.Logger
	// channels counts the open ones, and those being opened.
	channels atomic.Int32
	// left is closed when the other end asked for a new tunnel.
	left     chan struct{}
	leftOnce sync.Once
	spread   time.Duration // set before left is closed
	// gone is closed when the tunnel is.
	gone chan struct{}
}

func newLink(c ssh.Conn, w *wire, p pulse, log *slog.Logger) *link {
	return &link{ssh: c, wire: w, pulse: p, log: log, left: make(chan struct{}), gone: make(chan struct{})}
}

// close ends the tunnel and all that goes through it.
func (l *link) close() { _ = l.ssh.Close() }

// retireLook is how often it is looked whether a tunnel that was replaced is idle.
const retireLook = 250 * time.Millisecond

// retire closes the tunnel, in whose place there is another one, when nothing goes
// through it any more.
func (l *link) retire(ctx context.Context) {
	tick := time.NewTicker(retireLook)
	defer tick.Stop()
	for {
		select {
		case <-l.gone:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if l.channels.Load() == 0 {
			l.close()
			return
		}
	}
}

// watch answers and makes requests until the tunnel ends. It is the one goroutine
// that an idle tunnel needs besides those of the SSH library. accept gets the
// channels that the other end opens; nil refuses them.
func (l *link) watch(ctx context.Context, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request, accept func(ssh.NewChannel)) {
	defer close(l.gone)
	defer l.close()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	next := time.NewTimer(l.pulse.interval/2 + retry.Jitter(l.pulse.interval/2))
	defer next.Stop()
	var (
		sequence uint64
		silence  *time.Timer // runs while a ping is unanswered
	)
	defer func() {
		if silence != nil {
			silence.Stop()
		}
	}()
	for chans != nil || reqs != nil {
		select {
		case nc, ok := <-chans:
			switch {
			case !ok:
				chans = nil
			case accept == nil:
				_ = nc.Reject(ssh.Prohibited, "only the Proxy opens channels")
			default:
				accept(nc)
			}
		case req, ok := <-reqs:
			if !ok {
				reqs = nil
				continue
			}
			if req.Type == requestPong && silence != nil && isSequence(req.Payload, sequence) {
				silence.Stop()
				silence = nil
				next.Reset(l.pulse.interval)
			}
			l.answer(req)
		case <-next.C:
			sequence++
			silence = l.awaitPong(ctx)
			// Without a reply wanted this waits for nobody but the network, and if
			// that does not take it, the timer above ends the tunnel.
			_, _, _ = l.ssh.SendRequest(requestPing, false, binary.BigEndian.AppendUint64(nil, sequence))
		}
	}
}

// awaitPong closes the tunnel if nothing at all is heard for the timeout. Bytes of
// channels count as a sign of life: a pong may be queued behind a big copy.
func (l *link) awaitPong(ctx context.Context) *time.Timer {
	heard := l.wire.received.Load()
	var timer *time.Timer
	var armed sync.Mutex
	armed.Lock()
	timer = time.AfterFunc(l.pulse.timeout, func() {
		armed.Lock()
		defer armed.Unlock()
		if now := l.wire.received.Load(); now != heard {
			heard = now
			timer.Reset(l.pulse.timeout)
			return
		}
		l.log.WarnContext(ctx, "tunnel is dead, closing it", "silent_for", l.pulse.timeout)
		l.close()
	})
	armed.Unlock()
	return timer
}

func isSequence(payload []byte, want uint64) bool {
	return len(payload) == 8 && binary.BigEndian.Uint64(payload) == want
}

// answer handles a global request of the other end.
func (l *link) answer(req *ssh.Request) {
	switch req.Type {
	case requestPing:
		if len(req.Payload) == 8 {
			_, _, _ = l.ssh.SendRequest(requestPong, false, req.Payload)
		}
	case requestLeaving:
		l.leftOnce.Do(func() {
			l.spread = parseLeaving(req.Payload)
			close(l.left)
		})
	}
	if req.WantReply {
		_ = req.Reply(false, nil)
	}
}

// sendLeaving asks the other end to dial anew.
func (l *link) sendLeaving(spread time.Duration) {
	_, _, _ = l.ssh.SendRequest(requestLeaving, false, marshalLeaving(spread))
}

// open opens a channel with the extra data and returns it as a connection.
func (l *link) open(ctx context.Context, extra []byte) (net.Conn, error) {
	if l.channels.Add(1) > maxChannels {
		l.channels.Add(-1)
		return nil, fault.Limit("%d connections go through the tunnel already", maxChannels)
	}
	type opened struct {
		ch  ssh.Channel
		err error
	}
	result := make(chan opened)
	// This goroutine outlives open: it drains the channel's requests.
	go func() {
		defer l.channels.Add(-1)
		ch, reqs, err := l.ssh.OpenChannel(channelType, extra)
		select {
		case result <- opened{ch, err}:
		case <-ctx.Done():
			if err == nil {
				_ = ch.Close()
			}
		}
		if err == nil {
			ssh.DiscardRequests(reqs)
		}
	}()
	select {
	case r := <-result:
		if r.err != nil {
			return nil, openError(r.err)
		}
		return newConn(r.ch, l.ssh.LocalAddr(), l.ssh.RemoteAddr()), nil
	case <-ctx.Done():
		return nil, fault.Unreachable("open a channel through the tunnel: %w", context.Cause(ctx))
	}
}

func openError(err error) error {
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) {
		return fault.Unreachable("the agent refused the connection: %s", printable(refused.Message))
	}
	return fault.Unreachable("open a channel through the tunnel: %w", err)
}

// printable makes text of another machine fit for a log and a terminal.
func printable(s string) string {
	const limit = 256
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return fmt.Sprintf("%q", s)
}

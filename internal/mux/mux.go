// Package mux lets many protocols share one TCP port: it reads the ClientHello of
// each new connection, without ending the TLS session, and hands the connection to
// the listener whose ALPN names match. It also carries the signed preamble with
// which a Proxy says who is at the other end of a connection that it passes on.
// It knows no certificate of its own and decides nothing about who may connect.
package mux

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/fault"
	"teleport/internal/retry"
)

// ALPN names of the Proxy's port.
const (
	// ALPNProxySSH asks for a connection to a host; client certificate required.
	ALPNProxySSH = "teleport-proxy-ssh"
	// ALPNProxyGRPC is the Proxy's own gRPC port for joining and logging in.
	ALPNProxyGRPC = "teleport-proxy-grpc"
	// ALPNTunnel is an agent's reverse tunnel.
	ALPNTunnel = "teleport-reversetunnel"
	// ALPNAuthPrefix, followed by a cluster name, is passed on to the Auth Service.
	ALPNAuthPrefix = "teleport-auth@"
)

// Defaults of a Config whose fields are zero.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMaxPending       = 2048
	DefaultMaxWaiting       = 8192
)

// Config says where a Mux listens and what it bears.
type Config struct {
	// Listener is closed by Serve.
	Listener net.Listener
	// HandshakeTimeout bounds the time until the whole ClientHello was read and
	// its listener took the connection.
	HandshakeTimeout time.Duration
	// MaxPending bounds the connections whose ClientHello is awaited. A newcomer
	// takes the place of the one that has been waiting longest.
	MaxPending int
	// MaxPendingPerSource is the same for one source address; 0 means a quarter
	// of MaxPending.
	MaxPendingPerSource int
	// MaxWaiting bounds the connections whose listener has not taken them yet.
	// Newcomers beyond are closed: clients that pace themselves come back.
	MaxWaiting int
	Log        *slog.Logger
}

// Stats counts what came in, since New.
type Stats struct {
	// Accepted counts all connections.
	Accepted uint64
	// PlainHTTP counts those that spoke HTTP without TLS.
	PlainHTTP uint64
	// Garbage counts those that sent anything else than a ClientHello.
	Garbage uint64
	// TimedOut counts those that did not send one in time.
	TimedOut uint64
	// Evicted counts those that had to make room for newer ones.
	Evicted uint64
	// Unclaimed counts those that no listener took in time, or that too many others
	// were waiting with.
	Unclaimed uint64
}

// Mux routes the connections of one listener.
type Mux struct {
	cfg    Config
	gate   *Gate
	routes []*route
	rest   *route

	waiting                                                    atomic.Int64
	accepted, plainHTTP, garbage, timedOut, evicted, unclaimed atomic.Uint64
}

type route struct {
	match func(protos []string, sni string) bool
	*listener
}

// New returns a Mux. Route and Default are called before Serve.
func New(cfg Config) *Mux {
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	if cfg.MaxPendingPerSource <= 0 {
		cfg.MaxPendingPerSource = max(cfg.MaxPending/4, 1)
	}
	if cfg.MaxWaiting <= 0 {
		cfg.MaxWaiting = DefaultMaxWaiting
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Mux{cfg: cfg, gate: NewGate(cfg.MaxPending, cfg.MaxPendingPerSource, 0)}
}

// Route returns a listener that gets the connections for which match is true and
// no earlier route's was. It is given the ALPN names and the server name of the
// ClientHello, which nothing vouches for. Conns accepted are *Conn.
func (m *Mux) Route(match func(protos []string, sni string) bool) net.Listener {
	r := &route{match: match, listener: newListener(m.cfg.Listener.Addr())}
	m.routes = append(m.routes, r)
	return r
}

// Default returns the listener of the connections that no route takes.
func (m *Mux) Default() net.Listener {
	if m.rest == nil {
		m.rest = &route{listener: newListener(m.cfg.Listener.Addr())}
	}
	return m.rest
}

// Stats returns the counters.
func (m *Mux) Stats() Stats {
	return Stats{
		Accepted: m.accepted.Load(), PlainHTTP: m.plainHTTP.Load(), Garbage: m.garbage.Load(),
		TimedOut: m.timedOut.Load(), Evicted: m.evicted.Load(), Unclaimed: m.unclaimed.Load(),
	}
}

// Serve accepts connections until ctx ends, and then returns nil. Connections
// that were handed over stay open; those that were not are closed.
func (m *Mux) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = m.cfg.Listener.Close() })
	var conns sync.WaitGroup
	defer func() {
		cancel()
		stop()
		_ = m.cfg.Listener.Close()
		for _, r := range m.all() {
			_ = r.Close()
		}
		conns.Wait()
	}()
	return Accept(ctx, m.cfg.Listener, m.cfg.Log, func(conn net.Conn) {
		m.accepted.Add(1)
		conns.Go(func() { m.handle(ctx, conn) })
	})
}

func (m *Mux) all() []*route {
	if m.rest == nil {
		return m.routes
	}
	return append(m.routes[:len(m.routes):len(m.routes)], m.rest)
}

// handle reads the ClientHello and hands the connection over.
func (m *Mux) handle(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	slot, err := m.gate.Enter(ctx, conn)
	if err != nil {
		stop()
		_ = conn.Close()
		return
	}
	raw, h, err := peekHello(conn)
	evicted := slot.Leave()
	if err != nil {
		m.refuse(ctx, conn, raw, evicted, err)
		stop()
		_ = conn.Close()
		return
	}
	if !m.handOver(ctx, newConn(conn, raw), h, stop) {
		m.unclaimed.Add(1)
		stop()
		_ = conn.Close()
	}
}

// handOver gives the connection to the listener that it is for and reports whether
// that took it. Unless release succeeds the connection is closed already.
func (m *Mux) handOver(ctx context.Context, c *Conn, h hello, release func() bool) bool {
	defer m.waiting.Add(-1)
	if m.waiting.Add(1) > int64(m.cfg.MaxWaiting) {
		return false
	}
	for _, r := range m.all() {
		if r.match == nil || r.match(h.protos, h.sni) {
			return r.deliver(ctx, c, release)
		}
	}
	return false
}

// refuse counts why a connection goes away, and tells a browser.
func (m *Mux) refuse(ctx context.Context, conn net.Conn, raw []byte, evicted bool, err error) {
	switch {
	case evicted:
		m.evicted.Add(1)
	case ctx.Err() != nil:
		m.timedOut.Add(1)
	case looksLikeHTTP(raw):
		m.plainHTTP.Add(1)
		answerHTTP(conn)
	case errors.Is(err, errHello):
		m.garbage.Add(1)
	default:
		// The peer went away before it said anything: health checks do that.
		return
	}
	m.cfg.Log.DebugContext(ctx, "connection refused before TLS", "remote_addr", conn.RemoteAddr().String(), "error", err)
}

// Accept calls handle for each connection of ln until ctx ends and then returns nil;
// handle must not block. Shortage of file descriptors and the like pass; only a
// closed listener is final. The caller closes ln when ctx ends.
func Accept(ctx context.Context, ln net.Listener, log *slog.Logger, handle func(net.Conn)) error {
	pause := retry.Backoff{Min: 5 * time.Millisecond, Max: time.Second}
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause.Reset()
			handle(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF):
			return fault.Unreachable("accept connections on %s: %w", ln.Addr(), err)
		default:
			log.WarnContext(ctx, "cannot accept a connection, trying again", "error", err)
			if pause.Wait(ctx) != nil {
				return nil
			}
		}
	}
}

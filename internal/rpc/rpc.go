// Package rpc is gRPC as this system uses it: servers and clients with bounded
// memory, time and message sizes, mutual TLS, who the caller is, one table that
// maps kinds of error to gRPC codes in both directions, and the length-prefixed
// frames that open a connection through the Proxy. It does not decide who may
// call what (package authz) and it has no services of its own.
package rpc

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

const (
	// maxRequest bounds a message that a server accepts.
	maxRequest = 4 << 20
	// MaxResponse bounds a message that a client accepts and a server sends.
	MaxResponse = 16 << 20
	// callTimeout is the life of a unary call when the caller sets none, and the
	// most that it may ask for.
	callTimeout = 30 * time.Second
	// relayedKey carries the address of the client that a Proxy speaks for.
	relayedKey = "teleport-relayed-addr"
	// processKey carries the run of the process that calls.
	processKey = "teleport-process"
	maxProcess = 64
)

// Caller is who makes a call.
type Caller struct {
	// Identity is what the verified client certificate says; nil without one.
	Identity *identity.Identity
	// Local is true for a caller on the Auth Service's own host, over its socket.
	Local bool
	// Addr is the address of the caller, host:port, for limits and the audit log.
	Addr string
	// Via is the host id of the Proxy that relays the call, or empty.
	Via string
	// Process is the run of the process that calls, as it says itself; see WithProcess.
	Process string
}

// Anonymous reports whether the caller proved nothing about itself.
func (c Caller) Anonymous() bool { return c.Identity == nil && !c.Local }

// Name returns the caller's name for logs and audit: the user, the host id,
// "local administrator" or "" when anonymous.
func (c Caller) Name() string {
	if c.Local {
		return "local administrator"
	}
	return c.Identity.Name()
}

// Host returns the host identity of the caller, or nil.
func (c Caller) Host() *identity.Host {
	if c.Identity == nil {
		return nil
	}
	return c.Identity.Host
}

// User returns the user identity of the caller, or nil.
func (c Caller) User() *identity.User {
	if c.Identity == nil {
		return nil
	}
	return c.Identity.User
}

type callerKey struct{}

// WithCaller returns a context that carries the caller. Servers do it for every
// call; elsewhere it is for tests.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller of the call that ctx belongs to; without one it
// is the anonymous caller.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// WithRelayedAddr returns a context whose calls say that they are made for an
// anonymous client at addr (host:port). Servers believe it from Proxies only.
func WithRelayedAddr(ctx context.Context, addr string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, relayedKey, addr)
}

// WithProcess returns a context whose calls name the run of the process that makes
// them: something random, made when the process started.
func WithProcess(ctx context.Context, run string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, processKey, run)
}

// caller works out who makes the call.
func (s *Server) caller(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, fault.Unauthenticated("connection without a peer")
	}
	info, ok := p.AuthInfo.(authInfo)
	if !ok {
		return Caller{}, fault.Unauthenticated("connection without transport security")
	}
	c := Caller{Local: info.local}
	if p.Addr != nil {
		c.Addr = p.Addr.String()
	}
	if info.local {
		return relayed(ctx, c)
	}
	if info.state == nil || s.cfg.Identify == nil {
		return c, fault.Unauthenticated("connection without TLS")
	}
	id, err := s.cfg.Identify(*info.state)
	if err != nil {
		return c, fault.New(fault.ErrUnauthenticated, "client certificate refused: %w", err).WithCode(fault.Code(err))
	}
	if id != nil && !id.Expires.IsZero() && s.cfg.Now().After(id.Expires) {
		return c, fault.New(fault.ErrUnauthenticated,
			"the client certificate expired at %s: log in again, or let the agent renew", id.Expires.UTC().Format(time.RFC3339)).
			WithCode("certificate_expired")
	}
	c.Identity = id
	return relayed(ctx, c)
}

// relayed replaces the caller by the client that it speaks for, if it says so.
func relayed(ctx context.Context, c Caller) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if run := md.Get(processKey); len(run) == 1 && len(run[0]) <= maxProcess {
		c.Process = run[0]
	}
	values := md.Get(relayedKey)
	if len(values) == 0 {
		return c, nil
	}
	if !c.Host().Serves(types.RoleProxy) {
		return Caller{}, fault.Denied("only a Proxy may speak for the address of another client")
	}
	if len(values) != 1 || len(values[0]) > 64 {
		return Caller{}, fault.Invalid("%s: expected one address host:port", relayedKey)
	}
	addr, err := netip.ParseAddrPort(strings.TrimSpace(values[0]))
	if err != nil {
		return Caller{}, fault.Invalid("%s: %q is not an address host:port", relayedKey, values[0])
	}
	return Caller{Addr: addr.String(), Via: c.Host().ID}, nil
}

package rpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"teleport/internal/fault"
)

// drainTime is how long a replaced connection stays open for the calls under way;
// no unary call lives longer.
const drainTime = callTimeout + 5*time.Second

// Conn is a client connection that can be renewed: a certificate is presented once
// per connection, so a process with a new certificate has to connect anew.
type Conn struct {
	cfg DialConfig

	mu       sync.Mutex
	current  *grpc.ClientConn
	draining map[*grpc.ClientConn]*time.Timer
	closed   bool
}

// NewConn makes a connection like Dial. The caller closes it.
func NewConn(cfg DialConfig) (*Conn, error) {
	cc, err := Dial(cfg)
	if err != nil {
		return nil, err
	}
	return &Conn{cfg: cfg, current: cc, draining: map[*grpc.ClientConn]*time.Timer{}}, nil
}

// Renew makes new calls use a new connection. Unary calls under way finish on the
// old one; streams on it are cut when it closes half a minute later.
func (c *Conn) Renew() error {
	cc, err := Dial(c.cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return closeAnd(cc, errConnClosed)
	}
	old := c.current
	c.current = cc
	c.draining[old] = time.AfterFunc(drainTime, func() { c.drained(old) })
	return nil
}

var errConnClosed = fault.Unreachable("the connection was closed")

func (c *Conn) drained(old *grpc.ClientConn) {
	c.mu.Lock()
	_, ok := c.draining[old]
	delete(c.draining, old)
	c.mu.Unlock()
	if ok {
		_ = old.Close()
	}
}

// Close closes the connection and what is left of replaced ones.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	for old, timer := range c.draining {
		timer.Stop()
		_ = old.Close()
	}
	c.draining = nil
	return c.current.Close()
}

func (c *Conn) conn() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errConnClosed
	}
	return c.current, nil
}

// Invoke makes a unary call; grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	cc, err := c.conn()
	if err != nil {
		return err
	}
	return cc.Invoke(ctx, method, args, reply, opts...)
}

// NewStream begins a stream; grpc.ClientConnInterface.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cc, err := c.conn()
	if err != nil {
		return nil, err
	}
	return cc.NewStream(ctx, desc, method, opts...)
}

func closeAnd(cc *grpc.ClientConn, err error) error {
	_ = cc.Close()
	return err
}

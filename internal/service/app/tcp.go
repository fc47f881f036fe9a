package app

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// serveTCP carries the bytes of a TCP application. There is no way to tell the user what
// went wrong: the log and the audit log know.
func (c *connection) serveTCP(ctx context.Context) {
	defer func() { _ = c.Close() }()
	log := c.s.cfg.Log.With("app", c.id.User.App.Name, "user", c.id.User.Name)
	if c.refused != nil {
		return
	}
	if !c.sv.target.tcp() {
		log.InfoContext(ctx, "refused bytes for a web application: its clients speak HTTP")
		return
	}
	target, err := c.s.dialer.dial(ctx, c.sv.target)
	if err != nil {
		c.s.metrics.requests.WithLabelValues("failed").Inc()
		c.sv.failed()
		log.WarnContext(ctx, "an application cannot be reached", "target", c.sv.target.addr, "error", err)
		if errors.Is(err, errNoTarget) {
			c.s.dialDenied(ctx, c, err)
		}
		return
	}
	c.s.metrics.requests.WithLabelValues("ok").Inc()
	c.session.requests.Add(1)
	defer func() { _ = target.Close() }()
	stop := make(chan struct{})
	var all sync.WaitGroup
	defer all.Wait()
	defer close(stop)
	all.Go(func() {
		select {
		case <-c.closed:
			_ = target.Close()
		case <-stop:
		}
	})
	var both sync.WaitGroup
	both.Go(func() { pipe(target, c) })
	pipe(c, target)
	both.Wait()
}

// pipe copies what comes from one side to the other, and its end. If it cannot be sent
// there any more, the connection is over.
func pipe(to, from net.Conn) {
	buf := buffers.Get()
	defer buffers.Put(buf)
	// Without the ways around the buffer: the connections count.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		if half.CloseWrite() == nil {
			return
		}
	}
	_ = to.Close()
	_ = from.Close()
}

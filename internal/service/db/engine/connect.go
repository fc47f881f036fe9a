package engine

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// Login is how an engine connects to a database.
type Login struct {
	// User is the database user to log in as.
	User string
	// Port is used if the URI of the database has none.
	Port string
	// Within bounds it, and Late is the error if that is not enough.
	Within time.Duration
	Late   error
}

// Connect dials the database and has enter do the rest: TLS by the configuration, which
// shows the agent as the user, and what the protocol has before the first request. The
// connection is closed if enter fails, and when ctx ends before enter has returned; then
// the error says why ctx did.
func Connect(ctx context.Context, host Host, l Login, enter func(ctx context.Context, raw net.Conn, config *tls.Config) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.Within, l.Late)
	defer cancel()
	raw, err := host.Dial(ctx, l.Port)
	if err != nil {
		return err
	}
	config, err := host.TLS(ctx, l.User)
	if err != nil {
		_ = raw.Close()
		return err
	}
	config.DynamicRecordSizingDisabled = true
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if err := enter(ctx, raw, config); err != nil {
		_ = raw.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

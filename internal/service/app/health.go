package app

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"

	"teleport/internal/hosted"
)

const (
	// healthPeriod is the pause between two looks at a target, healthAgain the shortest
	// one after a user could not get there.
	healthPeriod  = 30 * time.Second
	healthAgain   = 2 * time.Second
	healthTimeout = 5 * time.Second
	// maxHealth bounds what is told of a target.
	maxHealth = 200
)

// Watch looks at the target now and then, and has its health announced, until ctx ends.
func (sv *served) Watch(ctx context.Context) {
	for {
		state := sv.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if sv.SetHealth(ctx, state) && state != hosted.Healthy {
			sv.s.cfg.Log.WarnContext(ctx, "an application cannot be reached", "app", sv.name, "target", sv.target.addr, "error", state)
		}
		// Not all at the same time.
		pause := healthPeriod - time.Duration(rand.Int64N(int64(healthPeriod/4))) //nolint:gosec // nothing secret
		if !sv.pause(ctx, pause) {
			return
		}
	}
}

// pause waits until it is time to look again; false when ctx has ended.
func (sv *served) pause(ctx context.Context, long time.Duration) bool {
	whole, soon := time.NewTimer(long), time.NewTimer(healthAgain)
	defer whole.Stop()
	defer soon.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-whole.C:
		return true
	case <-soon.C:
	}
	select {
	case <-ctx.Done():
		return false
	case <-whole.C:
	case <-sv.check:
	}
	return true
}

// failed has the target looked at soon, since a user could not get there.
func (sv *served) failed() {
	select {
	case sv.check <- struct{}{}:
	default:
	}
}

// look connects to the target as a request would, and asks nothing.
func (sv *served) look(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	conn, err := sv.s.dialer.dial(ctx, sv.target)
	if err == nil {
		defer func() { _ = conn.Close() }()
		if sv.target.scheme == schemeHTTPS {
			err = tls.Client(conn, sv.target.tlsConfig()).HandshakeContext(ctx)
		}
	}
	if err != nil {
		return clip(err.Error(), maxHealth)
	}
	return hosted.Healthy
}

// clip shortens a text from elsewhere to one printable line.
func clip(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

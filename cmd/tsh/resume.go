package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/resume"
)

// resumeFlag adds the flag of commands that connect to servers.
func (a *app) resumeFlag(f *pflag.FlagSet) {
	f.BoolVar(&a.noResume, "no-resume", false, "end with the connection to the Proxy instead of resuming it [$TELEPORT_NO_RESUME]")
}

// resumption says how connections to servers go on when they are lost; nil is not at
// all.
func (a *app) resumption() *client.Resumption {
	switch strings.ToLower(screen.Env("TELEPORT_NO_RESUME")) {
	case "", "0", "f", "false", "n", "no", "off":
	default:
		return nil
	}
	if a.noResume {
		return nil
	}
	r := &client.Resumption{Refresh: func(ctx context.Context) (*client.Credentials, error) {
		s, err := a.session(ctx)
		if err != nil {
			return nil, err
		}
		return s.credentials, nil
	}}
	// It is for a person, and not for what reads the errors of a program.
	if screen.IsTerminal(a.Err) {
		r.Notify = func(host string, e resume.Event) { a.note(resumeNote(host, e)) }
	}
	return r
}

// resumeNote is what a person is told.
func resumeNote(host string, e resume.Event) string {
	if e.Back {
		return fmt.Sprintf("the connection to %s is back after %s", host, max(e.After.Round(time.Second), time.Second))
	}
	return fmt.Sprintf("the connection to %s was lost (%v): trying to resume it for up to %s", host, e.Err, e.Left)
}

// relay joins standard input and output with a node until either ends. A signal ends
// it in an orderly way: the node is not left waiting for somebody who does not come
// back. OpenSSH sends SIGHUP to its ProxyCommand whenever it ends, so that is silent.
func relay(ctx context.Context, a *app, node *client.NodeConn) error {
	own, stop := signal.NotifyContext(ctx, unix.SIGHUP)
	defer stop()
	end := context.AfterFunc(own, func() { _ = node.Close() })
	defer end()
	err := node.Relay(a.In, a.Out)
	if own.Err() != nil {
		return errors.Join(screen.Code(screen.ExitError), err)
	}
	return err
}

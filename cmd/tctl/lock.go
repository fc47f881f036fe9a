package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

type lockOptions struct {
	target                *typesv1.LockTarget
	message, ttl, expires string
}

func newLock(a *app) *cobra.Command {
	o := lockOptions{target: &typesv1.LockTarget{}}
	cmd := &cobra.Command{
		Use:   "lock --user=NAME",
		Short: "End and refuse what a user, a role, a login or a machine does",
		Long: "tctl lock ends live sessions of its target everywhere and refuses new ones, until the lock expires or is removed\n" +
			"with tctl rm lock/NAME. It prints the lock's name. With several targets all of them must hold, e.g. the login root\n" +
			"of one user.",
		Args: screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runLock(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.target.User, "user", "", "Teleport user to lock")
	f.StringVar(&o.target.Role, "role", "", "role whose holders to lock")
	f.StringVar(&o.target.Login, "login", "", "operating-system user to lock, on every server")
	f.StringVar(&o.target.ServerId, "server-id", "", "host id of a machine to lock")
	f.StringVar(&o.target.MfaDevice, "mfa-device", "", "id of a second factor; who logged in with it is locked")
	f.StringVar(&o.target.JoinToken, "join-token", "", "join token to lock, with the machines that joined with it; its id or its secret")
	f.StringVar(&o.message, "message", "", "what those who are refused are told")
	f.StringVar(&o.ttl, "ttl", "", "how long the lock is in force, e.g. 30m, 12h or 7d")
	f.StringVar(&o.expires, "expires", "", "until when the lock is in force, e.g. 2030-01-02T15:04:05Z")
	cmd.AddCommand(newLockLs(a))
	return cmd
}

// until returns when the lock is to expire; the zero time is never.
func (o lockOptions) until(now time.Time) (time.Time, error) {
	switch {
	case o.ttl != "" && o.expires != "":
		return time.Time{}, screen.Usage("tctl lock: give --ttl or --expires, not both")
	case o.ttl != "":
		d, err := types.ParseDuration(o.ttl)
		if err != nil {
			return time.Time{}, screen.Usage("tctl lock: --ttl: %w", err)
		}
		return now.Add(d), nil
	case o.expires != "":
		t, err := time.Parse(time.RFC3339, o.expires)
		if err != nil {
			return time.Time{}, screen.Usage("tctl lock: --expires: %q is not a time: write it like 2030-01-02T15:04:05Z", o.expires)
		}
		if !t.After(now) {
			return time.Time{}, screen.Usage("tctl lock: --expires: %s has passed", o.expires)
		}
		return t, nil
	}
	return time.Time{}, nil
}

func runLock(ctx context.Context, a *app, o lockOptions) error {
	if types.LockTargetText(o.target) == "" {
		return screen.Usage("tctl lock: say what to lock: --user, --role, --login, --server-id, --mfa-device or --join-token")
	}
	expires, err := o.until(a.now())
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		if o.target.JoinToken != "" {
			if o.target.JoinToken, err = tokenToLock(ctx, conn, o.target.JoinToken); err != nil {
				return err
			}
		}
		if id := o.target.ServerId; id != "" {
			if _, err := getResource(ctx, conn, types.KindInstance, id); errors.Is(err, fault.ErrNotFound) {
				return fault.NotFound("there is no machine with the host id %q: tctl nodes ls -v and tctl get instances show the ids", id)
			}
		}
		l := types.NewLock(o.target, o.message, "", a.now(), expires)
		if err := types.Check(l); err != nil {
			return err
		}
		made, _, err := create(ctx, conn, l, false)
		if err != nil {
			return err
		}
		return a.print("Created a lock with name %q.\n", made.GetMetadata().GetName())
	})
}

// tokenIDForm is that of the ids of tokens with a secret. A secret is never sent
// anywhere, and one of a token that is gone must not be taken for an id.
var tokenIDForm = regexp.MustCompile(`^[0-9a-f]{24}$`)

func tokenToLock(ctx context.Context, conn grpc.ClientConnInterface, given string) (string, error) {
	list, err := listTokens(ctx, conn)
	if err != nil {
		return "", err
	}
	known := func(id string) bool { return slices.ContainsFunc(list, func(t listedToken) bool { return t.ID == id }) }
	if known(given) || tokenIDForm.MatchString(given) {
		return given, nil
	}
	if derived := keys.DeriveToken(given).ID; known(derived) {
		return derived, nil
	}
	return "", fault.NotFound("there is no such token: tctl tokens ls shows the ids")
}

func newLockLs(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the locks and how many processes confirmed that they enforce them",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runLockLs(cmd.Context(), a, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runLockLs(ctx context.Context, a *app, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		list, err := client.List(ctx, conn, types.KindLock)
		if err != nil {
			return err
		}
		if format == screen.Text && len(list) == 0 {
			return a.print("No locks.\n")
		}
		return a.writeResources(format, list)
	})
}

// alertsOnStatus writes the alerts that administrators have to see.
func alertsOnStatus(ctx context.Context, a *app, conn grpc.ClientConnInterface) error {
	list, err := alerts(ctx, conn, a.now(), unacknowledged)
	if err != nil {
		// Who may see the status need not see the alerts, and an older Auth has none.
		return nil //nolint:nilerr // the status is what was asked for
	}
	for _, alert := range list {
		if alert.GetSpec().GetSeverity() != types.SeverityHigh {
			continue
		}
		_, err := fmt.Fprintf(a.Out, "\nALERT %s: %s\n", screen.Escape(alert.GetMetadata().GetName()), screen.EscapeLines(alert.GetSpec().GetMessage()))
		if err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	userv1 "teleport/api/user/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
)

const (
	defaultSignTTL = 12 * time.Hour
	// shortened is by how much the life must fall short of --ttl to be worth a word:
	// clocks differ.
	shortened = 2 * time.Minute
)

type signOptions struct {
	user, host, out, format string
	ttl                     time.Duration
	overwrite               bool
}

func newAuth(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "auth", Short: "Certificates for automation, databases and OpenSSH servers, and authorities to trust"}, newAuthSign(a), newAuthExport(a), newAuthCRL(a))
}

func newAuthSign(a *app) *cobra.Command {
	var o signOptions
	cmd := &cobra.Command{
		Use:   "sign {--user=NAME|--host=SERVER} --out=FILE",
		Short: "Write certificates of a user to a file, for tsh -i, tctl -i or OpenSSH; or those of a database server or an OpenSSH server",
		Args:  screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (o.user == "") == (o.host == "") || o.out == "" {
				return screen.Usage("tctl auth sign: --out and either --user or --host are needed")
			}
			if _, ok := databaseFormats()[o.format]; ok && o.host != "" {
				return runAuthSignDatabase(cmd.Context(), a, o, cmd.Flags().Changed("ttl"))
			}
			if o.host != "" {
				return runAuthSignHost(cmd.Context(), a, o, cmd.Flags().Changed("ttl"))
			}
			return runAuthSign(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "", "name of the user")
	f.StringVar(&o.host, "host", "", "names and addresses of a database server, comma-separated; with --format=openssh the id or host name of an OpenSSH server, and more names for its certificate")
	f.StringVarP(&o.out, "out", "o", "", "file to write")
	f.DurationVar(&o.ttl, "ttl", defaultSignTTL, "life of the certificates; of a database server 90 days and of an OpenSSH server a year unless it is given")
	f.StringVar(&o.format, "format", client.FormatFile, "file (everything in one) or openssh (a key and FILE-cert.pub); of a database server "+databaseFormatNames)
	f.BoolVar(&o.overwrite, "overwrite", false, "replace existing files")
	return cmd
}

func runAuthSign(ctx context.Context, a *app, o signOptions) error {
	if o.format != client.FormatFile && o.format != client.FormatOpenSSH {
		return screen.Usage("unknown format %q: use %s or %s", o.format, client.FormatFile, client.FormatOpenSSH)
	}
	keys, err := client.NewSingleKey()
	if err != nil {
		return err
	}
	public, err := keys.Public()
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		req := &userv1.SignUserRequest{User: o.user, Keys: public, Ttl: durationpb.New(o.ttl)}
		resp, err := userv1.NewUserServiceClient(conn).SignUser(ctx, req)
		if err != nil {
			return fmt.Errorf("sign certificates for %q: %w", o.user, err)
		}
		creds, err := client.NewCredentials(keys, resp.GetCertificates())
		if err != nil {
			return err
		}
		files, err := creds.Export(o.out, o.format, o.overwrite)
		if err != nil {
			return err
		}
		for _, name := range files {
			if err := a.print("The credentials have been written to %s\n", screen.Escape(name)); err != nil {
				return err
			}
		}
		if left := creds.Expires().Sub(a.now()); left < o.ttl-shortened {
			_, _ = fmt.Fprintf(a.Err, "--ttl=%s was shortened to %s: neither a role of %s nor the cluster allows more.\n", o.ttl, left.Round(time.Minute), screen.Escape(o.user))
		}
		return a.print("They are good until %s\n", creds.Expires().UTC().Format(time.RFC3339))
	})
}

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/version"
)

func newVersion(a *app) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of tsh and, if logged in, of the Proxy",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runVersion(cmd.Context(), a, only) },
	}
	cmd.Flags().BoolVar(&only, "client", false, "show only the version of tsh")
	return cmd
}

func runVersion(ctx context.Context, a *app, only bool) error {
	if err := a.print("%s\n", version.ClientLine()); err != nil || only {
		return err
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	profile, err := home.Find(a.proxyAddr(), "")
	if fault.Code(err) == client.CodeNotLoggedIn {
		return nil // there is nothing to add
	}
	if err != nil {
		return err
	}
	proxy, err := client.ConnectProxy(ctx, client.ProxyConfig{
		Addr: profile.Proxy, Known: home.Pins(profile.Proxy), Insecure: a.insecure, Log: screen.Logger(a.debug, a.Err),
	})
	if err != nil {
		return err
	}
	ping, err := proxy.Ping(ctx)
	if err != nil {
		return fmt.Errorf("version of the Proxy: %w", err)
	}
	return a.print("Proxy version: %s\nProxy: %s\n", screen.Escape(ping.ServerVersion), screen.Escape(profile.Proxy))
}

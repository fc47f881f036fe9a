package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

type proxyAppOptions struct {
	choosing
	listenAt
}

func newProxyApp(a *app) *cobra.Command {
	var o proxyAppOptions
	cmd := &cobra.Command{
		Use:   "app [name]",
		Short: "Let programs on this machine reach an application, at a port that stays the same",
		Long: "Listen on 127.0.0.1 and lead what connects there to an application, until tsh is interrupted. The port is the same each\n" +
			"time, so that programs can be set up once; --port gives another.\n\n" +
			"Programs need no certificate. To an HTTP application only requests for localhost are passed on, and none that pages of\n" +
			"other web sites make.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.given(args, "application"); err != nil {
				return err
			}
			return runProxyApp(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	o.flags(f, "application")
	f.StringVarP(&o.port, "port", "p", "", "port on 127.0.0.1, and perhaps that of the application: PORT[:TARGET]; 0 is any that is free")
	return cmd
}

func runProxyApp(ctx context.Context, a *app, o proxyAppOptions) error {
	port, target, targeted := strings.Cut(o.port, ":")
	if targeted {
		o.port = port
		if port == "" {
			o.port = "0"
		}
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	app, err := one(ctx, o.choosing, types.KindAppServer, "application", func(ctx context.Context, choice client.Choice) ([]*typesv1.App, error) {
		return a.apps(ctx, s, choice)
	})
	if err != nil {
		return err
	}
	name := app.GetMetadata().GetName()
	if targeted && target != targetPort(app) {
		return fault.Invalid("application %q has no port %q: it is reached at %s", name, target, app.GetSpec().GetUri())
	}
	reach := a.reach(s, func(ctx context.Context, c *client.Client) (tls.Certificate, error) { return c.CertifyApp(ctx, name) })
	// What can be wrong is better said before anything connects.
	if _, _, err := reach.Get(ctx); err != nil {
		return err
	}
	ln, err := o.bind(ctx, a, s.profile, types.KindApp, name)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	go reach.Watch(ctx)
	dial := appDial(reach, name)
	if isTCP(app) {
		if err := a.print("Proxying connections to %s on %s\n", name, ln.Shown); err != nil {
			return err
		}
		proxy := &client.LocalProxy{Note: a.note, Dial: func(ctx context.Context) (net.Conn, error) { return dial(ctx, client.ALPNTCP) }}
		return proxy.Serve(ctx, ln)
	}
	if err := a.print("Proxying connections to %s on http://%s\n", name, ln.Shown); err != nil {
		return err
	}
	proxy := &client.LocalApp{Dial: dial, Note: a.note}
	return proxy.Serve(ctx, ln)
}

// appDial connects to the agent of an application, asking for an ALPN protocol.
func appDial(reach *client.Reach, name string) func(ctx context.Context, alpn string) (net.Conn, error) {
	to := client.ResourceDial{Service: types.RoleApp, Resource: name}
	return func(ctx context.Context, alpn string) (net.Conn, error) {
		return reach.Dial(ctx, func(ctx context.Context, c *client.Client, cert tls.Certificate) (net.Conn, error) {
			conn, err := c.DialRouted(ctx, to, cert, alpn)
			if err != nil {
				return nil, err // not a nil *tls.Conn in an interface
			}
			return conn, nil
		})
	}
}

// targetPort is the port at which the agent reaches an application.
func targetPort(app *typesv1.App) string {
	u, err := url.Parse(app.GetSpec().GetUri())
	switch {
	case err != nil:
		return ""
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}

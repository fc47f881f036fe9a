package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newApps(a *app) *cobra.Command {
	cmd := screen.Group(&cobra.Command{Use: "apps", Short: "List applications, and get certificates for them"},
		newAppsLs(a), newAppsLogin(a), newAppsLogout(a), newAppsConfig(a))
	cmd.Aliases = []string{"app"}
	return cmd
}

func newAppsLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the applications that you may use, e.g. tsh apps ls env=prod",
		Long:  "List the applications that your roles let you use. Labels, --query and --search choose among them, as for tsh ls.",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return runAppsLs(cmd.Context(), a, o)
		},
	}
	o.flags(cmd, "applications", screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show where the agents reach the applications, too")
	return cmd
}

func runAppsLs(ctx context.Context, a *app, o lsOptions) error {
	choice, err := o.choice(types.KindAppServer)
	if err != nil {
		return err
	}
	lists, missing, err := listings(ctx, a, o, func(ctx context.Context, s *session) ([]*typesv1.App, error) {
		return a.apps(ctx, s, choice)
	})
	if err != nil {
		return err
	}
	titles := []string{"Application", "Description", "Type", "Public Address", "Labels"}
	if o.verbose {
		titles = slices.Insert(titles, 3, "URI")
	}
	err = writeListings(a, o, lists, titles, func(p client.Profile, app *typesv1.App) []string {
		name, spec := app.GetMetadata().GetName(), app.GetSpec()
		row := []string{a.marked(p, types.KindApp, name), app.GetMetadata().GetDescription(), appType(app), spec.GetPublicAddr(), screen.Labels(app.GetMetadata().GetLabels())}
		if o.verbose {
			row = slices.Insert(row, 3, spec.GetUri())
		}
		return row
	})
	if err != nil {
		return err
	}
	return missing
}

// marked puts a mark before the name of what somebody is logged in to.
func (a *app) marked(p client.Profile, kind, name string) string {
	if home, err := a.home(); err == nil && a.identityFile() == "" {
		if r, err := home.FindRouted(p, kind, name); err == nil && a.now().Before(r.Expires) {
			return "> " + name
		}
	}
	return name
}

func appType(app *typesv1.App) string {
	if isTCP(app) {
		return "TCP"
	}
	return "HTTP"
}

func isTCP(app *typesv1.App) bool { return strings.HasPrefix(app.GetSpec().GetUri(), "tcp://") }

func newAppsLogin(a *app) *cobra.Command {
	var c choosing
	cmd := &cobra.Command{
		Use:   "login [name]",
		Short: "Get a certificate for an application, for curl and other programs that can show one",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.given(args, "application"); err != nil {
				return err
			}
			return runAppsLogin(cmd.Context(), a, c)
		},
	}
	f := cmd.Flags()
	c.flags(f, "application")
	for _, name := range []string{"aws-role", "azure-identity", "gcp-service-account"} {
		notYet(f, name, "", "there is no access to consoles of clouds")
	}
	notYet(f, "target-port", "", "an application has one port")
	return cmd
}

func runAppsLogin(ctx context.Context, a *app, choose choosing) error {
	home, s, c, err := a.withHome(ctx, choose.cluster)
	if err != nil {
		return err
	}
	app, err := one(ctx, choose, types.KindAppServer, "application", func(ctx context.Context, choice client.Choice) ([]*typesv1.App, error) {
		return a.apps(ctx, s, choice)
	})
	if err != nil {
		return err
	}
	name := app.GetMetadata().GetName()
	cert, err := c.CertifyApp(ctx, name)
	if err != nil {
		return err
	}
	if err := home.SaveRouted(ctx, s.profile, types.KindApp, name, cert, false); err != nil {
		return err
	}
	until := cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
	if isTCP(app) {
		return a.print("Logged into TCP app %q, until %s. Start a local proxy for it:\n\n  tsh proxy app %s\n\nand connect any program to the address that it shows.\n",
			name, until, name)
	}
	conf := a.appConfig(ctx, home, s, name, app.GetSpec().GetPublicAddr())
	return a.print("Logged into app %q, until %s. Example curl command:\n\n%s\n", name, until, conf.Curl)
}

// withHome returns the home, the session and a client of it, for commands that keep
// files for other programs.
func (a *app) withHome(ctx context.Context, cluster string) (*client.Home, *session, *client.Client, error) {
	if a.identityFile() != "" {
		return nil, nil, nil, screen.Usage("this needs a login: it does not go with an identity file")
	}
	home, err := a.home()
	if err != nil {
		return nil, nil, nil, err
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	return home, s, c, s.inCluster(cluster)
}

func newAppsLogout(a *app) *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:   "logout [name]",
		Short: "Delete the certificate for an application, or those for all",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, _, err := a.dropRouted(cmd.Context(), cluster, types.KindApp, strings.Join(args, ""))
			if err != nil {
				return err
			}
			for _, name := range names {
				if err := a.print("Logged out of app %q\n", name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

// dropRouted deletes the certificate for a resource, or those for all of a kind, and
// returns the names.
func (a *app) dropRouted(ctx context.Context, cluster, kind, name string) (names []string, p client.Profile, err error) {
	if a.identityFile() != "" {
		return nil, p, screen.Usage("this needs a login: it does not go with an identity file")
	}
	home, err := a.home()
	if err != nil {
		return nil, p, err
	}
	if p, err = home.Find(a.proxyAddr(), a.userName()); err != nil {
		return nil, p, err
	}
	if err := (&session{profile: p}).inCluster(cluster); err != nil {
		return nil, p, err
	}
	if name != "" {
		found, err := home.RemoveRouted(ctx, p, kind, name)
		if err == nil && !found {
			err = fault.NotFound("not logged in to %q", name)
		}
		return []string{name}, p, err
	}
	all, err := home.Routed(p, kind)
	if err != nil {
		return nil, p, err
	}
	for _, r := range all {
		if _, err := home.RemoveRouted(ctx, p, kind, r.Name()); err != nil {
			return names, p, err
		}
		names = append(names, r.Name())
	}
	return names, p, nil
}

// appConfig is how other programs reach an application with a certificate.
type appConfig struct {
	Name string `json:"name" yaml:"name"`
	URI  string `json:"uri" yaml:"uri"`
	CA   string `json:"ca" yaml:"ca"`
	Cert string `json:"cert" yaml:"cert"`
	Key  string `json:"key" yaml:"key"`
	Curl string `json:"curl" yaml:"curl"`
}

// appConfig says how an application is reached. If the Proxy shows a certificate of the
// cluster's own authority, curl has to know that.
func (a *app) appConfig(ctx context.Context, home *client.Home, s *session, name, addr string) appConfig {
	paths := home.RoutedPaths(s.profile, types.KindApp, name)
	if addr == "" {
		addr = name + "." + s.profile.Host()
	}
	_, port, err := net.SplitHostPort(s.profile.Proxy)
	if err != nil {
		port = "443"
	}
	out := appConfig{
		Name: name, CA: paths.CA, Cert: paths.Cert, Key: paths.Key,
		URI: (&url.URL{Scheme: "https", Host: net.JoinHostPort(addr, port)}).String(),
	}
	lines := []string{"curl", "  --cert " + screen.ShellQuote(out.Cert), "  --key " + screen.ShellQuote(out.Key), "  " + screen.ShellQuote(out.URI)}
	if client.OwnAuthority(ctx, s.profile.Proxy, addr, s.credentials.Trust) {
		lines = slices.Insert(lines, 1, "  --cacert "+screen.ShellQuote(out.CA))
	}
	out.Curl = strings.Join(lines, " \\\n")
	return out
}

func newAppsConfig(a *app) *cobra.Command {
	var format, cluster string
	cmd := &cobra.Command{
		Use:   "config [name]",
		Short: "Print how other programs reach an application: address, files, a curl command",
		Long:  "Print how other programs reach an application that you are logged in to (see tsh apps login). With one the name may be left out.",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runAppsConfig(cmd.Context(), a, strings.Join(args, ""), format, cluster)
		},
	}
	screen.FormatFlag(cmd, &format, screen.Text, "uri", "ca", "cert", "key", "curl", screen.JSON, screen.YAML)
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

func runAppsConfig(ctx context.Context, a *app, name, format, cluster string) error {
	home, s, _, err := a.withHome(ctx, cluster)
	if err != nil {
		return err
	}
	r, err := a.loggedIn(home, s.profile, types.KindApp, name)
	if err != nil {
		return err
	}
	conf := a.appConfig(ctx, home, s, r.Name(), r.User.App.PublicAddr)
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, conf)
	case screen.YAML:
		return screen.WriteYAML(a.Out, conf)
	case screen.Text:
		return screen.Pairs(a.Out, "", [2]string{"Name:", conf.Name}, [2]string{"URI:", conf.URI},
			[2]string{"CA:", conf.CA}, [2]string{"Cert:", conf.Cert}, [2]string{"Key:", conf.Key})
	}
	return a.print("%s\n", map[string]string{"uri": conf.URI, "ca": conf.CA, "cert": conf.Cert, "key": conf.Key, "curl": conf.Curl}[format])
}

// loggedIn returns the certificate for a resource, or the only one that there is; it
// must be good.
func (a *app) loggedIn(home *client.Home, p client.Profile, kind, name string) (client.Routed, error) {
	what, command := "an application", "tsh apps login"
	if kind == types.KindDatabase {
		what, command = "a database", "tsh db login"
	}
	if name == "" {
		all, err := home.Routed(p, kind)
		if err != nil {
			return client.Routed{}, err
		}
		if len(all) == 0 {
			return client.Routed{}, fault.NotFound("not logged in to %s: run %s NAME", what, command)
		}
		if len(all) > 1 {
			names := make([]string, len(all))
			for i, r := range all {
				names[i] = r.Name()
			}
			return client.Routed{}, screen.Usage("say which: %s", strings.Join(names, ", "))
		}
		name = all[0].Name()
	}
	r, err := home.FindRouted(p, kind, name)
	if err != nil {
		return r, fmt.Errorf("%w: run %s %s", err, command, name)
	}
	if a.now().After(r.Expires) {
		return r, fault.Unauthenticated("the certificate for %q expired at %s: run %s %s", name, r.Expires.UTC().Format(time.RFC3339), command, name)
	}
	return r, nil
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/pflag"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// choosing is how a command line says which application or database it means: by name,
// or by labels and a query that only one meets.
type choosing struct {
	name, labels, query, cluster string
}

func (c *choosing) flags(f *pflag.FlagSet, what string) {
	f.StringVar(&c.labels, "labels", "", "choose the "+what+" by labels, e.g. env=prod,tier=1, in place of the name")
	f.StringVar(&c.query, "query", "", "choose the "+what+` by a query, e.g. 'labels["env"] == "prod"', in place of the name`)
	c.clusterFlag(f)
}

func (c *choosing) clusterFlag(f *pflag.FlagSet) {
	f.StringVarP(&c.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
}

// given takes the name from the arguments.
func (c *choosing) given(args []string, what string) error {
	c.name = strings.Join(args, "")
	if c.name == "" && c.labels == "" && c.query == "" {
		return screen.Usage("say which %s: give its name, --labels or --query", what)
	}
	return nil
}

// one returns what is meant out of those that the user may use.
func one[T types.Resource](ctx context.Context, c choosing, kind, what string, list func(context.Context, client.Choice) ([]T, error)) (T, error) {
	var none T
	choice, err := client.NewChoice(kind, c.labels, c.query, "")
	if err != nil {
		return none, err
	}
	choice.Usable = true
	if c.name != "" {
		choice = choice.Narrowed(c.name)
	}
	found, err := list(ctx, choice)
	if err != nil {
		return none, err
	}
	var match []T
	var names []string
	for _, r := range found {
		if name := r.GetMetadata().GetName(); c.name == "" || c.name == name {
			match, names = append(match, r), append(names, name)
		}
	}
	switch {
	case len(match) == 1:
		return match[0], nil
	case len(match) > 1:
		return none, fault.Invalid("%d %ss are meant, say which by its name: %s", len(match), what, strings.Join(names, ", "))
	case c.name != "":
		return none, fault.NotFound("there is no %s %q that you may use: see tsh %s ls", what, c.name, group(kind))
	}
	return none, fault.NotFound("there is no %s with these labels that you may use: see tsh %s ls", what, group(kind))
}

// group is the command that is about resources of the kind.
func group(kind string) string {
	if kind == types.KindAppServer {
		return "apps"
	}
	return "db"
}

// apps lists the applications of a cluster, once each however many serve it; labels are
// those that decide about access.
func (a *app) apps(ctx context.Context, s *session, choice client.Choice) ([]*typesv1.App, error) {
	c, err := a.clientOf(s)
	if err != nil {
		return nil, err
	}
	servers, err := c.Apps(ctx, choice)
	if err != nil {
		return nil, err
	}
	var out []*typesv1.App
	for _, server := range servers {
		app := server.GetSpec().GetApp()
		if len(out) > 0 && out[len(out)-1].GetMetadata().GetName() == app.GetMetadata().GetName() {
			continue
		}
		app.Metadata.Labels = types.AppServerLabels(server)
		if app.GetSpec().GetPublicAddr() == "" {
			app.Spec.PublicAddr = app.GetMetadata().GetName() + "." + s.profile.Host()
		}
		out = append(out, app)
	}
	return out, nil
}

// databases lists the databases of a cluster likewise.
func (a *app) databases(ctx context.Context, s *session, choice client.Choice) ([]*typesv1.Database, error) {
	c, err := a.clientOf(s)
	if err != nil {
		return nil, err
	}
	servers, err := c.Databases(ctx, choice)
	if err != nil {
		return nil, err
	}
	var out []*typesv1.Database
	for _, server := range servers {
		db := server.GetSpec().GetDatabase()
		if len(out) > 0 && out[len(out)-1].GetMetadata().GetName() == db.GetMetadata().GetName() {
			continue
		}
		db.Metadata.Labels = types.DatabaseServerLabels(server)
		out = append(out, db)
	}
	return out, nil
}

// reach returns what keeps a resource in reach for as long as the command runs.
func (a *app) reach(s *session, certify func(context.Context, *client.Client) (tls.Certificate, error)) *client.Reach {
	return client.NewReach(func(ctx context.Context) (*client.Client, time.Time, error) {
		now, err := a.again(ctx, s)
		if err != nil {
			return nil, time.Time{}, err
		}
		c, err := a.clientOf(now)
		return c, now.credentials.Expires(), err
	}, certify, a.note)
}

// again reads the credentials of a session again: there may be a new login.
func (a *app) again(ctx context.Context, s *session) (*session, error) {
	if a.identityFile() != "" {
		return a.session(ctx)
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	creds, err := home.Credentials(ctx, s.profile)
	if err != nil {
		return nil, err
	}
	return &session{s.profile, creds}, nil
}

// listenAt is how a command line says where a local proxy listens.
type listenAt struct {
	port     string
	listen   string
	anywhere bool
}

// bind listens where it was asked for, or at the port that the resource always has on
// this machine.
func (l listenAt) bind(ctx context.Context, a *app, p client.Profile, kind, name string) (*client.Listener, error) {
	if l.listen != "" {
		if l.port != "" {
			return nil, screen.Usage("--listen says the port, too: give it or --port")
		}
		return client.ListenLocal(l.listen, l.anywhere)
	}
	if l.port != "" {
		return client.ListenLocal(net.JoinHostPort("127.0.0.1", l.port), false)
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	port, err := home.LocalPort(ctx, p, kind, name)
	if err != nil {
		return nil, err
	}
	ln, err := client.ListenLocal(fmt.Sprintf("127.0.0.1:%d", port), false)
	if err != nil {
		return nil, fmt.Errorf("%w: this is the port of %q on this machine, perhaps another tsh serves it already; --port gives another one for now", err, name)
	}
	return ln, nil
}

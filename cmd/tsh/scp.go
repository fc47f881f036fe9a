package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/client/transfer"
)

type scpOptions struct {
	recursive, preserve, quiet bool
	port                       uint16
	cluster, jump              string
	paths                      []string
}

func newScp(a *app) *cobra.Command {
	var o scpOptions
	cmd := &cobra.Command{
		Use:   "scp [flags] from... to",
		Short: "Copy files from and to servers",
		Long: "Copy files. A file on a server is written [user@]host:path, where host may also be a host id, or label=value;\n" +
			"to copy to all servers with a label, name it as the target. A path that does not begin with / is in the user's\n" +
			"home directory. From one server to another, the files pass through this machine.\n\n" +
			"  tsh scp -r site root@web-1:/srv/\n" +
			"  tsh scp 'root@web-1:/var/log/*.log' logs/\n" +
			"  tsh scp hosts root@env=prod:/etc/hosts",
		Args: screen.Args(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.paths = args
			return runScp(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.recursive, "recursive", "r", false, "copy directories with all that is in them")
	f.BoolVarP(&o.preserve, "preserve", "p", false, "keep permissions and the time of change")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.Uint16VarP(&o.port, "port", "P", 0, "port of the server; servers behind a tunnel have none")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	jumpFlag(f, &o.jump)
	a.resumeFlag(f)
	return cmd
}

// place is one end of a copy as it is written.
type place struct {
	// remote says whether target is set.
	remote bool
	target target
	path   string
}

// parsePlace reads path or [user@]host:path: a colon before any slash makes a host of
// what is before it. Write ./a:b for a file with a colon in its name.
func parsePlace(s string) (place, error) {
	colon := strings.IndexByte(s, ':')
	if slash := strings.IndexByte(s, '/'); colon < 0 || slash >= 0 && slash < colon {
		if s == "" {
			return place{}, screen.Usage("a path is empty")
		}
		return place{path: s}, nil
	}
	t, err := parseTarget(s[:colon], false)
	if err != nil {
		return place{}, err
	}
	path, err := transfer.Home(s[colon+1:])
	return place{remote: true, target: t, path: path}, err
}

func runScp(ctx context.Context, a *app, o scpOptions) error {
	places := make([]place, len(o.paths))
	remote := false
	for i, s := range o.paths {
		var err error
		if places[i], err = parsePlace(s); err != nil {
			return err
		}
		remote = remote || places[i].remote
	}
	if !remote {
		return screen.Usage("none of the paths is on a server, written [user@]host:path: use cp")
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	x := &copying{app: a, client: c, session: s, options: o, sides: map[string]*transfer.Remote{}}
	defer x.close()
	stop := context.AfterFunc(ctx, x.close)
	defer stop()
	failed, err := x.run(ctx, places[:len(places)-1], places[len(places)-1])
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case failed > 0:
		return screen.Code(screen.ExitError)
	}
	return nil
}

// copying is one tsh scp.
type copying struct {
	app     *app
	client  *client.Client
	session *session
	options scpOptions

	mu    sync.Mutex
	sides map[string]*transfer.Remote
	conns []*ssh.Client
}

// close hangs up everywhere.
func (x *copying) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.conns {
		_ = c.Close()
	}
}

// hosts returns the servers that a target means. The server that is jumped from last
// finds the others by name: it knows no labels.
func (x *copying) hosts(ctx context.Context, t target) ([]host, error) {
	if x.options.jump != "" && t.byLabel() {
		return nil, screen.Usage("-J leads to one host by its name, not to those with %s", t.host)
	}
	return x.app.hosts(ctx, x.client, t)
}

// side connects to a host, once.
func (x *copying) side(ctx context.Context, login string, h host) (*transfer.Remote, error) {
	key := login + "@" + strings.ToLower(h.id)
	x.mu.Lock()
	known := x.sides[key]
	x.mu.Unlock()
	if known != nil {
		return known, nil
	}
	conn, err := x.app.connect(ctx, x.client, x.session, x.options.jump, login, h.id, uint32(x.options.port))
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	x.conns = append(x.conns, conn)
	x.mu.Unlock()
	side, err := transfer.Dial(conn)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.title, err)
	}
	x.mu.Lock()
	x.sides[key] = side
	x.mu.Unlock()
	return side, nil
}

// run copies to each host of the target.
func (x *copying) run(ctx context.Context, from []place, to place) (failed int, err error) {
	sources, err := x.sources(ctx, from)
	if err != nil {
		return 0, err
	}
	if !to.remote {
		bar := x.app.progress(x.options.quiet)
		defer bar.stop()
		return x.copy(ctx, bar, sources, transfer.Local{}, to.path, "")
	}
	login, err := x.app.loginFor(to.target, x.session)
	if err != nil {
		return 0, err
	}
	hosts, err := x.hosts(ctx, to.target)
	if err != nil {
		return 0, err
	}
	bar := x.app.progress(x.options.quiet)
	defer bar.stop()
	if len(hosts) == 1 {
		side, err := x.side(ctx, login, hosts[0])
		if err != nil {
			return 0, err
		}
		return x.copy(ctx, bar, sources, side, to.path, "")
	}
	return x.toMany(ctx, bar, sources, login, hosts, to.path), nil
}

// toMany copies to several hosts at the same time.
func (x *copying) toMany(ctx context.Context, bar *progress, sources []transfer.Source, login string, hosts []host, name string) int {
	var failed atomic.Int64
	var group errgroup.Group
	group.SetLimit(maxAtOnce)
	for _, h := range hosts {
		group.Go(func() error {
			n := 0
			side, err := x.side(ctx, login, h)
			if err == nil {
				n, err = x.copy(ctx, bar, sources, side, name, h.title)
			}
			if err != nil && ctx.Err() == nil {
				bar.say(h.title + ": " + err.Error())
				n = 1
			}
			failed.Add(int64(n))
			return nil
		})
	}
	_ = group.Wait()
	return int(failed.Load())
}

// sources finds what is to be copied; patterns are for the server to match.
func (x *copying) sources(ctx context.Context, from []place) ([]transfer.Source, error) {
	var out []transfer.Source
	for _, p := range from {
		if !p.remote {
			out = append(out, transfer.Source{Side: transfer.Local{}, Name: p.path})
			continue
		}
		login, err := x.app.loginFor(p.target, x.session)
		if err != nil {
			return nil, err
		}
		hosts, err := x.hosts(ctx, p.target)
		if err != nil {
			return nil, err
		}
		if len(hosts) > 1 {
			return nil, screen.Usage("%s means %d servers, whose files would take each other's place: name one", p.target.host, len(hosts))
		}
		side, err := x.side(ctx, login, hosts[0])
		if err != nil {
			return nil, err
		}
		names, err := side.Glob(p.path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			out = append(out, transfer.Source{Side: side, Name: name})
		}
	}
	return out, nil
}

// copy copies to one side.
func (x *copying) copy(ctx context.Context, bar *progress, sources []transfer.Source, to transfer.Side, name, title string) (int, error) {
	job := transfer.Job{
		Recursive: x.options.recursive, Preserve: x.options.preserve, Meter: bar.meter,
		Problem: func(name string, err error) {
			if ctx.Err() != nil {
				return // interrupted: all that is under way fails
			}
			bar.say(strings.TrimPrefix(title+": ", ": ") + name + ": " + err.Error())
		},
	}
	return job.Copy(ctx, sources, to, name)
}

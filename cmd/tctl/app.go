package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/version"
)

// app is what all commands share: the global flags and the streams.
type app struct {
	screen.Streams
	now func() time.Time

	authServer, configPath, identity string
	debug                            bool
}

// run runs one command line and returns the exit code.
func run(args []string, s screen.Streams) int {
	a := &app{Streams: s, now: time.Now}
	return screen.Execute(a.root(), args, s)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tctl",
		Short: "Administer a Teleport cluster",
		Long: "tctl administers a Teleport cluster. It connects, in this order: with an identity file (-i, with --auth-server);\n" +
			"on the Auth Service's own host through its local socket; with the credentials of tsh login.\n\n" +
			"Exit codes: 0 success, 1 failure, 2 a mistake on the command line.",
	}
	f := root.PersistentFlags()
	f.StringVar(&a.authServer, "auth-server", "", "address of a Proxy or of the Auth Service, host:port [$TELEPORT_AUTH_SERVER]")
	f.StringVarP(&a.configPath, "config", "c", "", "configuration file of the Auth Service on this host [$TELEPORT_CONFIG_FILE]")
	f.StringVarP(&a.identity, "identity", "i", "", "identity file; needs --auth-server [$TELEPORT_IDENTITY_FILE]")
	f.BoolVarP(&a.debug, "debug", "d", false, "write what is done to standard error")
	screen.Group(root, newTokens(a), newNodes(a), newApps(a), newDatabases(a), newUsers(a), newCreate(a), newGet(a), newEdit(a), newRm(a),
		newListKinds(a), newLock(a), newAlerts(a), newStatus(a), newAuth(a), newAudit(a), newAccess(a), newBoundKeypair(a), newVersion(a))
	help := root.RunE
	showVersion := root.Flags().Bool("version", false, "show the version of tctl")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *showVersion {
			return a.print("%s\n", version.Line())
		}
		return help(cmd, args)
	}
	return root
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of tctl",
		Args:  screen.Args(0, 0),
		RunE:  func(*cobra.Command, []string) error { return a.print("%s\n", version.Line()) },
	}
}

func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.Out, format, args...)
	return err
}

func or(flag, env string) string {
	if flag != "" {
		return flag
	}
	return screen.Env(env)
}

// with runs f with a connection to the Auth API.
func (a *app) with(ctx context.Context, f func(conn grpc.ClientConnInterface) error) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return f(conn)
}

// connect chooses the way to the Auth Service.
func (a *app) connect(ctx context.Context) (*grpc.ClientConn, error) {
	server := or(a.authServer, "TELEPORT_AUTH_SERVER")
	log := screen.Logger(a.debug, a.Err)
	if path := or(a.identity, "TELEPORT_IDENTITY_FILE"); path != "" {
		if server == "" {
			return nil, screen.Usage("an identity file does not say where the cluster is: give --auth-server=HOST:PORT too")
		}
		creds, err := client.ReadIdentity(path)
		if err != nil {
			return nil, err
		}
		log.DebugContext(ctx, "connecting with an identity file", "server", server)
		return a.dial(server, creds)
	}
	var unusable error
	if server == "" {
		var socket string
		var err error
		if socket, unusable, err = a.localSocket(); err != nil {
			return nil, err
		}
		if socket != "" {
			log.DebugContext(ctx, "connecting to the local auth service", "socket", socket)
			return dialLocal(ctx, socket)
		}
	}
	home, err := client.OpenHome(screen.Env("TELEPORT_HOME"))
	if err != nil {
		return nil, err
	}
	profile, err := home.Find(screen.Env("TELEPORT_PROXY"), "")
	if errors.Is(err, fault.ErrNotFound) {
		return nil, noWay(unusable)
	}
	if err != nil {
		return nil, err
	}
	creds, err := home.Credentials(ctx, profile)
	if err != nil {
		return nil, err
	}
	if server == "" {
		server = profile.Proxy
	}
	log.DebugContext(ctx, "connecting with the credentials of tsh", "server", server, "user", profile.User)
	return a.dial(server, creds)
}

func (a *app) dial(server string, creds *client.Credentials) (*grpc.ClientConn, error) {
	c, err := client.New(client.Config{Proxy: server, Credentials: creds, Now: a.now, Log: screen.Logger(a.debug, a.Err)})
	if err != nil {
		return nil, err
	}
	return c.Auth()
}

// noWay says how there would be a way; unusable is why the configuration file is
// none, or nil.
func noWay(unusable error) error {
	const ways = "run tsh login --proxy=HOST first, or run tctl on the Auth Service's host as the user it runs as, " +
		"or give -i FILE and --auth-server=HOST:PORT"
	if unusable != nil {
		return fault.New(fault.ErrUnauthenticated, "no way to the cluster: the configuration file cannot be used (%w); %s", unusable, ways).
			WithCode(client.CodeNotLoggedIn)
	}
	return fault.New(fault.ErrUnauthenticated, "no way to the cluster: %s", ways).WithCode(client.CodeNotLoggedIn)
}

// localSocket returns the socket of the Auth Service of this host, or "" if there
// is none to use. A configuration that others keep, or that is for another service,
// does not stop somebody who is logged in: why it was not used is unusable.
func (a *app) localSocket() (socket string, unusable, err error) {
	path := or(a.configPath, "TELEPORT_CONFIG_FILE")
	explicit := a.configPath != ""
	if path == "" {
		path = config.DefaultPath
	}
	if !explicit && !exists(path) {
		socket := filepath.Join(config.DefaultDataDir, socketName)
		if !exists(socket) {
			socket = ""
		}
		return socket, nil, nil
	}
	cfg, err := config.Load(path)
	switch {
	case err == nil && cfg.Auth.Enabled:
		return filepath.Join(cfg.DataDir, socketName), nil, nil
	case err == nil && explicit:
		return "", nil, fault.Invalid("%s does not run the Auth Service (auth_service.enabled is not yes), so tctl cannot use it", path)
	case err == nil:
		return "", nil, nil
	case explicit:
		return "", nil, err
	}
	return "", err, nil
}

// exists reports whether there is something at path, even if it may not be read.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// socketName is the Auth Service's socket in its data directory.
const socketName = "auth.sock"

// dialLocal connects to the socket, so that a service that is not running is told
// from one that refuses.
func dialLocal(ctx context.Context, socket string) (*grpc.ClientConn, error) {
	var d net.Dialer
	probe, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.Denied("may not use %s: run tctl as the user that the Auth Service runs as (sudo tctl ...)", socket)
	case err != nil:
		return nil, fault.Unreachable("the Auth Service is not running on this host (%w): start it with teleport start", err)
	}
	_ = probe.Close()
	return rpc.DialLocal(socket)
}

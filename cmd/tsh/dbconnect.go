package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newDBConnect(a *app) *cobra.Command {
	var o dbOptions
	cmd := &cobra.Command{
		Use:   "connect [name] [-- argument...]",
		Short: "Connect to a database with psql, mysql, redis-cli, mongosh or sqlcmd",
		Long: "Run the database's own program, connected through a tunnel that nobody else on this machine can use. What follows -- goes\n" +
			"to the program, e.g. tsh db connect -u app -n shop prod -- -c 'select 1'. The exit code is that of the program.",
		Args: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				args = args[:at]
			}
			return screen.Args(0, 1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var more []string
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				args, more = args[:at], args[at:]
			}
			if err := o.given(args, "database"); err != nil {
				return err
			}
			return runDBConnect(cmd.Context(), a, &o, more)
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func runDBConnect(ctx context.Context, a *app, o *dbOptions, more []string) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	db, err := o.find(ctx, a, s)
	if err != nil {
		return err
	}
	t, err := o.open(ctx, a, s, db)
	if err != nil {
		return err
	}
	defer t.close()
	cmd, err := t.program(ctx)
	if err != nil {
		return err
	}
	cmd.Args = append(cmd.Args, more...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	code, err := supervise(ctx, cmd)
	if err == nil && code != screen.ExitOK {
		err = screen.Code(code)
	}
	return err
}

// dbTunnel leads to a database from a place that only this tsh tells anybody of.
type dbTunnel struct {
	options  *dbOptions
	db       *typesv1.Database
	user     string
	listener *client.Listener
	dir      string
	stop     context.CancelFunc
	ended    chan struct{}
}

// open gets a certificate and starts a private tunnel. What the program cannot be told
// in the words of its protocol goes to standard error.
func (o *dbOptions) open(ctx context.Context, a *app, s *session, db *typesv1.Database) (*dbTunnel, error) {
	reach := a.dbReach(s, o, db)
	// What can be wrong is better said before the program starts.
	if _, _, err := reach.Get(ctx); err != nil {
		return nil, err
	}
	t := &dbTunnel{options: o, db: db, user: o.userOr(s.profile.User), ended: make(chan struct{})}
	if err := t.listen(); err != nil {
		return nil, err
	}
	proxy := &client.LocalProxy{Dial: dbDial(reach, db), Refuse: client.Refusal(db.GetSpec().GetProtocol())}
	if proxy.Refuse == nil {
		proxy.Note = a.note
	}
	// It ends by close and not by a signal: that is for the program.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.stop = stop
	go func() {
		defer close(t.ended)
		_ = proxy.Serve(serving, t.listener)
	}()
	return t, nil
}

// dbReach returns what keeps a database in reach.
func (a *app) dbReach(s *session, o *dbOptions, db *typesv1.Database) *client.Reach {
	return a.reach(s, func(ctx context.Context, c *client.Client) (tls.Certificate, error) { return o.certify(ctx, c, db) })
}

// dbDial connects to a database as a program that need not authenticate itself.
func dbDial(reach *client.Reach, db *typesv1.Database) func(context.Context) (net.Conn, error) {
	to := client.ResourceDial{Service: types.RoleDB, Resource: db.GetMetadata().GetName()}
	protocol := "teleport-" + db.GetSpec().GetProtocol()
	return func(ctx context.Context) (net.Conn, error) {
		return reach.Dial(ctx, func(ctx context.Context, c *client.Client, cert tls.Certificate) (net.Conn, error) {
			conn, err := c.DialRouted(ctx, to, cert, protocol)
			if err != nil {
				return nil, err // not a nil *tls.Conn in an interface
			}
			return conn, nil
		})
	}
}

// userOr returns the database user, or the one that a database has for a person who is
// made there for the session: the name in Teleport.
func (o *dbOptions) userOr(name string) string {
	if o.user != "" {
		return o.user
	}
	return name
}

// listen opens a socket in a directory of our own, or for programs that know no sockets
// any port.
func (t *dbTunnel) listen() error {
	socket := map[string]string{
		types.ProtocolPostgres: ".s.PGSQL.5432", types.ProtocolCockroachDB: ".s.PGSQL.5432", types.ProtocolMySQL: "mysql.sock",
		types.ProtocolRedis: "redis.sock", types.ProtocolMongoDB: "mongodb-27017.sock",
	}[t.db.GetSpec().GetProtocol()]
	var err error
	if socket == "" {
		t.listener, err = client.ListenLocal("127.0.0.1:0", false)
		return err
	}
	if t.dir, err = os.MkdirTemp("", "tsh-db-"); err != nil {
		return fault.Invalid("make a directory for a socket: %w", err)
	}
	if t.listener, err = client.ListenLocal("unix:"+filepath.Join(t.dir, socket), false); err != nil {
		_ = os.RemoveAll(t.dir)
	}
	return err
}

// close ends the tunnel and what is connected through it.
func (t *dbTunnel) close() {
	t.stop()
	<-t.ended
	if t.dir != "" {
		_ = os.RemoveAll(t.dir)
	}
}

// program is the database's own one, connected through the tunnel.
func (t *dbTunnel) program(ctx context.Context) (*exec.Cmd, error) {
	name, database := t.db.GetMetadata().GetName(), t.options.database
	port := strconv.Itoa(int(t.listener.Port))
	option := func(args []string, before, value string) []string {
		if value == "" {
			return args
		}
		if strings.HasSuffix(before, "=") {
			return append(args, before+value)
		}
		return append(args, before, value)
	}
	switch protocol := t.db.GetSpec().GetProtocol(); protocol {
	case types.ProtocolPostgres, types.ProtocolCockroachDB:
		conn := "host=" + connText(t.dir) + " port=5432 user=" + connText(t.user)
		if database != "" {
			conn += " dbname=" + connText(database)
		}
		cmd, err := program(protocol, []string{"psql"}, "--dbname="+conn)
		if err == nil {
			cmd.Env = without(os.Environ(), "PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSSLMODE", "PGREQUIRESSL", "PGCHANNELBINDING",
				"PGREQUIREAUTH", "PGGSSENCMODE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS")
		}
		return cmd, err
	case types.ProtocolMySQL:
		args := option([]string{"--protocol=socket", "--socket=" + t.listener.Path, "--user=" + t.user}, "--database=", database)
		cmd, err := program(protocol, []string{"mariadb", "mysql"}, args...)
		if err == nil {
			cmd.Args = append(cmd.Args, plainMySQL(ctx, cmd.Path))
		}
		return cmd, err
	case types.ProtocolRedis:
		return program(protocol, []string{"redis-cli", "valkey-cli"}, option([]string{"-s", t.listener.Path}, "-n", database)...)
	case types.ProtocolMongoDB:
		u := "mongodb://" + url.QueryEscape(t.listener.Path) + "/" + url.PathEscape(database) + "?directConnection=true"
		return program(protocol, []string{"mongosh", "mongo"}, u)
	case types.ProtocolSQLServer:
		args := option([]string{"-S", "127.0.0.1," + port, "-U", t.user, "-P", "teleport", "-C", "-No"}, "-d", database)
		return program(protocol, []string{"sqlcmd"}, args...)
	default:
		return nil, fault.Unsupported("there is no program that tsh knows for %s: run tsh proxy db --tunnel %s and connect any to the address that it shows", protocol, name)
	}
}

// program returns the first of the programs that is installed.
func program(protocol string, names []string, args ...string) (*exec.Cmd, error) {
	for _, name := range names {
		// No context: it ends by itself, or by the signals that it gets.
		if cmd := exec.Command(name, args...); cmd.Err == nil { //nolint:noctx // see above
			return cmd, nil
		}
	}
	return nil, missing(protocol, names[0])
}

func missing(protocol, name string) error {
	return fault.NotFound("%s is not installed, and a database of type %s needs it: install it, or run tsh proxy db --tunnel for other programs", name, protocol)
}

// plainMySQL is the option that keeps the client from asking for encryption, which its
// configuration may: the socket is our own.
func plainMySQL(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err == nil && strings.Contains(string(out), "MariaDB") {
		return "--skip-ssl"
	}
	return "--ssl-mode=DISABLED"
}

// connText quotes a value of a connection string of PostgreSQL.
func connText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// without returns the environment without some variables.
func without(environ []string, names ...string) []string {
	var out []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		drop := false
		for _, n := range names {
			drop = drop || n == name
		}
		if !drop {
			out = append(out, v)
		}
	}
	return out
}

// supervise runs a program that has the terminal until it ends, and returns its exit
// code. Ctrl-C reaches it by itself; what is meant for tsh alone is passed on.
func supervise(ctx context.Context, cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	screen.ReleaseSignals(ctx)
	if err := cmd.Start(); err != nil {
		return 0, fault.Invalid("run %s: %w", cmd.Path, err)
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				if sig == unix.SIGTERM || sig == unix.SIGHUP {
					_ = cmd.Process.Signal(sig)
				}
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fault.Invalid("run %s: %w", cmd.Path, err)
	}
	return cmd.ProcessState.ExitCode(), nil
}

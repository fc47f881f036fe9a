package main

import (
	"context"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

type proxyDBOptions struct {
	dbOptions
	listenAt
	tunnel bool
}

func newProxyDB(a *app) *cobra.Command {
	var o proxyDBOptions
	cmd := &cobra.Command{
		Use:   "db [name]",
		Short: "Let programs on this machine reach a database, at a port that stays the same",
		Long: "Listen on 127.0.0.1 and lead what connects there to a database, until tsh is interrupted. The port is the same each time,\n" +
			"so that programs can be set up once; --port or --listen give another.\n\n" +
			"With --tunnel, tsh has the certificate: programs connect without one, and any password is accepted. Without it they show\n" +
			"the certificate of tsh db login themselves; see tsh db config and tsh db env.\n\n" +
			"Whoever can connect to the port on this machine uses the database in your name: where others work on the same machine,\n" +
			"listen on a socket that only you can open, with --listen=unix:/path.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.given(args, "database"); err != nil {
				return err
			}
			return runProxyDB(cmd.Context(), a, &o)
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.BoolVar(&o.tunnel, "tunnel", false, "let programs connect without a certificate")
	f.StringVarP(&o.port, "port", "p", "", "port on 127.0.0.1; 0 is any that is free")
	f.StringVar(&o.listen, "listen", "", "address to listen on: 127.0.0.1:PORT or unix:/path/of/a/socket")
	f.BoolVar(&o.anywhere, "insecure-listen-anywhere", false, "let --listen have an address that other machines can reach: all who can use the database in your name")
	return cmd
}

func runProxyDB(ctx context.Context, a *app, o *proxyDBOptions) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	db, err := o.find(ctx, a, s)
	if err != nil {
		return err
	}
	name, protocol := db.GetMetadata().GetName(), db.GetSpec().GetProtocol()
	proxy := &client.LocalProxy{Refuse: client.Refusal(protocol), Note: a.note}
	var reach *client.Reach
	if o.tunnel {
		reach = a.dbReach(s, &o.dbOptions, db)
		proxy.Dial = dbDial(reach, db)
	} else {
		reach = a.reach(s, nil)
		proxy.Dial = nativeDial(reach, name)
		if err := o.checkNative(a, s, name); err != nil {
			return err
		}
	}
	// What can be wrong is better said before anything connects.
	if _, _, err := reach.Get(ctx); err != nil {
		return err
	}
	ln, err := o.bind(ctx, a, s.profile, types.KindDatabase, name)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	if err := a.print("%s", o.greeting(s, db, ln)); err != nil {
		return err
	}
	go reach.Watch(ctx)
	return proxy.Serve(ctx, ln)
}

// nativeDial connects to a database as a program that speaks TLS with the agent itself.
func nativeDial(reach *client.Reach, name string) func(context.Context) (net.Conn, error) {
	to := client.ResourceDial{Service: types.RoleDB, Resource: name, Native: true}
	return func(ctx context.Context) (net.Conn, error) {
		c, _, err := reach.Get(ctx)
		if err != nil {
			return nil, err
		}
		conn, _, err := c.DialResource(ctx, to)
		return conn, err
	}
}

// checkNative refuses a proxy that no program could use: the certificate is missing.
func (o *proxyDBOptions) checkNative(a *app, s *session, name string) error {
	if a.identityFile() != "" {
		return screen.Usage("without --tunnel programs need the certificate of tsh db login, and that needs a login: give --tunnel")
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	r, err := a.loggedIn(home, s.profile, types.KindDatabase, name)
	if err != nil {
		return fault.New(fault.Kind(err), "%w; or give --tunnel, for programs without a certificate", err)
	}
	if was := r.User.Database; o.user != was.User || o.database != was.Name {
		return screen.Usage("without --tunnel the user and the database are those of tsh db login: log in with others, or give --tunnel")
	}
	return nil
}

// greeting says where the proxy listens and how to connect.
func (o *proxyDBOptions) greeting(s *session, db *typesv1.Database, ln *client.Listener) string {
	name, protocol := db.GetMetadata().GetName(), db.GetSpec().GetProtocol()
	var out strings.Builder
	if !o.tunnel {
		out.WriteString("Started a proxy for database " + strconv.Quote(name) + " (" + protocol + ") on " + screen.Escape(ln.Shown) + "\n\n")
		out.WriteString("Programs connect with the certificate of tsh db login, such as:\n\n")
		if ln.Path == "" {
			conf := dbConfig{Name: name, Protocol: protocol, section: sectionOf(s.profile, name)}
			if line, err := conf.command(); err == nil && (isPostgres(protocol) || protocol == types.ProtocolMySQL) && o.port == "" && o.listen == "" {
				out.WriteString("  " + line + "\n\n")
			}
		}
		out.WriteString("  tsh db config " + name + "    # address and files\n")
		return out.String()
	}
	out.WriteString("Started a tunnel for database " + strconv.Quote(name) + " (" + protocol + ") on " + screen.Escape(ln.Shown) + "\n\n")
	if line := o.tunnelCommand(s, protocol, ln); line != "" {
		out.WriteString("Connect any program without a password, such as:\n\n  " + line + "\n")
	} else {
		out.WriteString("Connect any program without a password.\n")
	}
	return out.String()
}

// tunnelCommand is how the usual program is called; empty if there is none.
func (o *proxyDBOptions) tunnelCommand(s *session, protocol string, ln *client.Listener) string {
	user, port := o.userOr(s.profile.User), strconv.Itoa(int(ln.Port))
	host := ln.Host
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	at := net.JoinHostPort(host, port)
	path := ""
	if o.database != "" {
		path = "/" + url.PathEscape(o.database)
	}
	if ln.Path != "" {
		switch protocol {
		case types.ProtocolPostgres, types.ProtocolCockroachDB:
			if dir, base := filepath.Split(ln.Path); strings.HasPrefix(base, ".s.PGSQL.") {
				line := "host=" + connText(filepath.Clean(dir)) + " port=" + strings.TrimPrefix(base, ".s.PGSQL.") + " user=" + connText(user)
				if o.database != "" {
					line += " dbname=" + connText(o.database)
				}
				return words("psql", line)
			}
			return ""
		case types.ProtocolMySQL:
			return words(mysqlCommand("--socket="+ln.Path, "--user="+user)...)
		case types.ProtocolRedis:
			return words("redis-cli", "-s", ln.Path)
		case types.ProtocolMongoDB:
			return words("mongosh", "mongodb://"+url.QueryEscape(ln.Path)+path)
		}
		return ""
	}
	switch protocol {
	case types.ProtocolPostgres, types.ProtocolCockroachDB:
		return words("psql", "postgres://"+url.PathEscape(user)+"@"+at+path)
	case types.ProtocolMySQL:
		return words(mysqlCommand("--protocol=tcp", "--host="+host, "--port="+port, "--user="+user)...)
	case types.ProtocolRedis:
		return words("redis-cli", "-h", host, "-p", port)
	case types.ProtocolMongoDB:
		return words("mongosh", "mongodb://"+at+path)
	case types.ProtocolSQLServer:
		return words("sqlcmd", "-S", host+","+port, "-U", user, "-P", "any", "-C", "-No")
	case types.ProtocolClickHouseHTTP:
		return words("curl", "http://"+at+"/", "--data-binary", "SELECT 1")
	}
	return ""
}

// mysqlCommand calls the client that is installed. That of MariaDB may want encryption.
func mysqlCommand(args ...string) []string {
	if _, err := exec.LookPath("mariadb"); err == nil {
		return append([]string{"mariadb", "--skip-ssl"}, args...)
	}
	return append([]string{"mysql"}, args...)
}

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// dbConfig is how other programs reach a database with the certificate of tsh db login
// while tsh proxy db runs for it.
type dbConfig struct {
	Name       string `json:"name" yaml:"name"`
	Protocol   string `json:"protocol" yaml:"protocol"`
	Host       string `json:"host" yaml:"host"`
	Port       uint16 `json:"port" yaml:"port"`
	ServerName string `json:"server_name" yaml:"server_name"`
	User       string `json:"user" yaml:"user"`
	Database   string `json:"database" yaml:"database"`
	CA         string `json:"ca" yaml:"ca"`
	Cert       string `json:"cert" yaml:"cert"`
	Key        string `json:"key" yaml:"key"`
	// section is the name of the section in the files of psql and mysql.
	section string
}

func dbConfigOf(ctx context.Context, home *client.Home, p client.Profile, name, protocol, user, database string) (dbConfig, error) {
	port, err := home.LocalPort(ctx, p, types.KindDatabase, name)
	if err != nil {
		return dbConfig{}, err
	}
	paths := home.RoutedPaths(p, types.KindDatabase, name)
	return dbConfig{
		Name: name, Protocol: protocol, Host: "localhost", Port: port, ServerName: client.DatabaseServerName, User: user, Database: database,
		CA: paths.CA, Cert: paths.Cert, Key: paths.Key, section: sectionOf(p, name),
	}, nil
}

// isPostgres reports whether programs for PostgreSQL speak the protocol.
func isPostgres(protocol string) bool {
	return protocol == types.ProtocolPostgres || protocol == types.ProtocolCockroachDB
}

// writeSection writes the section of psql or mysql; other programs have no such file.
func (c dbConfig) writeSection() error {
	switch {
	case isPostgres(c.Protocol):
		file, err := pgServices()
		if err != nil {
			return err
		}
		// The name is what the certificate of the agent says, the address where tsh
		// listens.
		lines := []string{
			"host=" + c.ServerName, "hostaddr=127.0.0.1", "port=" + strconv.Itoa(int(c.Port)),
			"sslmode=verify-full", "sslrootcert=" + c.CA, "sslcert=" + c.Cert, "sslkey=" + c.Key, "gssencmode=disable",
		}
		if c.User != "" {
			lines = append(lines, "user="+c.User)
		}
		if c.Database != "" {
			lines = append(lines, "dbname="+c.Database)
		}
		return file.Put(c.section, lines...)
	case c.Protocol == types.ProtocolMySQL:
		file, err := mysqlOptions()
		if err != nil {
			return err
		}
		lines := []string{
			"host=127.0.0.1", "protocol=tcp", "port=" + strconv.Itoa(int(c.Port)),
			"ssl-ca=" + optionText(c.CA), "ssl-cert=" + optionText(c.Cert), "ssl-key=" + optionText(c.Key),
		}
		if c.User != "" {
			lines = append(lines, "user="+optionText(c.User))
		}
		if c.Database != "" {
			lines = append(lines, "database="+optionText(c.Database))
		}
		return file.Put("client_"+c.section, lines...)
	}
	return nil
}

// optionText quotes a value of MySQL's option files.
func optionText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// environ are the variables that programs of the protocol take.
func (c dbConfig) environ() (map[string]string, error) {
	out := map[string]string{}
	put := func(name, value string) {
		if value != "" {
			out[name] = value
		}
	}
	switch {
	case isPostgres(c.Protocol):
		put("PGHOST", c.ServerName)
		put("PGHOSTADDR", "127.0.0.1")
		put("PGPORT", strconv.Itoa(int(c.Port)))
		put("PGUSER", c.User)
		put("PGDATABASE", c.Database)
		put("PGSSLMODE", "verify-full")
		put("PGSSLROOTCERT", c.CA)
		put("PGSSLCERT", c.Cert)
		put("PGSSLKEY", c.Key)
		put("PGGSSENCMODE", "disable")
	case c.Protocol == types.ProtocolMySQL:
		put("MYSQL_GROUP_SUFFIX", "_"+c.section)
	default:
		return nil, fault.Unsupported("programs for %s take no variables: see tsh db config %s", c.Protocol, c.Name)
	}
	return out, nil
}

// command is how the usual program is called.
func (c dbConfig) command() (string, error) {
	port := strconv.Itoa(int(c.Port))
	switch c.Protocol {
	case types.ProtocolPostgres, types.ProtocolCockroachDB:
		return "psql " + screen.ShellQuote("service="+c.section), nil
	case types.ProtocolMySQL:
		return "mysql " + screen.ShellQuote("--defaults-group-suffix=_"+c.section), nil
	case types.ProtocolRedis:
		return words("redis-cli", "-h", "127.0.0.1", "-p", port, "--tls", "--sni", c.ServerName, "--cacert", c.CA, "--cert", c.Cert, "--key", c.Key), nil
	case types.ProtocolMongoDB:
		return words("mongosh", "--host", "127.0.0.1", "--port", port, "--tls", "--tlsAllowInvalidHostnames", "--tlsCAFile", c.CA, "--tlsCertificateKeyFile", c.Cert), nil
	case types.ProtocolClickHouseHTTP:
		return words("curl", "--connect-to", "::127.0.0.1:"+port, "--cacert", c.CA, "--cert", c.Cert, "--key", c.Key, "https://"+c.ServerName+"/"), nil
	}
	return "", fault.Unsupported("there is no command for %s that shows a certificate: use tsh db connect %s, or tsh proxy db --tunnel %s", c.Protocol, c.Name, c.Name)
}

// words makes a line for a shell.
func words(args ...string) string {
	for i, arg := range args {
		args[i] = screen.ShellQuote(arg)
	}
	return strings.Join(args, " ")
}

func newDBConfig(a *app) *cobra.Command {
	var format, cluster string
	cmd := &cobra.Command{
		Use:   "config [name]",
		Short: "Print how other programs reach a database: address, files, a command",
		Long: "Print how other programs reach a database that you are logged in to (see tsh db login) while tsh proxy db runs for it.\n" +
			"With one the name may be left out.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDBConfig(cmd.Context(), a, strings.Join(args, ""), format, cluster)
		},
	}
	screen.FormatFlag(cmd, &format, screen.Text, "cmd", screen.JSON, screen.YAML)
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

// dbConfig returns that of a database that somebody is logged in to.
func (a *app) dbConfig(ctx context.Context, name, cluster string) (dbConfig, error) {
	home, s, _, err := a.withHome(ctx, cluster)
	if err != nil {
		return dbConfig{}, err
	}
	r, err := a.loggedIn(home, s.profile, types.KindDatabase, name)
	if err != nil {
		return dbConfig{}, err
	}
	route := r.User.Database
	return dbConfigOf(ctx, home, s.profile, r.Name(), route.Protocol, route.User, route.Name)
}

func runDBConfig(ctx context.Context, a *app, name, format, cluster string) error {
	conf, err := a.dbConfig(ctx, name, cluster)
	if err != nil {
		return err
	}
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, conf)
	case screen.YAML:
		return screen.WriteYAML(a.Out, conf)
	case "cmd":
		line, err := conf.command()
		if err != nil {
			return err
		}
		return a.print("%s\n", line)
	}
	return screen.Pairs(a.Out, "", [2]string{"Name:", conf.Name}, [2]string{"Host:", conf.Host}, [2]string{"Port:", strconv.Itoa(int(conf.Port))},
		[2]string{"Server name:", conf.ServerName}, [2]string{"User:", conf.User}, [2]string{"Database:", conf.Database},
		[2]string{"CA:", conf.CA}, [2]string{"Cert:", conf.Cert}, [2]string{"Key:", conf.Key})
}

func newDBEnv(a *app) *cobra.Command {
	var format, cluster string
	cmd := &cobra.Command{
		Use:   "env [name]",
		Short: "Print commands that set up psql and the like for a shell: eval $(tsh db env)",
		Long: "Print commands for a shell that set the variables of psql and the like for a database that you are logged in to (see tsh db\n" +
			"login), while tsh proxy db runs for it. With one the name may be left out.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDBEnv(cmd.Context(), a, strings.Join(args, ""), format, cluster)
		},
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

func runDBEnv(ctx context.Context, a *app, name, format, cluster string) error {
	conf, err := a.dbConfig(ctx, name, cluster)
	if err != nil {
		return err
	}
	values, err := conf.environ()
	if err != nil {
		return err
	}
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, values)
	case screen.YAML:
		return screen.WriteYAML(a.Out, values)
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&out, "export %s=%s\n", name, screen.ShellQuote(values[name]))
	}
	return a.print("%s", out.String())
}

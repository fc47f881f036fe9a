package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/process"
	"teleport/internal/types"
)

// served is what a command line says of an application and of a database to serve.
type served struct {
	app       config.AppParams
	appLabels string
	db        config.DatabaseParams
	dbLabels  string
}

// apply adds them to what the configuration has.
func (s served) apply(cfg *config.Config) error {
	if err := s.applyApp(cfg); err != nil {
		return err
	}
	return s.applyDB(cfg)
}

func (s served) applyApp(cfg *config.Config) error {
	if s.app.Name == "" && s.app.URI+s.app.PublicAddr+s.appLabels+s.app.Description == "" {
		return nil
	}
	if s.app.Name == "" || s.app.URI == "" {
		return fault.Invalid("an application needs both its name and its uri")
	}
	if !cfg.App.Enabled {
		return fault.Invalid("application %q: the Application Service is not enabled, add --roles=app", s.app.Name)
	}
	var err error
	if s.app.Labels, err = labels("--labels", s.appLabels); err != nil {
		return err
	}
	resource, err := s.app.Resource()
	if err != nil {
		return err
	}
	for _, other := range cfg.App.Apps {
		if other.GetMetadata().GetName() == s.app.Name {
			return fault.Exists("the configuration has an application %q already", s.app.Name)
		}
	}
	cfg.App.Apps = append(cfg.App.Apps, resource)
	return nil
}

func (s served) applyDB(cfg *config.Config) error {
	if s.db.Name == "" && s.db.Protocol+s.db.URI+s.db.Description+s.dbLabels+s.db.CACertFile == "" {
		return nil
	}
	if s.db.Name == "" || s.db.Protocol == "" || s.db.URI == "" {
		return fault.Invalid("a database needs its name, its protocol and its uri")
	}
	var err error
	if s.db.Labels, err = labels("--labels", s.dbLabels); err != nil {
		return err
	}
	resource, err := s.db.Resource()
	if err != nil {
		return err
	}
	for _, other := range cfg.DB.Databases {
		if other.GetMetadata().GetName() == s.db.Name {
			return fault.Exists("the configuration has a database %q already", s.db.Name)
		}
	}
	cfg.DB.Databases = append(cfg.DB.Databases, resource)
	return nil
}

// labels reads those of a flag.
func labels(flag, text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	out, err := types.ParseLabels(text)
	if err != nil {
		return nil, fault.Invalid("%s: %w", flag, err)
	}
	return out, nil
}

func newAppCommands() *cobra.Command {
	return group("app", "Commands for hosts that run the Application Service", newAppStart())
}

func (a *app) newDBCommands() *cobra.Command {
	return group("db", "Commands for hosts that run the Database Service",
		newDBStart(), group("configure", "Write a configuration file", a.newDBConfigure()))
}

func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}

const startExits = "Exit codes: as of teleport start."

func newAppStart() *cobra.Command {
	o := startOptions{roles: types.RoleApp.Flag()}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Serve an application",
		Long: `Serve an application, with those that the configuration file has. The process runs
the Application Service and nothing else, whatever the file says.

` + startExits,
		Example: "  teleport app start --name=grafana --uri=http://localhost:3000 --token=TOKEN --ca-pin=sha256:... --auth-server=teleport.example.com:443",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runStart(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.app.Name, "name", "", "name of the application, a part of its host name")
	f.StringVar(&o.app.URI, "uri", "", "where the application is (http://, https:// or tcp://host:port)")
	f.StringVar(&o.app.PublicAddr, "public-addr", "", "host name that users have it at (default <name>.<host of the Proxy>)")
	f.StringVar(&o.app.Description, "description", "", "one line about it")
	f.StringVar(&o.appLabels, "labels", "", "labels of the application (key=value,...)")
	o.joinFlags(f)
	notYet(f, "cloud", "mcp-demo-server")
	return cmd
}

func newDBStart() *cobra.Command {
	o := startOptions{roles: types.RoleDB.Flag()}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Serve a database",
		Long: `Serve a database, with those that the configuration file has. The process runs the
Database Service and nothing else, whatever the file says.

` + startExits,
		Example: "  teleport db start --name=sales --protocol=postgres --uri=db.internal:5432 --token=TOKEN --ca-pin=sha256:... --auth-server=teleport.example.com:443",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runStart(cmd.Context(), o) },
	}
	f := cmd.Flags()
	databaseFlags(f, &o.db, &o.dbLabels)
	f.StringVar(&o.db.Description, "description", "", "one line about it")
	f.StringVar(&o.db.CACertFile, "ca-cert", "", "file with the certificates that the server's is verified by (PEM)")
	o.joinFlags(f)
	notYet(f, cloudFlags()...)
	return cmd
}

// databaseFlags are those of a database that commands have in common.
func databaseFlags(f *pflag.FlagSet, db *config.DatabaseParams, labels *string) {
	f.StringVar(&db.Name, "name", "", "name of the database in the cluster")
	f.StringVar(&db.Protocol, "protocol", "", "how it is spoken to, such as postgres")
	f.StringVar(&db.URI, "uri", "", "where it is (host:port)")
	f.StringVar(labels, "labels", "", "labels of the database (key=value,...)")
}

func (a *app) newDBConfigure() *cobra.Command {
	o := configureOptions{roles: types.RoleDB.Flag()}
	var own string
	var dynamic []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Write a configuration file for a host that runs the Database Service",
		Long: `Write a configuration file for a host that runs the Database Service: for one
database, for those of the cluster that have certain labels, or for both. Without
any it serves all databases of the cluster.`,
		Example: "  teleport db configure create --name=sales --protocol=postgres --uri=db.internal:5432 --proxy=teleport.example.com:443 --token=/tmp/token -o file",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var err error
			db := &o.params.DB
			if db.Labels, err = labels("--labels", own); err != nil {
				return err
			}
			for _, text := range dynamic {
				matcher, err := labels("--dynamic-resources-labels", text)
				if err != nil {
					return err
				}
				db.Matchers = append(db.Matchers, matcher)
			}
			if db.CACertFile != "" {
				if db.CACertFile, err = filepath.Abs(db.CACertFile); err != nil {
					return err
				}
			}
			return a.runConfigure(o)
		},
	}
	f := cmd.Flags()
	databaseFlags(f, &o.params.DB, &own)
	f.StringVar(&o.params.DB.Description, "description", "", "one line about it")
	f.StringVar(&o.params.DB.CACertFile, "ca-cert-file", "", "file with the certificates that the server's is verified by (PEM)")
	f.BoolVar(&o.params.DB.TrustSystemCertPool, "trust-system-cert-pool", false, "believe the authorities that this host trusts as well")
	f.StringArrayVar(&dynamic, "dynamic-resources-labels", nil, "serve the databases of the cluster that have these labels (key=value,...; may be repeated)")
	f.StringVar(&o.params.ProxyServer, "proxy", "0.0.0.0:3080", "address of the cluster's Proxy Service (host:port)")
	f.StringVar(&o.params.Token, "token", "/tmp/token", "join token, or the absolute path of a file with it")
	f.StringVar(&o.params.JoinMethod, "join-method", types.JoinMethodToken, "how to join the cluster")
	f.StringArrayVar(&o.pins, "ca-pin", nil, "CA pin of the cluster (may be repeated)")
	f.StringVar(&o.params.DataDir, "data-dir", config.DefaultDataDir, "data directory")
	f.StringVar(&o.params.NodeName, "node-name", "", "name of this host in the cluster (default: its host name)")
	f.StringVarP(&o.output, "output", "o", "stdout", "stdout, file ("+config.DefaultPath+") or file:///path")
	notYet(f, append(cloudFlags(), discoveryFlags()...)...)
	return cmd
}

// cloudFlags are about databases of clouds and of Active Directory.
func cloudFlags() []string {
	return []string{
		"ad-domain", "ad-spn", "ad-keytab-file", "ad-krb5-file", "aws-region", "aws-account-id", "aws-assume-role-arn", "aws-external-id",
		"aws-redshift-cluster-id", "aws-rds-cluster-id", "aws-rds-instance-id", "aws-elasticache-group-id", "aws-memorydb-cluster-name",
		"aws-session-tags", "gcp-project-id", "gcp-instance-id",
	}
}

// discoveryFlags are about finding databases in clouds.
func discoveryFlags() []string {
	return []string{
		"rds-discovery", "rdsproxy-discovery", "redshift-discovery", "redshift-serverless-discovery", "elasticache-discovery", "memorydb-discovery",
		"opensearch-discovery", "docdb-discovery", "azure-mysql-discovery", "azure-postgres-discovery", "azure-redis-discovery",
		"azure-sqlserver-discovery", "azure-subscription", "azure-resource-group", "azure-tags", "aws-tags",
	}
}

// notYet has flags that people know refused in words that say why.
func notYet(f *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f.Var(refused{}, name, "not supported yet")
		f.Lookup(name).Hidden = true
		f.Lookup(name).NoOptDefVal = "true"
	}
}

// refused is the value of a flag that is not supported yet.
type refused struct{}

// String returns no value.
func (refused) String() string { return "" }

// Type names the kind of value.
func (refused) Type() string { return "string" }

// Set refuses.
func (refused) Set(string) error {
	return &exitError{process.ExitUsage, fault.Unsupported("not supported yet: there is no access to services of clouds")}
}

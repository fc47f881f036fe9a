package main

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newDB(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "db", Short: "List databases, connect to them, and get certificates for them"},
		newDBLs(a), newDBLogin(a), newDBLogout(a), newDBConnect(a), newDBExec(a), newDBConfig(a), newDBEnv(a))
}

func newDBLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [labels]",
		Short: "List the databases that you may use, e.g. tsh db ls env=prod",
		Long:  "List the databases that your roles let you use. Labels, --query and --search choose among them, as for tsh ls.",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.labels = strings.Join(args, "")
			return runDBLs(cmd.Context(), a, o)
		},
	}
	o.flags(cmd, "databases", screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show where the agents reach the databases, too")
	return cmd
}

func runDBLs(ctx context.Context, a *app, o lsOptions) error {
	choice, err := o.choice(types.KindDatabaseServer)
	if err != nil {
		return err
	}
	lists, missing, err := listings(ctx, a, o, func(ctx context.Context, s *session) ([]*typesv1.Database, error) {
		return a.databases(ctx, s, choice)
	})
	if err != nil {
		return err
	}
	titles := []string{"Name", "Description", "Protocol", "Labels", "Connect"}
	if o.verbose {
		titles = slices.Insert(titles, 3, "URI")
	}
	err = writeListings(a, o, lists, titles, func(p client.Profile, db *typesv1.Database) []string {
		meta := db.GetMetadata()
		mark := a.marked(p, types.KindDatabase, meta.GetName())
		connect := ""
		if mark != meta.GetName() {
			connect = "tsh db connect " + meta.GetName()
		}
		row := []string{mark, meta.GetDescription(), db.GetSpec().GetProtocol(), screen.Labels(meta.GetLabels()), connect}
		if o.verbose {
			row = slices.Insert(row, 3, db.GetSpec().GetUri())
		}
		return row
	})
	if err != nil {
		return err
	}
	return missing
}

// dbOptions say which database, and as whom.
type dbOptions struct {
	choosing
	user, database string
	roles          []string
}

func (o *dbOptions) flags(f *pflag.FlagSet) {
	o.choosing.flags(f, "database")
	o.asWhom(f)
	notYet(f, "request-reason", "", "there are no access requests")
	f.Bool("disable-access-request", true, "accepted; there are no access requests")
	f.Lookup("disable-access-request").Hidden = true
}

func (o *dbOptions) asWhom(f *pflag.FlagSet) {
	f.StringVarP(&o.user, "db-user", "u", "", "user of the database")
	f.StringVarP(&o.database, "db-name", "n", "", "database on the server")
	f.StringSliceVarP(&o.roles, "db-roles", "r", nil, "roles that the user gets who is made for the session; all that are allowed otherwise")
}

// find returns the database that is meant. What was not given is as at tsh db login.
func (o *dbOptions) find(ctx context.Context, a *app, s *session) (*typesv1.Database, error) {
	if err := s.inCluster(o.cluster); err != nil {
		return nil, err
	}
	db, err := one(ctx, o.choosing, types.KindDatabaseServer, "database", func(ctx context.Context, choice client.Choice) ([]*typesv1.Database, error) {
		return a.databases(ctx, s, choice)
	})
	if err != nil || a.identityFile() != "" {
		return db, err
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	if r, err := home.FindRouted(s.profile, types.KindDatabase, db.GetMetadata().GetName()); err == nil && a.now().Before(r.Expires) {
		was := r.User.Database
		if o.user == "" {
			o.user = was.User
		}
		if o.database == "" {
			o.database = was.Name
		}
		if o.roles == nil {
			o.roles = was.Roles
		}
	}
	return db, nil
}

// certify gets a certificate for the database.
func (o *dbOptions) certify(ctx context.Context, c *client.Client, db *typesv1.Database) (tls.Certificate, error) {
	return c.CertifyDatabase(ctx, client.DatabaseLogin{
		Database: db.GetMetadata().GetName(), User: o.user, Name: o.database, Roles: o.roles,
	})
}

func newDBLogin(a *app) *cobra.Command {
	var o dbOptions
	cmd := &cobra.Command{
		Use:   "login [name]",
		Short: "Get a certificate for a database, and set up psql and mysql for it",
		Long: "Get a certificate for a database and keep it in ~/.tsh, with a section of ~/.pg_service.conf or ~/.my.cnf that says how to\n" +
			"connect with it while tsh proxy db runs. With --db-user, --db-name and --db-roles it is good for those only.\n\n" +
			"tsh db connect and tsh proxy db --tunnel need no tsh db login, but take the user and the database from it.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.given(args, "database"); err != nil {
				return err
			}
			return runDBLogin(cmd.Context(), a, &o)
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func runDBLogin(ctx context.Context, a *app, o *dbOptions) error {
	home, s, c, err := a.withHome(ctx, o.cluster)
	if err != nil {
		return err
	}
	// The present login does not decide about the next one.
	asked := *o
	db, err := o.find(ctx, a, s)
	if err != nil {
		return err
	}
	o.user, o.database, o.roles = asked.user, asked.database, asked.roles
	cert, err := o.certify(ctx, c, db)
	if err != nil {
		return err
	}
	name, protocol := db.GetMetadata().GetName(), db.GetSpec().GetProtocol()
	if err := home.SaveRouted(ctx, s.profile, types.KindDatabase, name, cert, protocol == types.ProtocolMongoDB); err != nil {
		return err
	}
	conf, err := dbConfigOf(ctx, home, s.profile, name, protocol, o.user, o.database)
	if err != nil {
		return err
	}
	if err := conf.writeSection(); err != nil {
		return err
	}
	return a.print("Logged into database %q, until %s. Connect to it with:\n\n  tsh db connect %s\n\n"+
		"or with other programs, after one of these:\n\n"+
		"  tsh proxy db --tunnel %s   # no password, no certificate\n"+
		"  tsh proxy db %s            # with the certificate: tsh db config %s\n",
		name, cert.Leaf.NotAfter.UTC().Format(time.RFC3339), name, name, name, name)
}

func newDBLogout(a *app) *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:   "logout [name]",
		Short: "Delete the certificate for a database and its section of ~/.pg_service.conf or ~/.my.cnf, or those for all",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, p, err := a.dropRouted(cmd.Context(), cluster, types.KindDatabase, strings.Join(args, ""))
			for _, name := range names {
				if err := removeSections(p, name); err != nil {
					return err
				}
				if err == nil {
					if err := a.print("Logged out of database %q\n", name); err != nil {
						return err
					}
				}
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

// pgServices is where psql and others find services, mysqlOptions where mysql finds its
// options.
func pgServices() (client.SectionFile, error) {
	if path := screen.Env("PGSERVICEFILE"); path != "" {
		return client.SectionFile{Path: path}, nil
	}
	return dotFile(".pg_service.conf")
}

func mysqlOptions() (client.SectionFile, error) { return dotFile(".my.cnf") }

func dotFile(name string) (client.SectionFile, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return client.SectionFile{}, fault.Invalid("cannot tell where ~/%s is: %w", name, err)
	}
	return client.SectionFile{Path: filepath.Join(home, name)}, nil
}

// sectionOf is the name of the service of PostgreSQL; MySQL's is client_ and that.
func sectionOf(p client.Profile, name string) string { return p.Cluster + "-" + name }

// removeSections takes the sections of a database out again.
func removeSections(p client.Profile, name string) error {
	pg, err := pgServices()
	if err != nil {
		return err
	}
	my, err := mysqlOptions()
	if err != nil {
		return err
	}
	if err := pg.Remove(sectionOf(p, name)); err != nil {
		return err
	}
	return my.Remove("client_" + sectionOf(p, name))
}

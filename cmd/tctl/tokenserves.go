package main

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/screen"
	"teleport/internal/types"
)

// servesOptions are what the machine that joins is to serve. The cluster does not hear of
// it: it only completes the command that is printed.
type servesOptions struct {
	appName, appURI           string
	dbName, dbProtocol, dbURI string
}

func (o *servesOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.appName, "app-name", "", "with --type=app: name of the application in the command that is printed")
	f.StringVar(&o.appURI, "app-uri", "", "with --type=app: where the application is, e.g. http://localhost:8080")
	f.StringVar(&o.dbName, "db-name", "", "with --type=db: name of the database in the command that is printed")
	f.StringVar(&o.dbProtocol, "db-protocol", "", "with --type=db: "+strings.Join(types.DatabaseProtocols(), ", "))
	f.StringVar(&o.dbURI, "db-uri", "", "with --type=db: where the database is, e.g. localhost:5432")
}

func (o servesOptions) app() bool { return o.appName+o.appURI != "" }
func (o servesOptions) db() bool  { return o.dbName+o.dbProtocol+o.dbURI != "" }

// check holds what is to be served against the kinds of service that may join, and
// against what such a resource may be.
func (o servesOptions) check(roles []types.SystemRole) error {
	var r types.Resource
	switch {
	case !o.app() && !o.db():
		return nil
	case o.app() && !slices.Equal(roles, []types.SystemRole{types.RoleApp}):
		return screen.Usage("--app-name and --app-uri go with --type=app alone")
	case o.db() && !slices.Equal(roles, []types.SystemRole{types.RoleDB}):
		return screen.Usage("--db-name, --db-protocol and --db-uri go with --type=db alone")
	case o.app():
		if o.appName == "" || o.appURI == "" {
			return screen.Usage("--app-name and --app-uri are needed together")
		}
		app, _ := types.New(types.KindApp, o.appName).(*typesv1.App)
		app.Spec = &typesv1.AppSpec{Uri: o.appURI}
		r = app
	default:
		if o.dbName == "" || o.dbProtocol == "" || o.dbURI == "" {
			return screen.Usage("--db-name, --db-protocol and --db-uri are needed together")
		}
		db, _ := types.New(types.KindDatabase, o.dbName).(*typesv1.Database)
		db.Spec = &typesv1.DatabaseSpec{Protocol: o.dbProtocol, Uri: o.dbURI}
		r = db
	}
	return types.Check(r)
}

// command returns the command that serves it, and its flags; "" if nothing was said.
func (o servesOptions) command() (string, []string) {
	switch {
	case o.app():
		return "teleport app start", []string{"--name=" + screen.ShellQuote(o.appName), "--uri=" + screen.ShellQuote(o.appURI)}
	case o.db():
		return "teleport db start", []string{
			"--name=" + screen.ShellQuote(o.dbName), "--protocol=" + screen.ShellQuote(o.dbProtocol), "--uri=" + screen.ShellQuote(o.dbURI),
		}
	}
	return "", nil
}

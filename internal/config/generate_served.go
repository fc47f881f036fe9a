package config

import (
	"errors"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// AppParams is one application; without a name there is none.
type AppParams struct {
	Name, URI, PublicAddr, Description string
	Labels                             map[string]string
}

// DatabaseParams is one database; without a name there is none.
type DatabaseParams struct {
	Name, Protocol, URI, Description string
	Labels                           map[string]string
	// CACertFile is the path of a file that the server's certificate is verified by.
	CACertFile          string
	TrustSystemCertPool bool
	// Matchers choose databases of the cluster by their labels.
	Matchers []map[string]string
}

// Resource returns the application, checked.
func (a AppParams) Resource() (*typesv1.App, error) {
	app := types.New(types.KindApp, a.Name).(*typesv1.App)
	app.Metadata.Description, app.Metadata.Labels = a.Description, a.Labels
	app.Spec = &typesv1.AppSpec{Uri: a.URI, PublicAddr: a.PublicAddr}
	if err := types.Check(app); err != nil {
		return nil, fault.Invalid("application %s: %s", quote(a.Name), withoutPaths(err))
	}
	return app, nil
}

// Resource returns the database, checked; the file with certificates is read.
func (p DatabaseParams) Resource() (*typesv1.Database, error) {
	db := types.New(types.KindDatabase, p.Name).(*typesv1.Database)
	db.Metadata.Description, db.Metadata.Labels = p.Description, p.Labels
	db.Spec = &typesv1.DatabaseSpec{Protocol: p.Protocol, Uri: p.URI}
	if p.CACertFile != "" || p.TrustSystemCertPool {
		db.Spec.Tls = &typesv1.DatabaseTLS{TrustSystemCertPool: p.TrustSystemCertPool}
	}
	if p.CACertFile != "" {
		text, err := certificatesFile(p.CACertFile)
		if err != nil {
			return nil, fault.Invalid("database %s: %s", quote(p.Name), err)
		}
		db.Spec.Tls.CaCert = text
	}
	if err := types.Check(db); err != nil {
		return nil, fault.Invalid("database %s: %s", quote(p.Name), withoutPaths(err))
	}
	return db, nil
}

// withoutPaths drops where in a resource a problem is: it came from flags.
func withoutPaths(err error) string {
	var problems types.Problems
	if !errors.As(err, &problems) {
		return err.Error()
	}
	texts := make([]string, 0, len(problems))
	for _, p := range problems {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "; ")
}

// runnable are the roles that a process can have, in the order of their names.
func runnable() []types.SystemRole {
	return []types.SystemRole{types.RoleApp, types.RoleAuth, types.RoleDB, types.RoleNode, types.RoleProxy}
}

// Runnable names the roles that a process can have, as they are on command lines.
func Runnable() string {
	names := make([]string, 0, len(runnable()))
	for _, r := range runnable() {
		names = append(names, r.Flag())
	}
	return strings.Join(names, ", ")
}

// switches are what enables each service.
func (c *Config) switches() map[types.SystemRole]*bool {
	return map[types.SystemRole]*bool{
		types.RoleAuth: &c.Auth.Enabled, types.RoleProxy: &c.Proxy.Enabled, types.RoleNode: &c.SSH.Enabled,
		types.RoleApp: &c.App.Enabled, types.RoleDB: &c.DB.Enabled,
	}
}

// Roles returns the system roles of the services that are enabled, sorted.
func (c *Config) Roles() []types.SystemRole {
	switches := c.switches()
	return slices.DeleteFunc(runnable(), func(r types.SystemRole) bool { return !*switches[r] })
}

// SetRoles enables exactly the services of the roles.
func (c *Config) SetRoles(roles []types.SystemRole) error {
	switches := c.switches()
	for _, r := range roles {
		if switches[r] == nil {
			return fault.Unsupported("service %q is not supported yet: expected some of %s", r.Flag(), Runnable())
		}
	}
	for r, on := range switches {
		*on = slices.Contains(roles, r)
	}
	return nil
}

// checkServed looks at what the parameters say of an application and a database.
func (p *GenerateParams) checkServed() error {
	switch app, db := p.App, p.DB; {
	case !p.has(types.RoleApp) && app.Name+app.URI+app.PublicAddr != "":
		return fault.Invalid("--app-name and --app-uri need the app role: add --roles=app")
	case (app.Name == "") != (app.URI == ""):
		return fault.Invalid("expected both --app-name and --app-uri, or neither")
	case app.Name == "" && (app.PublicAddr != "" || len(app.Labels) > 0):
		return fault.Invalid("the address and labels are of an application: name it with --app-name and --app-uri")
	case db.Name == "" && db.Protocol+db.URI+db.Description+db.CACertFile != "":
		return fault.Invalid("the protocol, the uri and the rest are of a database: name it with --name")
	case db.Name != "" && (db.Protocol == "" || db.URI == ""):
		return fault.Invalid("database %q: expected --protocol and --uri as well", db.Name)
	}
	return nil
}

func (p *GenerateParams) writeApp(w *yamlWriter) {
	if !p.has(types.RoleApp) {
		return
	}
	w.enabled("app_service", true)
	app := p.App
	if app.Name == "" {
		w.matchers("applications", "app", []map[string]string{{"*": "*"}})
		return
	}
	w.line(1, "apps:")
	w.pair(1, "- name", app.Name)
	if app.Description != "" {
		w.pair(2, "description", app.Description)
	}
	w.pair(2, "uri", app.URI)
	if app.PublicAddr != "" {
		w.pair(2, "public_addr", app.PublicAddr)
	}
	w.labels(2, "labels", app.Labels)
}

func (p *GenerateParams) writeDB(w *yamlWriter) {
	if !p.has(types.RoleDB) {
		return
	}
	w.enabled("db_service", true)
	db := p.DB
	switch {
	case len(db.Matchers) > 0:
		w.matchers("databases", "db", db.Matchers)
	case db.Name == "":
		w.matchers("databases", "db", []map[string]string{{"*": "*"}})
	}
	if db.Name == "" {
		return
	}
	w.line(1, "databases:")
	w.pair(1, "- name", db.Name)
	if db.Description != "" {
		w.pair(2, "description", db.Description)
	}
	w.pair(2, "protocol", db.Protocol)
	w.pair(2, "uri", db.URI)
	if db.CACertFile != "" || db.TrustSystemCertPool {
		w.line(2, "tls:")
	}
	if db.CACertFile != "" {
		w.pair(3, "ca_cert_file", db.CACertFile)
	}
	if db.TrustSystemCertPool {
		w.line(3, "trust_system_cert_pool: yes")
	}
	w.labels(2, "static_labels", db.Labels)
}

// matchers writes `resources`.
func (w *yamlWriter) matchers(what, kind string, list []map[string]string) {
	w.line(1, "# "+strings.ToUpper(what[:1])+what[1:]+" of the cluster (tctl create, kind "+kind+") that are served here, by their labels.")
	w.line(1, "resources:")
	for _, labels := range list {
		w.line(1, "- labels:")
		w.labelLines(3, labels)
	}
}

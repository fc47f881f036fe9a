package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestAppCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*typesv1.App)
		want string
	}{
		{"http", func(*typesv1.App) {}, ""},
		{"https with a path", func(a *typesv1.App) { a.Spec.Uri = "https://grafana.internal/base" }, ""},
		{"tcp", func(a *typesv1.App) { a.Spec.Uri = "tcp://10.0.0.1:5000" }, ""},
		{"tcp without a port", func(a *typesv1.App) { a.Spec.Uri = "tcp://10.0.0.1" }, "spec.uri"},
		{"another scheme", func(a *typesv1.App) { a.Spec.Uri = "ftp://10.0.0.1" }, "spec.uri"},
		{"a password", func(a *typesv1.App) { a.Spec.Uri = "http://u:p@10.0.0.1" }, "spec.uri"},
		{"a query", func(a *typesv1.App) { a.Spec.Uri = "http://10.0.0.1/?x" }, "spec.uri"},
		{"no uri", func(a *typesv1.App) { a.Spec.Uri = "" }, "spec.uri"},
		{"upper case", func(a *typesv1.App) { a.Metadata.Name = "Grafana" }, "metadata.name"},
		{"a dot", func(a *typesv1.App) { a.Metadata.Name = "a.b" }, "metadata.name"},
		{"address with a port", func(a *typesv1.App) { a.Spec.PublicAddr = "a.example.com:443" }, "spec.public_addr"},
		{"address by number", func(a *typesv1.App) { a.Spec.PublicAddr = "10.0.0.1" }, "spec.public_addr"},
		{"our own header", func(a *typesv1.App) {
			a.Spec.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{{Name: "teleport-JWT-assertion", Value: "x"}}}
		}, "spec.rewrite.headers[0].name"},
		{"a header of two lines", func(a *typesv1.App) {
			a.Spec.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{{Name: "X-User", Value: "a\r\nB: c"}}}
		}, "spec.rewrite.headers[0].value"},
		{"a header by trait", func(a *typesv1.App) {
			a.Spec.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{{Name: "X-User", Value: "u={{external.email}}"}}}
		}, ""},
		{"claims", func(a *typesv1.App) { a.Spec.Rewrite = &typesv1.AppRewrite{JwtClaims: "some"} }, "spec.rewrite.jwt_claims"},
		{"credentials for anybody", func(a *typesv1.App) {
			a.Spec.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"*"}, AllowCredentials: true}
		}, "spec.cors.allow_credentials"},
		{"no origin", func(a *typesv1.App) { a.Spec.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"example.com"}} }, "spec.cors.allowed_origins[0]"},
		{"no verification of nothing", func(a *typesv1.App) { a.Spec.InsecureSkipVerify = true }, "spec.insecure_skip_verify"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := minimal(types.KindApp).(*typesv1.App)
			c.edit(a)
			checkProblem(t, types.Check(a), c.want)
		})
	}
}

func TestDatabaseCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*typesv1.Database)
		want string
	}{
		{"host and port", func(*typesv1.Database) {}, ""},
		{"a URI", func(d *typesv1.Database) { d.Spec.Uri = "mongodb://db.internal:27017/?replicaSet=rs0" }, ""},
		{"a password", func(d *typesv1.Database) { d.Spec.Uri = "redis://u:p@db.internal" }, "spec.uri"},
		{"a host alone", func(d *typesv1.Database) { d.Spec.Uri = "db.internal" }, ""},
		{"a port of letters", func(d *typesv1.Database) { d.Spec.Uri = "db.internal:pg" }, "spec.uri"},
		{"protocol", func(d *typesv1.Database) { d.Spec.Protocol = "dbase" }, "spec.protocol"},
		{"sqlserver", func(d *typesv1.Database) { d.Spec.Protocol = "sqlserver" }, "spec.protocol"},
		{"clickhouse", func(d *typesv1.Database) { d.Spec.Protocol = "clickhouse" }, "spec.protocol"},
		{"mode", func(d *typesv1.Database) { d.Spec.Tls = &typesv1.DatabaseTLS{Mode: "no"} }, "spec.tls.mode"},
		{"no certificates", func(d *typesv1.Database) { d.Spec.Tls = &typesv1.DatabaseTLS{CaCert: "abc"} }, "spec.tls.ca_cert"},
		{"admin", func(d *typesv1.Database) { d.Spec.AdminUser = &typesv1.DatabaseAdminUser{} }, "spec.admin_user.name"},
		{"a digit first", func(d *typesv1.Database) { d.Metadata.Name = "1st" }, "metadata.name"},
		{"of another protocol", func(d *typesv1.Database) { d.Spec.Mysql = &typesv1.DatabaseMySQL{} }, "spec.mysql"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := minimal(types.KindDatabase).(*typesv1.Database)
			c.edit(d)
			checkProblem(t, types.Check(d), c.want)
		})
	}
}

func checkProblem(t *testing.T, err error, path string) {
	t.Helper()
	switch {
	case path == "" && err != nil:
		t.Errorf("Check: %v", err)
	case path != "" && (err == nil || !strings.HasPrefix(err.Error(), path+":")):
		t.Errorf("Check: %v, want a problem of %s", err, path)
	}
}

func TestServedLabels(t *testing.T) {
	a := minimal(types.KindApp).(*typesv1.App)
	a.Metadata.Labels = map[string]string{"env": "prod"}
	a.Spec.DynamicLabels = map[string]*typesv1.CommandLabel{"env": {Result: "test"}, "load": {Result: "low"}}
	got := types.AppLabels(a)
	if len(got) != 2 || got["env"] != "prod" || got["load"] != "low" {
		t.Errorf("AppLabels = %v, want the label of the application's own and the result of the command", got)
	}
}

package main

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestAccessExplainResource(t *testing.T) {
	c := setUp(t)
	putWorld(t, c, 1)
	dbs := types.New(types.KindRole, "dbs").(*typesv1.Role)
	dbs.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
		AppLabels: map[string]*typesv1.Strings{"env": {Values: []string{"dev"}}},
		DbLabels:  map[string]*typesv1.Strings{"env": {Values: []string{"dev"}}}, DbUsers: []string{"reader"}, DbNames: []string{"*"},
	}}
	c.Resources.Put(dbs)
	user := types.New(types.KindUser, "carol").(*typesv1.User)
	user.Spec = &typesv1.UserSpec{Roles: []string{"dbs"}}
	c.Resources.Put(user)
	for host, env := range map[string]string{"id-1": "prod", "id-2": "dev"} {
		app := types.New(types.KindAppServer, types.ServerName("grafana", host)).(*typesv1.AppServer)
		app.Metadata.Labels = map[string]string{"env": env}
		app.Spec = &typesv1.AppServerSpec{HostId: host, App: types.New(types.KindApp, "grafana").(*typesv1.App)}
		c.Resources.Put(app)
	}
	db := types.New(types.KindDatabaseServer, types.ServerName("orders", "id-1")).(*typesv1.DatabaseServer)
	db.Metadata.Labels = map[string]string{"env": "dev"}
	db.Spec = &typesv1.DatabaseServerSpec{HostId: "id-1", Database: types.New(types.KindDatabase, "orders").(*typesv1.Database)}
	c.Resources.Put(db)
	for _, tt := range []struct{ says, args string }{
		{`allowed: role "dbs" allows this application by allow.app_labels`, "carol --app=grafana"},
		{`no role of user "alice" allows this application`, "alice --app=grafana"},
		{"Database User  reader", "carol --db=orders --db-user=reader --db-name=main"},
		{`allowed: role "dbs" allows user "reader" in database "main" of this server by allow.db_labels`, "carol --db=orders --db-user=reader --db-name=main"},
		{`"root" is not among its db_users: reader`, "carol --db=orders --db-user=root"},
	} {
		if out := ok(t, "", append([]string{"access", "explain"}, strings.Fields(tt.args)...)...); !strings.Contains(out, tt.says) {
			t.Errorf("explain %s: %q is not in\n%s", tt.args, tt.says, out)
		}
	}
	fails(t, 1, `no agent serves an application "nothing"`, "access", "explain", "carol", "--app=nothing")
	fails(t, 1, `no agent serves a database "nothing"`, "access", "explain", "carol", "--db=nothing")
	fails(t, 2, "go with --db", "access", "explain", "carol", "--db-user=x")
	fails(t, 2, "alone", "access", "explain", "carol", "root@web-0", "--app=grafana")
}

package main

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/clienttest"
	"teleport/internal/identity"
	"teleport/internal/types"
)

func database(name, protocol, host string, labels map[string]string) *typesv1.DatabaseServer {
	return &typesv1.DatabaseServer{
		Kind: types.KindDatabaseServer, Version: "v3", Metadata: &typesv1.Metadata{Name: types.ServerName(name, host), Labels: labels},
		Spec: &typesv1.DatabaseServerSpec{HostId: host, Hostname: "h", Database: &typesv1.Database{
			Kind: types.KindDatabase, Version: "v3", Metadata: &typesv1.Metadata{Name: name, Description: "of " + name},
			Spec: &typesv1.DatabaseSpec{Protocol: protocol, Uri: name + ".internal:5432"},
		}},
	}
}

func application(name, uri, host string, labels map[string]string) *typesv1.AppServer {
	return &typesv1.AppServer{
		Kind: types.KindAppServer, Version: "v3", Metadata: &typesv1.Metadata{Name: types.ServerName(name, host), Labels: labels},
		Spec: &typesv1.AppServerSpec{HostId: host, Hostname: "h", App: &typesv1.App{
			Kind: types.KindApp, Version: "v3", Metadata: &typesv1.Metadata{Name: name},
			Spec: &typesv1.AppSpec{Uri: uri},
		}},
	}
}

// estate is a cluster with databases and applications, somebody who is logged in, and a
// home directory of its own.
func estate(t *testing.T) (c *clienttest.Cluster, home string) {
	t.Helper()
	c = setUp(t)
	home = t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("PGSERVICEFILE", "")
	other := "7905dda3-779e-493b-a1c5-8d0bd3a0a2f1"
	c.Resources.Put(database("orders", "postgres", clienttest.AgentID, map[string]string{"env": "prod"}))
	c.Resources.Put(database("orders", "postgres", other, map[string]string{"env": "prod"}))
	c.Resources.Put(database("stock", "mysql", clienttest.AgentID, map[string]string{"env": "dev"}))
	c.Resources.Put(database("cache", "redis", clienttest.AgentID, map[string]string{"env": "dev"}))
	c.Resources.Put(database("none", "postgres", clienttest.AgentID, nil))
	c.Resources.Put(application("grafana", "http://localhost:3000", clienttest.AgentID, map[string]string{"env": "prod"}))
	c.Resources.Put(application("grafana", "http://localhost:3000", other, map[string]string{"env": "prod"}))
	c.Resources.Put(application("queue", "tcp://localhost:5672", clienttest.AgentID, nil))
	signIn(t, c)
	return c, home
}

// steady replaces what differs from run to run.
func steady(s string, home string) string {
	s = strings.ReplaceAll(s, os.Getenv("TELEPORT_HOME"), "TSH")
	s = strings.ReplaceAll(s, home, "HOME")
	s = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(s, "TIME")
	return regexp.MustCompile(`\b2\d{4}\b`).ReplaceAllString(s, "PORT")
}

func same(t *testing.T, what, want, got string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

func TestDBLs(t *testing.T) {
	estate(t)
	same(t, "ls", `Name   Description Protocol Labels   Connect
------ ----------- -------- -------- -------
cache  of cache    redis    env=dev
none   of none     postgres
orders of orders   postgres env=prod
stock  of stock    mysql    env=dev
`, spaceless(ok(t, "", "db", "ls")))
	ok(t, "", "db", "login", "orders")
	same(t, "ls after login", `Name     Description Protocol URI                  Labels   Connect
-------- ----------- -------- -------------------- -------- ---------------------
> orders of orders   postgres orders.internal:5432 env=prod tsh db connect orders
`, spaceless(ok(t, "", "db", "ls", "-v", "env=prod")))
	var list []struct {
		Kind     string
		Metadata struct {
			Name   string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal([]byte(ok(t, "", "db", "ls", "--format=json", "--query=name == \"stock\"")), &list); err != nil ||
		len(list) != 1 || list[0].Kind != "db" || list[0].Metadata.Labels["env"] != "dev" {
		t.Errorf("json: %v, %v", list, err)
	}
	if got := ok(t, "", "db", "ls", "-R", "--search=stock"); !strings.Contains(got, "test.example.com stock") {
		t.Errorf("ls -R: %q", got)
	}
}

// spaceless takes the spaces at the ends of lines away.
func spaceless(s string) string { return regexp.MustCompile(`(?m) +$`).ReplaceAllString(s, "") }

func TestDBLoginConfigLogout(t *testing.T) {
	_, home := estate(t)
	services := filepath.Join(home, ".pg_service.conf")
	if err := os.WriteFile(services, []byte("[mine]\nhost=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := ok(t, "", "db", "login", "--db-user=it's", "--db-name=shop", "orders")
	if !strings.HasPrefix(got, `Logged into database "orders", until `) {
		t.Errorf("login: %q", got)
	}
	keys := "TSH/keys/127.0.0.1/alice-db/test.example.com/orders"
	ca := "TSH/keys/127.0.0.1/cas/test.example.com.pem"
	content := func(path string) string {
		data, _ := os.ReadFile(path)
		return steady(string(data), home)
	}
	same(t, "services", `[mine]
host=x
[test.example.com-orders]
host=db.teleport.cluster.local
hostaddr=127.0.0.1
port=PORT
sslmode=verify-full
sslrootcert=`+ca+`
sslcert=`+keys+`.crt
sslkey=`+keys+`.key
gssencmode=disable
user=it's
dbname=shop
`, content(services))
	same(t, "env", `export PGDATABASE=shop
export PGGSSENCMODE=disable
export PGHOST=db.teleport.cluster.local
export PGHOSTADDR=127.0.0.1
export PGPORT=PORT
export PGSSLCERT=`+keys+`.crt
export PGSSLKEY=`+keys+`.key
export PGSSLMODE=verify-full
export PGSSLROOTCERT=`+ca+`
export PGUSER='it'\''s'
`, steady(ok(t, "", "db", "env"), home))
	same(t, "config", `Name:         orders
Host:         localhost
Port:         PORT
Server name:  db.teleport.cluster.local
User:         it's
Database:     shop
CA:           `+ca+`
Cert:         `+keys+`.crt
Key:          `+keys+`.key
`, steady(ok(t, "", "db", "config"), home))
	same(t, "cmd", "psql 'service=test.example.com-orders'\n", ok(t, "", "db", "config", "-f", "cmd", "orders"))
	for _, suffix := range []string{".crt", ".key"} {
		path := strings.ReplaceAll(keys, "TSH", os.Getenv("TELEPORT_HOME")) + suffix
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}

	ok(t, "", "db", "login", "stock", "--db-user=app")
	mine := filepath.Join(home, ".my.cnf")
	same(t, "options", `[client_test.example.com-stock]
host=127.0.0.1
protocol=tcp
port=PORT
ssl-ca="`+ca+`"
ssl-cert="`+strings.ReplaceAll(keys, "orders", "stock")+`.crt"
ssl-key="`+strings.ReplaceAll(keys, "orders", "stock")+`.key"
user="app"
`, content(mine))
	fails(t, 2, "say which: orders, stock", "db", "config")
	ok(t, "", "db", "login", "cache")
	fails(t, 1, "take no variables", "db", "env", "cache")
	if got := ok(t, "", "db", "config", "-f", "cmd", "cache"); !strings.HasPrefix(got, "redis-cli -h 127.0.0.1 -p ") {
		t.Errorf("redis: %q", got)
	}
	if got := ok(t, "", "status"); !strings.Contains(got, "Databases:     cache, orders, stock\n") {
		t.Errorf("status: %q", got)
	}

	same(t, "logout", "Logged out of database \"orders\"\n", ok(t, "", "db", "logout", "orders"))
	same(t, "services after logout", "[mine]\nhost=x\n", content(services))
	fails(t, 1, `not logged in to "orders"`, "db", "logout", "orders")
	fails(t, 1, "run tsh db login orders", "db", "config", "orders")
	fails(t, 1, "run tsh db login orders; or give --tunnel", "proxy", "db", "orders")
	ok(t, "", "logout")
	same(t, "options after tsh logout", "", content(mine))
	if found, _ := filepath.Glob(filepath.Join(os.Getenv("TELEPORT_HOME"), "keys", "*", "alice-*")); len(found) != 0 {
		t.Errorf("left after tsh logout: %q", found)
	}
}

func TestDBChoosing(t *testing.T) {
	c, _ := estate(t)
	fails(t, 2, "say which database", "db", "login")
	fails(t, 1, `there is no database "nope" that you may use: see tsh db ls`, "db", "login", "nope")
	fails(t, 1, "2 databases are meant, say which by its name: cache, stock", "db", "login", "--labels=env=dev")
	fails(t, 2, "you are logged in to cluster", "db", "login", "-c", "other", "orders")
	ok(t, "", "db", "login", "--query=labels[\"env\"] == \"prod\"")
	if got := ok(t, "", "db", "logout"); got != "Logged out of database \"orders\"\n" {
		t.Errorf("logout: %q", got)
	}
	fails(t, 2, "not supported yet", "db", "login", "--request-reason=x", "orders")
	fails(t, 2, "this needs a login", "db", "login", "--identity=x", "--proxy="+c.Addr, "orders")
}

// fakeProgram puts a program before all others that writes its arguments, runs a
// script and ends with code 3.
func fakeProgram(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nfor a in \"$@\"; do echo \"arg $a\"; done\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestDBConnect(t *testing.T) {
	c, _ := estate(t)
	var user *identity.User
	c.Agent.Serve = func(conn *tls.Conn, u *identity.User) {
		user = u
		_, _ = io.WriteString(conn, "hello of "+conn.ConnectionState().NegotiatedProtocol)
		_ = conn.CloseWrite()
	}
	c.Agent.Protocols = []string{"teleport-postgres", "teleport-redis"}
	t.Setenv("PGHOSTADDR", "192.0.2.1")
	t.Setenv("PGSSLMODE", "verify-full")
	fakeProgram(t, "psql", `env | grep '^PG[A-Z]*=.'
dir=$(printf '%s' "$1" | sed "s/.*host='\([^']*\)'.*/\1/")
ls -ld "$dir" | cut -c1-10
socat -u "UNIX-CONNECT:$dir/.s.PGSQL.5432" -
exit 3`)
	code, out, talk := tsh(t, "", "db", "connect", "-u", "o'brien", "-n", "shop", "orders", "--", "-c", "select 1")
	out = regexp.MustCompile(`/\S*tsh-db-\d+`).ReplaceAllString(out, "DIR")
	want := "arg --dbname=host='DIR' port=5432 user='o\\'brien' dbname='shop'\narg -c\narg select 1\ndrwx------\nhello of teleport-postgres"
	if code != 3 || out != want {
		t.Errorf("exit code %d, %q, %q; want 3, %q", code, out, talk, want)
	}
	if user == nil || user.Database == nil || user.Database.User != "o'brien" || user.Database.Name != "shop" {
		t.Errorf("the agent saw %+v", user)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "tsh-db-*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	// Without -u it is the user of tsh db login, and otherwise the name in Teleport.
	ok(t, "", "db", "login", "-u", "app", "orders")
	if _, out, _ := tsh(t, "", "db", "connect", "orders"); !strings.Contains(out, "user='app'") {
		t.Errorf("%q", out)
	}
	ok(t, "", "db", "logout")
	if _, out, _ := tsh(t, "", "db", "connect", "orders"); !strings.Contains(out, "user='alice'") {
		t.Errorf("%q", out)
	}
	fakeProgram(t, "redis-cli", `kill -TERM $$`)
	if code, out, _ := tsh(t, "", "db", "connect", "cache", "-n", "2"); code != 143 || !strings.Contains(out, "arg -n\narg 2\n") {
		t.Errorf("exit code %d, %q", code, out)
	}
	t.Setenv("PATH", t.TempDir())
	fails(t, 1, "psql is not installed", "db", "connect", "orders")
}

func TestDBExec(t *testing.T) {
	estate(t)
	fakeProgram(t, "psql", `case "$1" in *bad*) echo broken >&2; exit 1;; esac`)
	fakeProgram(t, "mariadb", `:`)
	fakeProgram(t, "mysql", `:`)
	fails(t, 2, "say which databases", "db", "exec", "select 1")
	fails(t, 2, "--parallel is 1 to 10", "db", "exec", "--dbs=orders", "--parallel=11", "select 1")
	fails(t, 2, "does not go with", "db", "exec", "--dbs=orders", "--search=x", "select 1")
	fails(t, 1, "there is no database nope", "db", "exec", "--dbs=orders,nope", "select 1")
	fails(t, 1, "is for PostgreSQL and MySQL", "db", "exec", "--dbs=cache", "select 1")
	code, out, talk := tsh(t, "n\n", "db", "exec", "--dbs=orders", "select 1")
	if code != 1 || out != "" || !strings.Contains(talk, "nothing was done") {
		t.Errorf("no: %d, %q, %q", code, out, talk)
	}
	code, out, talk = tsh(t, "y\n", "db", "exec", "--dbs=orders,stock", "--parallel=2", "-u", "app", "select 1")
	if code != 0 || !strings.Contains(out, "[orders] arg --command=select 1\n") || !strings.Contains(out, "[stock] arg --execute=select 1\n") {
		t.Errorf("yes: %d, %q, %q", code, out, talk)
	}
	dir := filepath.Join(t.TempDir(), "out")
	code, _, talk = tsh(t, "", "db", "exec", "--no-confirm", "--search=orders", "--output-dir="+dir, "-u", "bad", "select 1")
	if code != 1 || !strings.Contains(talk, "1 of 1 databases failed") {
		t.Errorf("failure: %d, %q", code, talk)
	}
	var summary struct {
		Databases []dbResult
		Failure   int
	}
	data, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &summary); err != nil || summary.Failure != 1 || summary.Databases[0].ExitCode != 1 {
		t.Errorf("summary: %s, %v", data, err)
	}
	if data, err = os.ReadFile(filepath.Join(dir, "orders.output")); err != nil || !strings.Contains(string(data), "broken") {
		t.Errorf("output: %q, %v", data, err)
	}
}

// running is a tsh that goes on until it is stopped.
// Write keeps what tsh says.
// await returns the first group of the expression once it was said.
// start runs a command line until the test ends; it has to end with code 0 then.
// Without a tunnel the program's bytes reach the agent as they are.
// What the Proxy refuses is told to the program and on the terminal.
func TestApps(t *testing.T) {
	_, home := estate(t)
	same(t, "ls", `Application Description Type Public Address    Labels
----------- ----------- ---- ----------------- --------
grafana                 HTTP grafana.127.0.0.1 env=prod
queue                   TCP  queue.127.0.0.1
`, spaceless(ok(t, "", "apps", "ls")))
	got := ok(t, "", "apps", "login", "grafana")
	if !strings.HasPrefix(got, `Logged into app "grafana", until `) || !strings.Contains(got, "\n\ncurl \\\n") || !strings.Contains(got, "  --key ") {
		t.Errorf("login: %q", got)
	}
	if got := ok(t, "", "apps", "login", "queue"); !strings.Contains(got, "  tsh proxy app queue\n") {
		t.Errorf("login to a TCP app: %q", got)
	}
	if got := ok(t, "", "app", "ls", "--search=grafana"); !strings.Contains(got, "> grafana") {
		t.Errorf("ls after login: %q", got)
	}
	base := "TSH/keys/127.0.0.1/alice-app/test.example.com/grafana"
	if got := steady(ok(t, "", "apps", "config", "-f", "cert", "grafana"), home); got != base+".crt\n" {
		t.Errorf("config: %q", got)
	}
	var conf appConfig
	if err := json.Unmarshal([]byte(ok(t, "", "apps", "config", "-f", "json", "grafana")), &conf); err != nil || !strings.HasPrefix(conf.URI, "https://grafana.") {
		t.Errorf("config: %+v, %v", conf, err)
	}
	fails(t, 2, "say which: grafana, queue", "apps", "config")
	if got := ok(t, "", "status"); !strings.Contains(got, "Applications:  grafana, queue\n") {
		t.Errorf("status: %q", got)
	}
	same(t, "logout", "Logged out of app \"grafana\"\nLogged out of app \"queue\"\n", ok(t, "", "apps", "logout"))
	fails(t, 1, "not logged in to an application: run tsh apps login NAME", "apps", "config")
}

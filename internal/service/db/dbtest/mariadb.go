package dbtest

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// MariaDB runs a MariaDB server with TLS, until the test ends. It has the users alice and
// bob, who log in with certificates, admin, who may make others, the role reader, and the
// databases app and other. Lines are added to my.cnf.
func MariaDB(t testing.TB, lines string) *Server {
	t.Helper()
	if _, err := exec.LookPath("mariadbd"); err != nil {
		t.Fatal("mariadbd is missing: apt-get install mariadb-server")
	}
	s := NewServer(t, "mysql")
	f := s.Files(t)
	conf := s.Write(t, "my.cnf", "[mariadbd]\nport = "+s.Port+"\nbind_address = 127.0.0.1\ndatadir = "+s.Path("data")+"\nsocket = "+s.Path("sock")+
		"\npid_file = "+s.Path("pid")+"\nssl_cert = "+f.Cert+"\nssl_key = "+f.Key+"\nssl_ca = "+f.CA+
		"\nplugin_dir = /usr/lib/mysql/plugin\ninnodb_flush_log_at_trx_commit = 0\ninnodb_buffer_pool_size = 32M\nlocal_infile = 1\nskip_name_resolve\n"+lines)
	install := []string{"--no-defaults", "--datadir=" + s.Path("data"), "--auth-root-authentication-method=normal", "--skip-test-db"}
	s.Setup(t, "mariadb-install-db", install...)
	s.Start(t, s.Listens, "mariadbd", "--defaults-file="+conf)
	sql := []string{
		"CREATE DATABASE app", "CREATE DATABASE other", "CREATE ROLE reader", "GRANT SELECT ON app.* TO reader",
		"CREATE USER admin@'%' REQUIRE SUBJECT '/CN=admin'", "GRANT ALL ON *.* TO admin@'%' WITH GRANT OPTION", "GRANT reader TO admin@'%' WITH ADMIN OPTION",
	}
	for _, name := range []string{"alice", "bob"} {
		sql = append(sql, fmt.Sprintf("CREATE USER %s@'%%' REQUIRE SUBJECT '/CN=%s'", name, name), fmt.Sprintf("GRANT ALL ON app.* TO %s@'%%'", name), fmt.Sprintf("GRANT ALL ON other.* TO %s@'%%'", name))
	}
	s.SQL(t, strings.Join(sql, ";"))
	return s
}

// StopMariaDB ends the server, and its sessions.
func (s *Server) StopMariaDB() { s.Stop(syscall.SIGTERM) }

// SQL runs statements as the superuser of MariaDB, and returns what the client prints.
func (s *Server) SQL(t testing.TB, sql string) string {
	t.Helper()
	return s.Setup(t, "mariadb", "--no-defaults", "-S", s.Path("sock"), "-N", "-B", "-u", "root", "-e", sql)
}

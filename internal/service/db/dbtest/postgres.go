package dbtest

import (
	"path/filepath"
	"syscall"
	"testing"
)

// PostgresHost is the line of pg_hba.conf by which the agent logs in; the how-to has it
// word for word.
const PostgresHost = "hostssl all all all cert"

// postgresBin is where Debian keeps the programs of the server.
func postgresBin(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		t.Fatalf("%s is missing: apt-get install postgresql", name)
	}
	return found[len(found)-1]
}

// Postgres runs a PostgreSQL server with TLS and client certificates, until the test ends.
// It has the users alice, bob and admin (who may make others), the role reader, and the
// database postgres; Setup with PSQL changes more. Lines are added to postgresql.conf.
func Postgres(t testing.TB, lines string) *Server {
	t.Helper()
	s := NewServer(t, "postgres")
	f := s.Files(t)
	data := s.Path("data")
	s.Setup(t, postgresBin(t, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
	s.Write(t, "data/postgresql.conf", "listen_addresses = '127.0.0.1'\nport = "+s.Port+"\nunix_socket_directories = '"+s.Dir+"'\n"+
		"ssl = on\nssl_cert_file = '"+f.Cert+"'\nssl_key_file = '"+f.Key+"'\nssl_ca_file = '"+f.CA+"'\nfsync = off\nmax_connections = 60\nshared_buffers = 64MB\n"+lines)
	s.Write(t, "data/pg_hba.conf", "local all postgres trust\n"+PostgresHost+"\n")
	s.RunPostgres(t)
	s.PSQL(t, `CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE admin LOGIN CREATEROLE; CREATE ROLE reader; GRANT ALL ON SCHEMA public TO PUBLIC`)
	return s
}

// RunPostgres starts the server of Postgres again.
func (s *Server) RunPostgres(t testing.TB) {
	t.Helper()
	s.Start(t, func() error {
		cmd := s.Command(postgresBin(t, "pg_isready"), "-q", "-h", s.Dir, "-p", s.Port)
		return cmd.Run()
	}, postgresBin(t, "postgres"), "-D", s.Path("data"))
}

// StopPostgres ends the server, and its sessions, at once.
func (s *Server) StopPostgres() { s.Stop(syscall.SIGINT) }

// PSQL runs statements as the superuser, and returns what psql prints.
func (s *Server) PSQL(t testing.TB, sql string) string {
	t.Helper()
	return s.Setup(t, postgresBin(t, "psql"), "-X", "-At", "-v", "ON_ERROR_STOP=1", "-h", s.Dir, "-p", s.Port, "-U", "postgres", "-c", sql)
}

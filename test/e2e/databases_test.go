package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"teleport/internal/service/db/dbtest"
)

// scriptTB is a script for helpers that want a test.
type scriptTB struct {
	testing.TB
	ts *testscript.TestScript
}

// Helper does nothing.
func (s scriptTB) Helper() {}

// Fatal ends the script.
func (s scriptTB) Fatal(args ...any) { s.ts.Fatalf("%s", fmt.Sprint(args...)) }

// Fatalf ends the script.
func (s scriptTB) Fatalf(format string, args ...any) { s.ts.Fatalf(format, args...) }

// Cleanup calls f at the end of the script.
func (s scriptTB) Cleanup(f func()) { s.ts.Defer(f) }

// postgres VAR BASE runs a PostgreSQL server on 127.0.0.1 with TLS by BASE.crt, BASE.key
// and BASE.cas, as tctl auth sign makes them, which lets in whoever has a client
// certificate; it has the users app and $LOGIN and the database shop. The variable is
// its port.
func postgres(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: postgres VAR BASE")
	}
	t := scriptTB{ts: ts}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		ts.Fatalf("initdb is missing: apt-get install postgresql")
	}
	s := dbtest.NewServer(t, "postgres")
	s.Setup(t, found[len(found)-1], "-D", s.Path("data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
	files := map[string]string{}
	for _, name := range []string{"crt", "key", "cas"} {
		files[name] = s.Write(t, "server."+name, ts.ReadFile(args[1]+"."+name))
	}
	s.Write(t, "data/postgresql.conf", "listen_addresses = '127.0.0.1'\nport = "+s.Port+"\nunix_socket_directories = '"+s.Dir+"'\nfsync = off\nssl = on\n"+
		"ssl_cert_file = '"+files["crt"]+"'\nssl_key_file = '"+files["key"]+"'\nssl_ca_file = '"+files["cas"]+"'\n")
	s.Write(t, "data/pg_hba.conf", "local all postgres trust\n"+dbtest.PostgresHost+"\n")
	s.RunPostgres(t)
	for _, sql := range []string{"CREATE ROLE app LOGIN", "CREATE DATABASE shop OWNER app"} {
		s.PSQL(t, sql)
	}
	ts.Setenv(args[0], s.Port)
}

// website VAR runs an HTTP application, which answers with what it was asked: method,
// path and headers, a line each, and then the body. The variable is its port.
func website(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: website VAR")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s\nHost: %s\n", r.Method, r.RequestURI, r.Host)
		_ = r.Header.Write(w)
		_, _ = io.Copy(w, r.Body)
	}))
	ts.Defer(server.Close)
	ts.Setenv(args[0], portOf(server.Listener))
}

// echoes VAR runs a TCP application that sends everything back. The variable is its
// port.
func echoes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: echoes VAR")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	ts.Setenv(args[0], portOf(ln))
}

func portOf(ln net.Listener) string {
	addr := ln.Addr().String()
	return addr[strings.LastIndexByte(addr, ':')+1:]
}

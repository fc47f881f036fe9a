package passthrough_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/passthrough"
)

// echo is a TLS server that wants a client certificate, tells whose it is, and repeats
// what it is told, up to the end of the client's side.
func echo(t *testing.T) (port string) {
	t.Helper()
	f := dbtest.ServerFiles(t, t.TempDir(), "localhost", "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				c, _ := raw.(*tls.Conn)
				if c.Handshake() != nil {
					return
				}
				_, _ = io.WriteString(c, "you are "+c.ConnectionState().PeerCertificates[0].Subject.CommonName+"\n")
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "bye\n")
			}()
		}
	}()
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

func TestPassthrough(t *testing.T) {
	w := dbtest.Start(t, passthrough.New(), []*typesv1.Database{dbtest.Database("ldap", "tls", "localhost:"+echo(t))}, nil)
	carol := w.Person(t, "alice", "ldap", nil, func(r *ca.UserRequest) { r.Identity.User.Database.User = "carol" })
	c, err := carol.Dial(t.Context(), "ldap")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); line != "you are carol\n" {
		t.Fatalf("%q, %v", line, err)
	}
	big := strings.Repeat("x", 1<<20) + "\n"
	go func() {
		_, _ = io.WriteString(c, big)
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	if got, err := io.ReadAll(r); string(got) != big+"bye\n" {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	start := w.Events.Wait(t, "TDB00I", nil)
	w.Events.Wait(t, "TDB01I", func(e *auditv1.Event) bool { return dbtest.Field(e, "sid") == dbtest.Field(start, "sid") })
	if dbtest.Field(start, "db_user") != "carol" {
		t.Errorf("TDB00I = %v", start)
	}
	nobody, err := w.Person(t, "alice", "ldap", nil, nil).Dial(t.Context(), "ldap")
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if got, _ := io.ReadAll(nobody); len(got) > 0 {
		t.Errorf("without a database user: %q", got)
	}
}

package clickhouse_test

import (
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"teleport/internal/service/db/dbtest"
)

// server stands for ClickHouse, which cannot be had here: it logs in by certificate as
// HTTPHandler::authenticateUser does, finds the query where the server finds it, and
// answers a handful of queries and errors in the same way.
type server struct {
	port string
	// inserted counts the bytes of inserts.
	inserted atomic.Int64
	// release ends the query that waits.
	release chan struct{}
}

func serve(t testing.TB) *server {
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
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{release: make(chan struct{})}
	_, s.port, _ = net.SplitHostPort(ln.Addr().String())
	srv := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), MaxHeaderBytes: 2 << 20}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return s
}

// exception answers with an error.
func exception(w http.ResponseWriter, status, code int, text string) {
	w.Header().Set("X-ClickHouse-Exception-Code", strconv.Itoa(code))
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "Code: %d. DB::Exception: %s\n", code, text)
}

// login returns who a request is, or why nobody.
func login(r *http.Request) (user, problem string) {
	user = r.Header.Get("X-ClickHouse-User")
	_, _, basic := r.BasicAuth()
	params := parameters(r)
	switch {
	case r.Header.Get("X-ClickHouse-SSL-Certificate-Auth") != "on":
		return "", "there is no password here, only certificates"
	case r.Header.Get("X-ClickHouse-Key") != "":
		return "", "SSL certificate authentication and authentication via password are both asked for"
	case basic || r.Header.Get("Authorization") != "":
		return "", "SSL certificate authentication and Authorization are both asked for"
	case params.Has("user") || params.Has("password"):
		return "", "SSL certificate authentication and parameters are both asked for"
	case len(r.Header.Values("X-ClickHouse-User")) != 1:
		return "", "no single user"
	case user != "alice" && user != "bob" && user != "default":
		return "", "there is no user " + user
	case r.TLS.PeerCertificates[0].Subject.CommonName != user:
		return "", "the certificate is that of " + r.TLS.PeerCertificates[0].Subject.CommonName
	}
	return user, ""
}

// parameters are those of the address; a semicolon ends none of them.
func parameters(r *http.Request) url.Values {
	v, _ := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "%3B"))
	return v
}

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ping" {
		_, _ = io.WriteString(w, "Ok.\n")
		return
	}
	user, problem := login(r)
	if problem != "" {
		exception(w, http.StatusForbidden, 516, user+": Authentication failed: "+problem+". (AUTHENTICATION_FAILED)")
		return
	}
	database := parameters(r).Get("database")
	if h := r.Header.Get("X-ClickHouse-Database"); h != "" {
		database = h
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			exception(w, http.StatusBadRequest, 354, err.Error())
			return
		}
		body = z
	}
	query := strings.Join(parameters(r)["query"], "")
	if !strings.HasPrefix(query, "INSERT") {
		more, err := io.ReadAll(body)
		if err != nil {
			return
		}
		query = strings.TrimSuffix(strings.TrimSpace(query+"\n"+string(more)), ";")
	}
	w.Header().Set("X-ClickHouse-Query-Id", "q")
	s.answer(w, r, query, user, database, body)
}

func (s *server) answer(w http.ResponseWriter, r *http.Request, query, user, database string, body io.Reader) {
	var n int64
	switch {
	case strings.HasPrefix(query, "INSERT"):
		for buf := make([]byte, 64<<10); ; {
			n, err := body.Read(buf)
			s.inserted.Add(int64(n))
			if err != nil {
				break
			}
		}
	case query == "SELECT currentUser(), currentDatabase()":
		_, _ = fmt.Fprintf(w, "%s\t%s\n", user, database)
	case query == "SELECT {n:UInt32}":
		_, _ = fmt.Fprintln(w, parameters(r).Get("param_n"))
	case query == "SELECT sleep(2)":
		select {
		case <-time.After(2 * time.Second):
			_, _ = fmt.Fprintln(w, 0)
		case <-r.Context().Done():
		}
	case query == "SELECT a row at a time":
		_, _ = fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-s.release
		_, _ = fmt.Fprintln(w, "last")
	case query == "SELECT throwIf(number = 100000) FROM numbers(1000000)":
		_, _ = io.WriteString(w, strings.Repeat("0\n", 100_000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case strings.HasPrefix(query, "SELECT * FROM nowhere"):
		exception(w, http.StatusNotFound, 60, "Unknown table expression identifier 'nowhere'. (UNKNOWN_TABLE)")
	case scan(query, "SELECT repeat('x', %d)", &n):
		for chunk := []byte(strings.Repeat("x", 64<<10)); n > 0; n -= int64(len(chunk)) {
			_, _ = w.Write(chunk[:min(n, int64(len(chunk)))])
		}
	case strings.HasPrefix(query, "SELECT '"):
		_, _ = fmt.Fprintln(w, strings.Trim(strings.TrimPrefix(query, "SELECT "), "'"))
	default:
		exception(w, http.StatusBadRequest, 62, "Syntax error: "+query[:min(len(query), 100)])
	}
}

func scan(text, format string, into *int64) bool {
	n, err := fmt.Sscanf(text, format, into)
	return n == 1 && err == nil
}

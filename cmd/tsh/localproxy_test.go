package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/client/screen"
	"teleport/internal/identity"
	"teleport/internal/types"
)

type running struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.text.Write(p)
	close(r.more)
	r.more = make(chan struct{})
	return n, err
}

func (r *running) await(t *testing.T, expr string) string {
	t.Helper()
	for re := regexp.MustCompile(expr); ; {
		r.mu.Lock()
		m, more := re.FindStringSubmatch(r.text.String()), r.more
		r.mu.Unlock()
		if m != nil {
			return m[len(m)-1]
		}
		select {
		case <-more:
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s in %q", expr, r.text.String())
		}
	}
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{more: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	a := &app{Streams: screen.Streams{In: strings.NewReader(""), Out: r, Err: r}, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	root.SilenceErrors, root.SilenceUsage = true, true
	go func() { done <- root.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tsh %q: %v", args, err)
		}
	})
	return r
}

func TestProxyDBTunnel(t *testing.T) {
	estate(t)
	r := start(t, "proxy", "db", "--tunnel", "-u", "app", "-n", "shop", "orders")
	addr := r.await(t, `on (127\.0\.0\.1:2\d{4})\n`)
	r.await(t, `psql 'postgres://app@127\.0\.0\.1:2\d{4}/shop'|psql postgres://app@127\.0\.0\.1:2\d{4}/shop`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "ping")
			_ = conn.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "alice at orders\nping" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	// The port is that of the database, and stays.
	fails(t, 1, "this is the port of \"orders\" on this machine", "proxy", "db", "--tunnel", "orders")
	other := start(t, "proxy", "db", "--tunnel", "-p", "0", "orders")
	if got := other.await(t, `on (127\.0\.0\.1:\d+)\n`); got == addr {
		t.Errorf("-p 0 is at %s, too", got)
	}
	socket := filepath.Join(t.TempDir(), ".s.PGSQL.5432")
	third := start(t, "proxy", "db", "--tunnel", "--listen=unix:"+socket, "orders")
	third.await(t, `psql 'host='\\''`)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fails(t, 1, "--insecure-listen-anywhere", "proxy", "db", "--tunnel", "--listen=0.0.0.0:0", "orders")
	fails(t, 2, "give it or --port", "proxy", "db", "--tunnel", "--listen=127.0.0.1:0", "-p", "1", "orders")
}

func TestProxyDBNative(t *testing.T) {
	c, _ := estate(t)
	c.Agent.Native = func(conn net.Conn, req *proxyv1.DialRequest) {
		_, _ = fmt.Fprintf(conn, "%s %s %v ", req.GetService(), req.GetResource(), req.GetNative())
		_, _ = io.Copy(conn, conn)
	}
	ok(t, "", "db", "login", "-u", "app", "orders")
	fails(t, 2, "those of tsh db login", "proxy", "db", "-u", "other", "orders")
	r := start(t, "proxy", "db", "orders")
	addr := r.await(t, `on (127\.0\.0\.1:2\d{4})\n`)
	r.await(t, `psql 'service=test.example.com-orders'`)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "raw")
	want := "Db orders true raw"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestProxyDBRefused(t *testing.T) {
	c, _ := estate(t)
	fails(t, 1, `there is no database "none" that you may use`, "proxy", "db", "--tunnel", "none")
	r := start(t, "proxy", "db", "--tunnel", "orders")
	c.Agent.Role = types.RoleNode
	addr := r.await(t, `on (127\.0\.0\.1:2\d{4})\n`)
	const refusal = `the agent that serves "orders" shows a certificate that is not good for it`
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}) // SSLRequest
	no := make([]byte, 1)
	if _, err := io.ReadFull(conn, no); err != nil || no[0] != 'N' {
		t.Fatalf("%q, %v", no, err)
	}
	_, _ = conn.Write([]byte{0, 0, 0, 9, 0, 3, 0, 0, 0})
	if got, err := io.ReadAll(conn); err != nil || !bytes.Contains(got, []byte("FATAL")) || !bytes.Contains(got, []byte(refusal)) {
		t.Errorf("%q, %v", got, err)
	}
	r.await(t, refusal)
}

func TestProxyApp(t *testing.T) {
	c, _ := estate(t)
	c.Agent.Protocols = []string{"teleport-tcp", "h2", "http/1.1"}
	c.Agent.Serve = func(conn *tls.Conn, u *identity.User) {
		if conn.ConnectionState().NegotiatedProtocol == "teleport-tcp" {
			_, _ = io.WriteString(conn, "tcp "+u.App.Name)
			_ = conn.CloseWrite()
			return
		}
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err == nil {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		}
	}
	fails(t, 1, `has no port "1": it is reached at tcp://localhost:5672`, "proxy", "app", "-p", "0:1", "queue")
	queue := start(t, "proxy", "app", "-p", "0:5672", "queue")
	conn, err := net.Dial("tcp", queue.await(t, `Proxying connections to queue on (\S+)\n`))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "tcp queue" {
		t.Errorf("%q, %v", got, err)
	}
	grafana := start(t, "proxy", "app", "grafana")
	resp, err := http.Get(grafana.await(t, `Proxying connections to grafana on (\S+)\n`) + "/path")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "/path" {
		t.Errorf("%q, %v", got, err)
	}
}

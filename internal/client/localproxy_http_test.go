package client_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"teleport/internal/client"
	"teleport/internal/fault"
)

// application is an HTTP application behind TLS, as an agent is, in both versions of
// HTTP, and a local proxy for it.
func application(t *testing.T, h http.HandlerFunc) (addr string, n *noted) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	n = &noted{}
	app := &client.LocalApp{Note: n.note, Dial: func(ctx context.Context, alpn string) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: roots, NextProtos: []string{alpn}, ServerName: "example.com"}}
		return d.DialContext(ctx, "tcp", server.Listener.Addr().String())
	}}
	return serveLocal(t, app.Serve), n
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// clearHTTP2 is a client that speaks HTTP/2 without TLS, as those of gRPC do.
func clearHTTP2() *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: transport}
}

func TestLocalAppPassesOn(t *testing.T) {
	addr, n := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Sum")
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s %q %q %d", r.Proto, r.Method, r.RequestURI, r.Header["User-Agent"], r.Header["X-Forwarded-For"], len(body))
		w.Header().Set("Sum", "42")
	})
	for proto, c := range map[string]*http.Client{"HTTP/1.1": {Transport: &http.Transport{}}, "HTTP/2.0": clearHTTP2()} {
		t.Run(proto, func(t *testing.T) {
			defer c.CloseIdleConnections()
			// A query that is not well-formed is the application's affair, too.
			resp, got := do(t, c, http.MethodPost, "http://"+addr+"/a%2Fb//c?x=1;y=%zz&z", bytes.NewReader(make([]byte, 3<<20)))
			want := proto + ` POST /a%2Fb//c?x=1;y=%zz&z ["Go-http-client/` + map[string]string{"HTTP/1.1": "1.1", "HTTP/2.0": "2.0"}[proto] + `"] [] 3145728`
			if resp.StatusCode != http.StatusOK || got != want || resp.Trailer.Get("Sum") != "42" {
				t.Errorf("%s, %q, trailers %v\nwant %q", resp.Status, got, resp.Trailer, want)
			}
		})
	}
	if got := n.lines(); len(got) != 0 {
		t.Errorf("told %q", got)
	}
}

// Events come as they are written, and a program that goes away ends the request.
func TestLocalAppStreams(t *testing.T) {
	gone, next := make(chan struct{}), make(chan struct{})
	addr, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 2 {
			_, _ = fmt.Fprintf(w, "data: %d\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 2 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) {
			t.Fatalf("%q, %v", lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
	cancel()
	<-gone
}

func TestLocalAppUpgrades(t *testing.T) {
	addr, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 || r.Header.Get("Upgrade") != "websocket" {
			http.Error(w, "no upgrade", http.StatusBadRequest)
			return
		}
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = both.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = both.Flush()
		_, _ = io.Copy(conn, both)
	})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://%s\r\n\r\n", addr, addr)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	_, _ = io.WriteString(conn, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// Pages of other sites reach nothing, by whatever name; programs and local pages do.
func TestLocalAppGuard(t *testing.T) {
	reached := 0
	addr, _ := application(t, func(http.ResponseWriter, *http.Request) { reached++ })
	_, port, _ := net.SplitHostPort(addr)
	for name, tt := range map[string]struct {
		method string
		header []string
		want   int
	}{
		"program":         {want: 200},
		"localhost":       {header: []string{"Host", "localhost:" + port}, want: 200},
		"name.localhost":  {header: []string{"Host", "Grafana.localhost.:" + port}, want: 200},
		"v6":              {header: []string{"Host", "[::1]:" + port}, want: 200},
		"rebinding":       {header: []string{"Host", "evil.example.com:" + port}, want: 403},
		"like_localhost":  {header: []string{"Host", "localhost.evil.example.com"}, want: 403},
		"other_address":   {header: []string{"Host", "0.0.0.0:" + port}, want: 403},
		"lan":             {header: []string{"Host", "192.168.1.2:" + port}, want: 403},
		"own_page":        {method: http.MethodPost, header: []string{"Origin", "http://localhost:" + port}, want: 200},
		"page_of_a_tool":  {method: http.MethodPost, header: []string{"Origin", "http://127.0.0.1:3000"}, want: 200},
		"other_page":      {method: http.MethodPost, header: []string{"Origin", "https://evil.example.com"}, want: 403},
		"preflight":       {method: http.MethodOptions, header: []string{"Origin", "https://evil.example.com", "Access-Control-Request-Method", "PUT"}, want: 403},
		"hidden_page":     {method: http.MethodPost, header: []string{"Origin", "null"}, want: 403},
		"origin_tricks":   {method: http.MethodPost, header: []string{"Origin", "http://localhost@evil.example.com"}, want: 403},
		"file_page":       {method: http.MethodPost, header: []string{"Origin", "file://localhost"}, want: 403},
		"picture":         {header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, want: 403},
		"frame":           {header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, want: 403},
		"link":            {header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, want: 200},
		"form_of_another": {method: http.MethodPost, header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, want: 403},
		"same_site":       {header: []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}, want: 200},
	} {
		t.Run(name, func(t *testing.T) {
			before := reached
			method := tt.method
			if method == "" {
				method = http.MethodGet
			}
			resp, text := do(t, http.DefaultClient, method, "http://"+addr+"/", nil, tt.header...)
			if resp.StatusCode != tt.want || (reached > before) != (tt.want == 200) {
				t.Errorf("%s, reached %v, %q; want %d", resp.Status, reached > before, text, tt.want)
			}
			if resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("pages may read the answer")
			}
		})
	}
}

// What is wrong is in the answer, with a status that fits, and on the terminal once.
func TestLocalAppErrors(t *testing.T) {
	for status, err := range map[int]error{
		http.StatusBadGateway:   fault.Unreachable("the Proxy is away"),
		http.StatusForbidden:    fault.Denied("access denied"),
		http.StatusUnauthorized: fault.Unauthenticated("your certificate expired: run tsh login"),
	} {
		var n noted
		app := &client.LocalApp{Note: n.note, Dial: func(context.Context, string) (net.Conn, error) { return nil, err }}
		addr := serveLocal(t, app.Serve)
		for _, c := range []*http.Client{http.DefaultClient, clearHTTP2()} {
			resp, text := do(t, c, http.MethodGet, "http://"+addr+"/", nil)
			if resp.StatusCode != status || !strings.Contains(text, err.Error()) {
				t.Errorf("%s, %q; want %d, %q", resp.Status, text, status, err)
			}
			c.CloseIdleConnections()
		}
		if got := n.lines(); len(got) != 1 || got[0] != err.Error() {
			t.Errorf("told %q", got)
		}
	}
}

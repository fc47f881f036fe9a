package app_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
)

// both runs a test with HTTP/1.1 and HTTP/2 between user and agent.
func both(t *testing.T, test func(t *testing.T, h2 bool)) {
	for name, h2 := range map[string]bool{"http1": false, "http2": true} {
		t.Run(name, func(t *testing.T) { test(t, h2) })
	}
}

// serve starts an application with TLS or without.
func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func serveTLS(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func skipVerify(s *typesv1.AppSpec) { s.InsecureSkipVerify = true }

// TestRequestLine sends targets as nobody should write them: the application gets them to
// the byte.
func TestRequestLine(t *testing.T) {
	tg := record(t, ok)
	w := start(t, nil, application(appName, tg.uri(), nil))
	conn := w.alice(t).dial(t, "http/1.1")
	br := bufio.NewReader(conn)
	lines := []string{
		"GET / HTTP/1.1", "GET /a/../b/./c//d HTTP/1.1", "GET /%2e%2e/%2F%2f%5c%00 HTTP/1.1", "GET /a%2fb?x=%2f;y&&=1&%zz HTTP/1.1",
		"GET /? HTTP/1.1", "GET /?? HTTP/1.1", "GET //host/path HTTP/1.1", "GET /a|b^c`\"<>{}[]\\ HTTP/1.1", "GET /#frag HTTP/1.1", "GET /a;b=c,d:e@f!$&'()*+~ HTTP/1.1",
		"OPTIONS * HTTP/1.1", "BREW /pot HTTP/1.1", "GET /http://other/ HTTP/1.1", "DELETE /x?a=b#c HTTP/1.1", "GET /\xc3\xa4\xff HTTP/1.1",
	}
	for i, line := range lines {
		if _, err := fmt.Fprintf(conn, "%s\r\nHost: %s\r\nX-N: %d\r\n\r\n", line, publicAddr, i); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", line, resp.Status, b)
		}
	}
	var got []string
	for _, raw := range tg.got() {
		for head := range strings.SplitSeq(raw, "\r\n\r\n") {
			if head != "" {
				got = append(got, strings.SplitN(head, "\r\n", 2)[0])
			}
		}
	}
	if strings.Join(got, "\n") != strings.Join(lines, "\n") {
		t.Errorf("arrived:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

func TestHeaders(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		got := make(chan *http.Request, 1)
		tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
			got <- r
			w.Header().Set("X-Answer", "yes")
			w.Header()["Content-Type"] = nil
			w.Header()["Date"] = nil
			_, _ = io.WriteString(w, "<html>")
		})
		w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
			s.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{
				{Name: "X-Email", Value: "{{external.email}}"},
				{Name: "x-groups", Value: "g-{{external.groups}}"},
				{Name: "X-None", Value: "{{external.none}}"},
				{Name: "Authorization", Value: "Bearer {{internal.jwt}}"},
			}}
		}))
		r := must(http.NewRequest(http.MethodGet, site+"/", nil))
		r.Header = http.Header{
			"Teleport-Jwt-Assertion": {"evil"}, "teleport-jwt-assertion": {"evil"}, "Teleport_Jwt_Assertion": {"evil"}, "TELEPORT.JWT.ASSERTION": {"evil"}, "X-Teleport-User": {"evil"},
			"x_teleport_user": {"evil"}, "X-Forwarded-For": {"evil"}, "X_Forwarded_Host": {"evil"}, "X-Forwarded-User": {"evil"}, "Forwarded": {"for=evil"}, "X-Real-IP": {"evil"},
			"X-Email": {"evil"}, "x_email": {"evil"}, "X_Groups": {"evil"}, "X-None": {"evil"}, "Authorization": {"evil"},
			"X-Mine": {"kept", "twice"}, "Cookie": {"a=b; c=d"}, "Accept-Encoding": {"br"}, "User-Agent": {""},
		}
		a := do(t, w.alice(t).http(t, h2), r)
		if a.StatusCode != http.StatusOK || a.Header.Get("X-Answer") != "yes" || a.Header["Content-Type"] != nil || a.Header["Date"] != nil {
			t.Errorf("answer = %v %v, want the application's and nothing more", a.Status, a.Header)
		}
		in := <-got
		for name, values := range in.Header {
			if strings.Contains(strings.Join(values, ","), "evil") {
				t.Errorf("header %s: %q arrived", name, values)
			}
		}
		u := must(url.Parse(tg.URL))
		for name, want := range map[string]string{
			"Teleport-Jwt-Assertion": "jwt-for-web-1", "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": publicAddr, "X-Forwarded-Proto": "https", "X-Real-Ip": "192.0.2.7",
			"X-Email": "alice@example.com", "X-Groups": "g-a|g-b", "X-None": "", "Authorization": "Bearer jwt-for-web-1", "X-Mine": "kept|twice", "Cookie": "a=b; c=d",
			"Accept-Encoding": "br", "User-Agent": "",
		} {
			if got := strings.Join(in.Header[name], "|"); got != want {
				t.Errorf("header %s = %q, want %q", name, got, want)
			}
		}
		if in.Host != u.Host {
			t.Errorf("Host = %q, want %q", in.Host, u.Host)
		}
	})
}

func TestHostRewritten(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
	w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
		s.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{{Name: "host", Value: "grafana.internal"}}}
	}))
	if a := get(t, w.alice(t).http(t, false), "/"); a.body != "grafana.internal" {
		t.Errorf("Host = %q, want that of rewrite.headers", a.body)
	}
}

// TestConnectionHeaders: those of the connection end here, and those that Connection names.
func TestConnectionHeaders(t *testing.T) {
	tg := record(t, ok)
	w := start(t, nil, application(appName, tg.uri(), nil))
	conn := w.alice(t).dial(t, "http/1.1")
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: X-Hop, keep-alive, Teleport-Jwt-Assertion\r\nX-Hop: 1\r\nKeep-Alive: 2\r\nProxy-Authorization: 3\r\n"+
		"Proxy-Connection: 4\r\nTE: trailers, gzip\r\nX-End: 5\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Fatal(err)
	}
	got := tg.got()[0]
	for _, no := range []string{"X-Hop", "Keep-Alive", "Proxy-", "Connection", "gzip"} {
		if strings.Contains(got, no) {
			t.Errorf("%q arrived:\n%s", no, got)
		}
	}
	for _, yes := range []string{"X-End: 5\r\n", "Te: trailers\r\n", "Teleport-Jwt-Assertion: jwt-for-web-1\r\n"} {
		if !strings.Contains(got, yes) {
			t.Errorf("%q did not arrive:\n%s", yes, got)
		}
	}
}

func TestCORS(t *testing.T) {
	reached := make(chan struct{}, 10)
	tg := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reached <- struct{}{}
		w.Header().Set("Access-Control-Allow-Origin", "https://evil.test")
		_, _ = io.WriteString(w, "ok")
	})
	w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
		s.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"https://ui.test"}, AllowedMethods: []string{"PUT"}}
	}), application("open", tg.URL, nil))
	c := w.alice(t).http(t, false)
	r := must(http.NewRequest(http.MethodOptions, site+"/", nil))
	r.Header = http.Header{"Origin": {"https://ui.test"}, "Access-Control-Request-Method": {"PUT"}}
	if a := do(t, c, r); a.StatusCode != http.StatusNoContent || a.Header.Get("Access-Control-Allow-Origin") != "https://ui.test" || len(reached) > 0 {
		t.Errorf("preflight = %s %v, %d at the application", a.Status, a.Header, len(reached))
	}
	r = must(http.NewRequest(http.MethodPut, site+"/", nil))
	r.Header = http.Header{"Origin": {"https://evil.test"}}
	if a := do(t, c, r); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("answer = %v, want no word for the other origin", a.Header)
	}
}

func TestRedirects(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	})
	w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
		s.Rewrite = &typesv1.AppRewrite{Redirect: []string{"localhost", "jenkins.internal"}}
	}))
	c := w.alice(t).http(t, false)
	for to, want := range map[string]string{
		"http://localhost:8080/a%2fb?c#d":  "https://web.example.com:3080/a%2fb?c#d",
		"https://JENKINS.internal":         "https://web.example.com:3080",
		"//localhost/x":                    "https://web.example.com:3080/x",
		"http://localhost.evil.test/":      "http://localhost.evil.test/",
		"http://localhost@evil.test/":      "http://localhost@evil.test/",
		"/relative":                        "/relative",
		"ftp://localhost/":                 "ftp://localhost/",
		"https://elsewhere.test/localhost": "https://elsewhere.test/localhost",
	} {
		r := must(http.NewRequest(http.MethodGet, site+"/?to="+url.QueryEscape(to), nil))
		r.Host = publicAddr + ":3080"
		if a := do(t, c, r); a.Header.Get("Location") != want {
			t.Errorf("Location %q became %q, want %q", to, a.Header.Get("Location"), want)
		}
	}
}

func TestPathOfTarget(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	w := start(t, nil, application(appName, tg.URL+"/grafana/", nil))
	c := w.alice(t).http(t, false)
	if a := get(t, c, "/"); a.StatusCode != http.StatusFound || a.Header.Get("Location") != "/grafana/" {
		t.Errorf("/ = %s to %q, want a redirect to the path", a.Status, a.Header.Get("Location"))
	}
	if a := get(t, c, "/x"); a.body != "/x" {
		t.Errorf("/x became %q", a.body)
	}
}

func TestCertificateOfTarget(t *testing.T) {
	tg := serveTLS(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })
	w := start(t, nil, application(appName, tg.URL, nil))
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusBadGateway || !strings.Contains(a.body, "certificate") {
		t.Errorf("with an unknown authority = %s %q, want an error about the certificate", a.Status, a.body)
	}
	w = start(t, nil, application(appName, tg.URL, skipVerify))
	if a := get(t, w.alice(t).http(t, false), "/"); a.body != "HTTP/2.0" {
		t.Errorf("with insecure_skip_verify = %s %q, want HTTP/2", a.Status, a.body)
	}
}

func TestTargetDown(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	addr := ln.Addr().String()
	_ = ln.Close()
	w := start(t, nil, application(appName, "http://"+addr, nil))
	w.announcement(t, appName, func(s *typesv1.AppServer) bool { return strings.Contains(s.GetSpec().GetHealth(), "refused") })
	c := w.alice(t).http(t, false)
	a := get(t, c, "/")
	if a.StatusCode != http.StatusBadGateway || !strings.Contains(a.body, `"web" cannot be reached from the host agent-1`) || strings.Contains(a.body, addr) {
		t.Errorf("answer = %s %q, want one that names the application and not its address", a.Status, a.body)
	}
	r := must(http.NewRequest(http.MethodGet, site+"/", nil))
	r.Header.Set("Accept", "text/html")
	if a := do(t, c, r); !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") || !strings.Contains(a.body, "<h1>The application does not answer</h1>") {
		t.Errorf("page = %v %q", a.Header, a.body)
	}
	// It comes up again: the agent notices, since a user wanted to go there.
	ln = must(net.Listen("tcp", addr))
	defer ln.Close()
	w.announcement(t, appName, func(s *typesv1.AppServer) bool { return s.GetSpec().GetHealth() == "healthy" })
}

// TestNoMetadata: an application is never where clouds keep secrets.
func TestNoMetadata(t *testing.T) {
	w := start(t, nil, application(appName, "http://169.254.169.254", nil))
	if a := get(t, w.alice(t).http(t, false), "/latest/meta-data/"); a.StatusCode != http.StatusForbidden {
		t.Errorf("answer = %s %q, want 403", a.Status, a.body)
	}
	w.events.wait(t, "T2019E", func(f map[string]any) bool { return f["target"] == "169.254.169.254:80" && f["user"] == "alice" })
}

func TestTCP(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	w := start(t, nil, application(appName, "tcp://"+ln.Addr().String(), nil))
	alice := w.alice(t)
	for _, proto := range []string{"teleport-tcp", ""} {
		conn := alice.dial(t)
		if proto != "" {
			conn = alice.dial(t, proto)
		}
		const size = 4 << 20
		go func() {
			_, _ = io.Copy(conn, &pattern{n: size})
			_ = conn.CloseWrite()
		}()
		if got, want := sum(t, conn), sum(t, &pattern{n: size}); got != want {
			t.Errorf("by %q came back %q, want %q", proto, got, want)
		}
		_ = conn.Close()
	}
	if a := get(t, alice.http(t, false), "/"); a.StatusCode != http.StatusMisdirectedRequest || !strings.Contains(a.body, "tsh proxy app web") {
		t.Errorf("HTTP at a TCP application = %s %q", a.Status, a.body)
	}
}

// TestAnswerBeforeBody: an application that refuses an upload is heard at once.
func TestAnswerBeforeBody(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		})
		w := start(t, nil, application(appName, tg.URL, nil))
		in, out := io.Pipe()
		defer out.Close()
		go func() { _, _ = io.WriteString(out, "begin") }()
		resp, err := w.alice(t).http(t, h2).Do(must(http.NewRequest(http.MethodPost, site+"/", in)))
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("answer = %v, %v; want 413", resp, err)
		}
	})
}

// TestSessionsApart: no connection to the application serves two sessions.
func TestSessionsApart(t *testing.T) {
	tg := record(t, ok)
	w := start(t, nil, application(appName, tg.uri(), nil))
	for range 3 {
		get(t, w.alice(t).http(t, false), "/")
		get(t, w.person(t, "bob", nil, "dev").http(t, false), "/")
	}
	if n := len(tg.got()); n != 2 {
		t.Errorf("%d connections to the application, want one for each session", n)
	}
}

// TestBigHead: heads are bounded.
func TestBigHead(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := serve(t, func(http.ResponseWriter, *http.Request) {})
		w := start(t, nil, application(appName, tg.URL, nil))
		c := w.alice(t).http(t, h2)
		for size, fits := range map[int]bool{60 << 10: true, 300 << 10: false} {
			r := must(http.NewRequest(http.MethodGet, site+"/", nil))
			r.Header.Set("X-Big", strings.Repeat("x", size))
			resp, err := c.Do(r)
			if err == nil {
				_ = resp.Body.Close()
			}
			if good := err == nil && resp.StatusCode == http.StatusOK; good != fits {
				t.Errorf("head of %d bytes = %v, %v; want it passed on: %v", size, resp, err, fits)
			}
		}
	})
}

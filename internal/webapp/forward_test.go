package webapp_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// signedIn returns the cookie header of a browser that is signed in.
func (w *world) signedIn(host string) string {
	w.t.Helper()
	_ = body(w.t, w.signIn(w.client, w.url(host, "/")))
	return "Cookie: __Host-teleport_app=" + cookieValue(w, host) + "\r\n"
}

// TestUnchanged: what was authorised is what the agent gets, to the byte.
func TestUnchanged(t *testing.T) {
	var seen string
	w := start(t, func(rw http.ResponseWriter, r *http.Request) {
		seen = r.Method + " " + r.RequestURI + " " + r.Host
		rw.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(rw, r.Body)
		rw.Header().Set("X-Sum", "done")
	}, appServer("grafana", "", nil))
	cookie := w.signedIn(grafana)
	for _, target := range []string{
		"/", "/a/../b", "/a%2f..%2fb", "/a//b", "//a/b", "///", "/a;b=1?c;d&e=%&f", "/?", "/a?b?c", "/%E4%BD%A0", "/a+b%20c", "/.", "/a\\b", "/|", "/a?x=http://y/%2F",
	} {
		resp := w.raw(grafana, "GET "+target+" HTTP/1.1\r\nHost: "+grafana+"\r\n"+cookie+"Connection: close\r\n\r\n")
		switch {
		case resp.StatusCode == http.StatusOK && seen != "GET "+target+" "+grafana:
			t.Errorf("target %q arrived as %q", target, seen)
		case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusBadRequest:
			t.Errorf("target %q: %d", target, resp.StatusCode)
		}
	}
	for name, head := range map[string]string{
		"an address":  "GET https://evil.test/ HTTP/1.1\r\nHost: " + grafana + "\r\n",
		"a star":      "OPTIONS * HTTP/1.1\r\nHost: " + grafana + "\r\n",
		"two hosts":   "GET / HTTP/1.1\r\nHost: " + grafana + "\r\nHost: evil.test\r\n",
		"two lengths": "POST / HTTP/1.1\r\nHost: " + grafana + "\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
	} {
		seen = ""
		resp := w.raw(grafana, head+cookie+"Connection: close\r\n\r\n")
		if resp.StatusCode < 300 && seen != "" || strings.Contains(seen, "evil") {
			t.Errorf("%s: %d, and %q arrived", name, resp.StatusCode, seen)
		}
	}
	t.Run("body and trailer", func(t *testing.T) {
		want := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
		resp := w.raw(grafana, fmt.Sprintf("POST /up HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", grafana, cookie, len(want), want))
		if got := body(t, resp); got != want {
			t.Errorf("%d bytes came back of %d", len(got), len(want))
		}
		if got := resp.Trailer.Get("X-Sum"); got != "done" {
			t.Errorf("trailer %q", got)
		}
	})
}

// TestUpgrade: a connection that becomes another protocol goes on both ways.
func TestUpgrade(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" {
			return
		}
		conn, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, buffered)
	}, appServer("grafana", "", nil))
	cookie := w.signedIn(grafana)
	conn, err := tls.Dial("tcp", w.proxy.Listener.Addr().String(), &tls.Config{ServerName: grafana, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: "+grafana+"\r\n"+cookie+"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); got != line {
			t.Fatalf("%q came back, %v", got, err)
		}
	}
}

// TestStreams: answers come while the request still goes on, as gRPC needs it.
func TestStreams(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(rw)
		_ = control.EnableFullDuplex()
		_ = control.Flush()
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(rw, r.Proto+" "+line)
			_ = control.Flush()
		}
	}, appServer("grafana", "", nil))
	_ = w.signedIn(grafana)
	c := w.browser(nil, true)
	c.Jar = w.client.Jar
	in, out := io.Pipe()
	resp, err := c.Do(must(http.NewRequest(http.MethodPost, w.url(grafana, "/stream"), in)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Fatalf("the Proxy speaks %s", resp.Proto)
	}
	answers := bufio.NewReader(resp.Body)
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		_, _ = io.WriteString(out, line)
		if got, err := answers.ReadString('\n'); got != "HTTP/2.0 "+line {
			t.Fatalf("%q came back, %v", got, err)
		}
	}
	_ = out.Close()
	if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

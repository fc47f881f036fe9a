package webapp_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"teleport/internal/fault"
)

// TestWhoseAddress: a session that is used from another address is not told to come from
// the first one.
func TestWhoseAddress(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = rw.Write([]byte(r.Header.Get("X-Forwarded-For")))
	}, appServer("grafana", "", nil))
	cookie := strings.TrimSpace(strings.TrimPrefix(w.signedIn(grafana), "Cookie:"))
	thief := w.browser(nil, false)
	thief.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext(ctx, network, w.proxy.Listener.Addr().String())
	}
	if resp := get(t, thief, w.url(grafana, "/"), "Cookie", cookie); resp.StatusCode != http.StatusOK {
		t.Fatalf("from another address: %d", resp.StatusCode)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.from[len(w.from)-1]; !strings.HasPrefix(last, "127.0.0.2:") {
		t.Errorf("the agent was told that the request came from %s", last)
	}
}

// TestClaimedLater: who claims the name of another application does not take it from it.
func TestClaimedLater(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) {}, appServer("one", "same.test", nil))
	if !w.handler.Serves("same.test") {
		t.Fatal("the name is not served")
	}
	w.serve(appServer("two", "same.test", nil), appServer("aaa", "same.test", nil))
	_ = w.signIn(w.client, w.url("same.test", "/"))
	for _, c := range w.client.Jar.Cookies(must(url.Parse(w.url("same.test", "/")))) {
		if c.Name == "__Host-teleport_app" && w.secrets[c.Value] != "one" {
			t.Errorf("the name is that of %q now", w.secrets[c.Value])
		}
	}
	if !w.handler.Serves("same.test") {
		t.Error("the name is nobody's any more")
	}
}

// TestForeignLogout: who shows no session logs nobody out.
func TestForeignLogout(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) {}, appServer("grafana", "", nil))
	cookie := strings.TrimSpace(strings.TrimPrefix(w.signedIn(grafana), "Cookie:"))
	_ = body(t, get(t, w.client, w.url(grafana, "/"), "Cookie", cookie))
	before := w.signed
	_ = body(t, post(t, w.browser(nil, false), w.url(proxyHost, "/web/logout"), nil, "Cookie", "__Host-teleport_session=nonsense"))
	_ = body(t, get(t, w.client, w.url(grafana, "/"), "Cookie", cookie))
	if w.signed != before {
		t.Error("the sessions of others were dropped")
	}
}

// TestEndedElsewhere: a session that was ended at another Proxy is soon over here, and not
// because Auth is away.
func TestEndedElsewhere(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) {}, appServer("grafana", "", nil))
	cookie := strings.TrimSpace(strings.TrimPrefix(w.signedIn(grafana), "Cookie:"))
	status := func(later time.Duration, refuse error) int {
		w.mu.Lock()
		w.skew += later
		w.refuse = refuse
		w.mu.Unlock()
		return get(t, w.browser(nil, false), w.url(grafana, "/"), "Cookie", cookie).StatusCode
	}
	if got := status(11*time.Minute, fault.Unreachable("away")); got != http.StatusOK {
		t.Errorf("while Auth is away: %d", got)
	}
	clear(w.secrets)
	if got := status(time.Minute, nil); got != http.StatusUnauthorized {
		t.Errorf("after the session was ended: %d, want 401", got)
	}
}

// TestOwnCookies: an application cannot give its users another session.
func TestOwnCookies(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, _ *http.Request) {
		for _, c := range []string{"__Host-teleport_app=x; Path=/; Secure", "=__Host-teleport_app=x", " __HOST-Teleport_session =x; Max-Age=0", "own=1; Path=/", "__Host-own=2"} {
			rw.Header().Add("Set-Cookie", c)
		}
	}, appServer("grafana", "", nil))
	resp := get(t, w.program("grafana", ""), w.url(grafana, "/"))
	if got := strings.Join(resp.Header["Set-Cookie"], ","); got != "own=1; Path=/,__Host-own=2" {
		t.Errorf("cookies %q", got)
	}
}

// TestSlowStranger: who is not logged in has no time without end for a request.
func TestSlowStranger(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) {}, appServer("grafana", "", nil))
	for _, path := range []string{"/", "/x-teleport-auth"} {
		conn, err := tls.Dial("tcp", w.proxy.Listener.Addr().String(), &tls.Config{ServerName: grafana, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: "+grafana+"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\n")
		r := bufio.NewReader(conn)
		if _, err := r.ReadByte(); err != nil {
			t.Errorf("%s: no answer: %v", path, err)
		} else if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("%s: the connection stays: %v", path, err)
		}
		_ = conn.Close()
	}
}

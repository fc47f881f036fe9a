package webapp_test

import (
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

const (
	grafana  = "grafana." + proxyHost
	appState = "__Host-teleport_state_"
)

func get(t testing.TB, c *http.Client, at string, headers ...string) *http.Response {
	t.Helper()
	req := must(http.NewRequest(http.MethodGet, at, nil))
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func post(t testing.TB, c *http.Client, at string, form url.Values, headers ...string) *http.Response {
	t.Helper()
	req := must(http.NewRequest(http.MethodPost, at, strings.NewReader(form.Encode())))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

var formField = regexp.MustCompile(`name="([a-z]+)" value="([^"]*)"`)

// form reads the form of a page.
func form(page string) (action string, fields url.Values) {
	fields = url.Values{}
	for _, m := range formField.FindAllStringSubmatch(page, -1) {
		fields.Set(m[1], html.UnescapeString(m[2]))
	}
	if m := regexp.MustCompile(`action="([^"]*)"`).FindStringSubmatch(page); m != nil {
		action = html.UnescapeString(m[1])
	}
	return action, fields
}

// signIn goes the whole way of a browser and returns where it ended.
func (w *world) signIn(c *http.Client, at string) *http.Response {
	w.t.Helper()
	resp := get(w.t, c, at, "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	for range 20 {
		switch {
		case resp.StatusCode >= 300 && resp.StatusCode < 400:
			next := must(resp.Request.URL.Parse(resp.Header.Get("Location")))
			_ = resp.Body.Close()
			resp = get(w.t, c, next.String(), "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
		case strings.HasPrefix(resp.Request.URL.Path, "/web/"):
			action, fields := form(body(w.t, resp))
			if action == "/web/login" {
				fields.Set("user", "alice")
				fields.Set("password", "secret")
				fields.Set("code", "123456")
			}
			to := must(resp.Request.URL.Parse(action))
			resp = post(w.t, c, to.String(), fields, "Origin", w.url(proxyHost, ""))
		default:
			return resp
		}
	}
	w.t.Fatalf("still on the way at %s", resp.Request.URL)
	return nil
}

func TestBrowser(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Seen-Cookie", r.Header.Get("Cookie"))
		rw.Header().Set("X-Seen-Forwarded", r.Header.Get("X-Forwarded-For")+" "+r.Header.Get("X-Forwarded-Host")+" "+r.Header.Get("X-Forwarded-Proto"))
		_, _ = rw.Write([]byte("hello " + r.RequestURI))
	}, appServer("grafana", "", nil), appServer("other", "other.test", nil))

	resp := w.signIn(w.client, w.url(grafana, "/d/1?x=%2F&y"))
	if got := body(t, resp); resp.StatusCode != http.StatusOK || got != "hello /d/1?x=%2F&y" {
		t.Fatalf("after the login: %d %q", resp.StatusCode, got)
	}
	t.Run("our cookies stay here and the Proxy says who it is", func(t *testing.T) {
		resp := get(t, w.client, w.url(grafana, "/"), "Cookie", "a=1; b=2", "X-Forwarded-For", "10.9.8.7", "X-Forwarded-Host", "evil")
		if got := resp.Header.Get("X-Seen-Cookie"); got != "a=1; b=2" {
			t.Errorf("the application saw the cookies %q", got)
		}
		if got := resp.Header.Get("X-Seen-Forwarded"); !strings.HasPrefix(got, "127.0.0.1 "+grafana) || !strings.HasSuffix(got, " https") {
			t.Errorf("the application was told %q", got)
		}
	})
	t.Run("one certificate serves many requests", func(t *testing.T) {
		before := w.signed
		for range 5 {
			_ = body(t, get(t, w.client, w.url(grafana, "/")))
		}
		if w.signed != before {
			t.Errorf("Auth was asked %d times more", w.signed-before)
		}
	})
	t.Run("a session is for one application", func(t *testing.T) {
		c := w.browser(nil, false)
		theirs := w.client.Jar.Cookies(must(url.Parse(w.url(grafana, "/"))))
		c.Jar.SetCookies(must(url.Parse(w.url("other.test", "/"))), theirs)
		if resp := get(t, c, w.url("other.test", "/")); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("the cookie of another application: %d, want 401", resp.StatusCode)
		}
	})
	t.Run("the second application needs no password", func(t *testing.T) {
		resp := w.signIn(w.client, w.url("other.test", "/"))
		if got := body(t, resp); got != "hello /" {
			t.Errorf("at the second application: %q", got)
		}
	})
	t.Run("logged out", func(t *testing.T) {
		_ = body(t, get(t, w.client, w.url(grafana, "/teleport-logout")))
		if resp := get(t, w.client, w.url(grafana, "/")); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("after the logout: %d, want 401", resp.StatusCode)
		}
	})
}

func TestChallenge(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) { t.Error("an unknown visitor got through") },
		appServer("grafana", "", func(s *typesv1.AppSpec) {
			s.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"https://ui.test"}, AllowedMethods: []string{"PUT"}, AllowedHeaders: []string{"X-A"}, AllowCredentials: true, MaxAge: 60}
		}))
	for _, c := range []struct {
		name    string
		headers []string
		status  int
	}{
		{"a page", []string{"Accept", "text/html"}, http.StatusFound},
		{"a script", []string{"Accept", "*/*", "Sec-Fetch-Mode", "cors"}, http.StatusUnauthorized},
		{"a script that wants HTML", []string{"Accept", "text/html", "Sec-Fetch-Mode", "cors"}, http.StatusUnauthorized},
		{"a program", nil, http.StatusUnauthorized},
		{"a made up cookie", []string{"Cookie", "__Host-teleport_app=made-up"}, http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := get(t, w.browser(nil, false), w.url(grafana, "/x"), c.headers...)
			if resp.StatusCode != c.status {
				t.Fatalf("%d, want %d", resp.StatusCode, c.status)
			}
			if c.status == http.StatusUnauthorized {
				var answer map[string]string
				if err := json.Unmarshal([]byte(body(t, resp)), &answer); err != nil || answer["tsh"] != "tsh apps login grafana" {
					t.Errorf("answer %v, %v", answer, err)
				}
				return
			}
			state := cookieOf(resp, appState)
			if state == nil || !state.Secure || !state.HttpOnly || state.Path != "/" {
				t.Errorf("cookie of the state %v", state)
			}
		})
	}
	preflight := func(origin, method string) *http.Response {
		req := must(http.NewRequest(http.MethodOptions, w.url(grafana, "/"), nil))
		req.Header.Set("Origin", origin)
		req.Header.Set("Access-Control-Request-Method", method)
		req.Header.Set("Access-Control-Request-Headers", "x-a, x-b")
		return must(w.client.Do(req))
	}
	if h := preflight("https://ui.test", "PUT").Header; h.Get("Access-Control-Allow-Origin") != "https://ui.test" || h.Get("Access-Control-Allow-Headers") != "x-a" || h.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("preflight by the policy: %v", h)
	}
	if h := preflight("https://evil.test", "PUT").Header; h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("preflight of another origin: %v", h)
	}
	if h := preflight("https://ui.test", "DELETE").Header; h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("preflight of another method: %v", h)
	}
}

// TestForgedLogin has somebody else send a browser the end of a login of their own.
func TestForgedLogin(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) { t.Error("got through") }, appServer("grafana", "", nil))
	token := w.secret("grafana")
	begun := get(t, w.client, w.url(grafana, "/"), "Accept", "text/html")
	mine := cookieOf(begun, appState).Value
	for name, state := range map[string]string{"no state": "", "a short one": mine[:4], "somebody else's": strings.Repeat("A", len(mine)), "the beginning of mine": mine[:8] + strings.Repeat("B", len(mine)-8)} {
		t.Run(name, func(t *testing.T) {
			resp := post(t, w.client, w.url(grafana, "/x-teleport-auth"), url.Values{"state": {state}, "token": {token}, "path": {"/"}})
			if resp.StatusCode != http.StatusForbidden || cookieOf(resp, "__Host-teleport_app") != nil {
				t.Errorf("%d with the cookies %v, want 403 and none", resp.StatusCode, resp.Cookies())
			}
		})
	}
	for _, path := range []string{"//evil.test/", `/\evil.test`, "https://evil.test/", "/a\r\nSet-Cookie: x=y", "javascript:alert(1)"} {
		c := w.browser(nil, false)
		begun := get(t, c, w.url(grafana, "/"), "Accept", "text/html")
		resp := post(t, c, w.url(grafana, "/x-teleport-auth"), url.Values{"state": {cookieOf(begun, appState).Value}, "token": {token}, "path": {path}})
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != "/" {
			t.Errorf("path %q leads to %q with %d", path, got, resp.StatusCode)
		}
	}
	resp := post(t, w.client, w.url(proxyHost, "/web/login"), url.Values{"user": {"alice"}, "password": {"secret"}, "code": {"123456"}}, "Origin", "https://evil.test")
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a login from a page of somebody else: %d, want 403", resp.StatusCode)
	}
	resp = post(t, w.client, w.url(proxyHost, "/web/login"), url.Values{"user": {`"><script>`}, "password": {"x"}, "code": {"1"}})
	if text := body(t, resp); resp.StatusCode != http.StatusForbidden || strings.Contains(text, `"><script>`) {
		t.Errorf("a wrong password: %d %s", resp.StatusCode, text)
	}
}

func TestCertificate(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = rw.Write([]byte(r.RequestURI)) },
		appServer("grafana", "grafana.test", nil), appServer("other", "", nil))
	if got := body(t, get(t, w.program("grafana", ""), w.url(grafana, "/api"))); got != "/api" {
		t.Errorf("with a certificate: %q", got)
	}
	if got := body(t, get(t, w.program("grafana", ""), w.url("grafana.test", "/api"))); got != "/api" {
		t.Errorf("at the public address: %q", got)
	}
	for name, c := range map[string]*http.Client{"of another application": w.program("other", ""), "of no application": w.program("", "")} {
		t.Run(name, func(t *testing.T) {
			resp := get(t, c, w.url(grafana, "/"), "Accept", "text/html")
			if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%d, want a refusal", resp.StatusCode)
			}
		})
	}
	w.refuse = fault.Denied("user alice may not use it")
	if resp := get(t, w.program("grafana", ""), w.url(grafana, "/")); resp.StatusCode != http.StatusForbidden || !strings.Contains(body(t, resp), "alice may not use it") {
		t.Errorf("refused by Auth: %d", resp.StatusCode)
	}
}

// TestNames: an agent must not get the requests that are meant for others.
func TestNames(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) {},
		appServer("grafana", "", nil), appServer("proxythief", proxyHost, nil), appServer("thief", grafana, nil),
		appServer("one", "same.test", nil), appServer("two", "same.test", nil), appServer("three", "three.test", nil))
	for host, want := range map[string]bool{
		proxyHost: false, grafana: true, "same.test": false, "three.test": true, "THREE.test.:443": true, "one." + proxyHost: true,
		"nobody." + proxyHost: false, "": false, "[::1]:443": false,
	} {
		if got := w.handler.Serves(host); got != want {
			t.Errorf("Serves(%q) = %v, want %v", host, got, want)
		}
	}
	resp := w.signIn(w.client, w.url(grafana, "/"))
	if _, ok := w.secrets[cookieValue(w, grafana)]; resp.StatusCode != http.StatusOK || !ok || w.secrets[cookieValue(w, grafana)] != "grafana" {
		t.Errorf("the session at %s is one of %q", grafana, w.secrets[cookieValue(w, grafana)])
	}
}

func cookieValue(w *world, host string) string {
	for _, c := range w.client.Jar.Cookies(must(url.Parse(w.url(host, "/")))) {
		if c.Name == "__Host-teleport_app" {
			return c.Value
		}
	}
	return ""
}

func TestRequiredApps(t *testing.T) {
	w := start(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = rw.Write([]byte(r.Host)) },
		appServer("ui", "", func(s *typesv1.AppSpec) { s.RequiredApps = []string{"api", "missing", "ui", "files"} }),
		appServer("api", "api.test", func(s *typesv1.AppSpec) { s.RequiredApps = []string{"ui"} }), appServer("files", "", nil))
	resp := w.signIn(w.client, w.url("ui."+proxyHost, "/start"))
	if resp.StatusCode != http.StatusOK || resp.Request.URL.Path != "/start" {
		t.Fatalf("ended at %s with %d", resp.Request.URL, resp.StatusCode)
	}
	for _, host := range []string{"api.test", "files." + proxyHost} {
		if resp := get(t, w.client, w.url(host, "/"), "Sec-Fetch-Mode", "cors"); resp.StatusCode != http.StatusOK {
			t.Errorf("at %s, which is needed: %d, want 200", host, resp.StatusCode)
		}
	}
}

// TestWrongAgent: who answers must be the host that the connection was made to.
func TestWrongAgent(t *testing.T) {
	w := start(t, func(http.ResponseWriter, *http.Request) { t.Error("a request reached another host") }, appServer("grafana", "", nil))
	w.hostID = "another-host"
	resp := get(t, w.program("grafana", ""), w.url(grafana, "/"))
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("%d, want 502", resp.StatusCode)
	}
	if w.entered != 0 {
		t.Errorf("%d connections are still followed", w.entered)
	}
}

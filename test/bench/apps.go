package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"

	"teleport/internal/client"
	"teleport/internal/types"
	"teleport/test/cluster"
)

const (
	// appHost is the name under which browsers know the application.
	appHost = "web.bench"

	byHTTP    = "direct, HTTP"
	byHTTPS   = "direct, HTTPS"
	byNginx   = "nginx, reverse proxy with TLS"
	byWebPort = "Teleport, web port (HTTPS, cookie)"
)

// apps measures HTTP applications: nginx with two files.
func apps(ctx context.Context, b *bench) error {
	s, err := startServed(ctx, b)
	if err != nil {
		return err
	}
	defer s.close()
	site, err := s.nginx(ctx)
	if err != nil {
		return err
	}
	lines := "app_service:\n  enabled: yes\n  apps:\n  - name: web\n    uri: http://" + site.plain + "\n    public_addr: " + appHost + "\n"
	if err := s.serve(ctx, "app", lines, "web", "tsh", "apps", "ls"); err != nil {
		return err
	}
	ways, err := s.webWays(ctx, site)
	if err != nil {
		return err
	}
	if err := b.wrk(ctx, ways); err != nil {
		return err
	}
	return s.appSessions(ctx)
}

// website is where nginx listens: without TLS, with it, and as a reverse proxy with TLS.
type website struct {
	plain, tls, reverse string
	pid                 int
}

func (s *served) nginx(ctx context.Context) (website, error) {
	var w website
	for _, addr := range []*string{&w.plain, &w.tls, &w.reverse} {
		var err error
		if *addr, err = cluster.FreeAddr(); err != nil {
			return w, err
		}
	}
	dir := s.Path("site")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return w, err
	}
	ssl := "ssl_certificate " + s.own.files.Cert + "; ssl_certificate_key " + s.own.files.Key + ";"
	conf := s.Path("nginx.conf")
	text := "daemon off; worker_processes 2; pid " + s.Path("nginx.pid") + "; error_log " + s.Path("nginx.log") + " error;\n"
	if os.Getuid() == 0 {
		text += "user root;\n"
	}
	text += "events { worker_connections 4096; }\nhttp { access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 1h;\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		text += kind + "_temp_path " + s.Path("nginx-"+kind) + ";\n"
	}
	text += "server { listen " + w.plain + "; listen " + w.tls + " ssl; " + ssl + " root " + dir + "; }\n" +
		"upstream site { server " + w.plain + "; keepalive 64; keepalive_requests 1000000000; }\n" +
		"server { listen " + w.reverse + " ssl; " + ssl + " location / { proxy_pass http://site; proxy_http_version 1.1; proxy_set_header Connection \"\"; } } }\n"
	for path, data := range map[string]string{conf: text, dir + "/small": strings.Repeat("x", 128), dir + "/big": strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			return w, err
		}
	}
	var err error
	w.pid, err = s.run(ctx, w.plain, "/usr/sbin/nginx", "-e", s.Path("nginx.log"), "-c", conf)
	return w, err
}

// webWays are the ways to the application; args are wrk's but for the load's.
func (s *served) webWays(ctx context.Context, site website) ([]way, error) {
	var out []way
	add := func(name, base string, pids []int, more ...string) {
		out = append(out, way{name: name, command: command{args: append(more, base)}, pids: append(pids, site.pid)})
	}
	add(byHTTP, "http://"+site.plain, nil)
	add(byHTTPS, "https://"+site.tls, nil)
	add(byNginx, "https://"+site.reverse, nil)
	addr, pids, err := s.tunnel(ctx, "app", "web")
	if err != nil {
		return nil, err
	}
	add(byUs, "http://"+addr, pids)
	cookie, err := s.browse(ctx)
	if err != nil {
		return nil, err
	}
	add(byWebPort, "https://"+s.ProxyAddr, []int{s.hub.PID, s.agent.PID}, "-H", "Host: "+appHost, "-H", "Cookie: "+cookie)
	for _, peer := range []struct {
		name  string
		start func() (string, []int, error)
	}{
		{byJump, func() (string, []int, error) { return s.sshL(ctx, jump, site.plain) }},
		{byFRP, func() (string, []int, error) { return s.frp(ctx, site.plain) }},
		{byChisel, func() (string, []int, error) { return s.chisel(ctx, site.plain) }},
	} {
		addr, pids, err := peer.start()
		if err != nil {
			return nil, err
		}
		if addr != "" {
			add(peer.name, "http://"+addr, pids)
		}
	}
	return out, nil
}

// wrk measures requests on 32 connections.
func (b *bench) wrk(ctx context.Context, ways []way) error {
	seconds := strconv.Itoa(max(1, int(b.period.Seconds())))
	got := map[string]map[string]pace{}
	for _, one := range []struct{ key, name, path string }{
		{"small", "wrk, 128 bytes, 32 connections", "/small"},
		{"big", "wrk, 1 MiB, 32 connections", "/big"},
	} {
		these := make([]way, len(ways))
		for i, w := range ways {
			these[i] = w
			last := len(w.args) - 1
			args := append([]string{"wrk", "-t", "2", "-c", "32", "-d", seconds}, w.args[:last]...)
			these[i].args = append(args, w.args[last]+one.path)
		}
		l := load{name: one.name, rate: regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`), count: regexp.MustCompile(`\s([0-9]+) requests in`), healthy: healthyWrk}
		var err error
		if got[one.key], err = b.compare(ctx, l, these); err != nil {
			return err
		}
	}
	for key, goal := range map[string]struct {
		peer  string
		limit float64
	}{"small": {byFRP, 1}, "big": {byChisel, 2}} {
		peer, ok := got[key][goal.peer]
		if !ok {
			continue
		}
		for _, us := range []string{byUs, byWebPort} {
			b.report.atLeast("HTTP "+key+": "+us+" / "+goal.peer, got[key][us].rate()/peer.rate(), goal.limit, " x")
		}
	}
	return nil
}

// healthyWrk refuses a run in which requests failed.
func healthyWrk(out []byte) error {
	if strings.Contains(string(out), "Non-2xx") || strings.Contains(string(out), "Socket errors") {
		return fmt.Errorf("requests failed: %s", out)
	}
	return nil
}

// appSessions measures new sessions: a certificate for the application, and a connection
// with it.
func (s *served) appSessions(ctx context.Context) error {
	w := world{Cluster: s.Cluster}
	c, err := w.client(ctx)
	if err != nil {
		return err
	}
	const atOnce = 8
	rows := [][]string{{fmt.Sprintf("new sessions of an application, %d at once", atOnce), "a second", "median ms", "p99 ms", "CPU ms of daemons"}}
	one, err := c.CertifyApp(ctx, "web")
	if err != nil {
		return err
	}
	for name, certify := range map[string]bool{"with a new certificate each": true, "a connection with the same certificate": false} {
		before := cpuOf(s.hub.PID, s.agent.PID)
		all, took, err := repeat(ctx, atOnce, s.b.period, func() error {
			cert := one
			if certify {
				var err error
				if cert, err = c.CertifyApp(ctx, "web"); err != nil {
					return err
				}
			}
			conn, err := c.DialRouted(ctx, client.ResourceDial{Service: types.RoleApp, Resource: "web"}, cert, client.ALPNHTTP)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				return err
			}
			_, err = conn.Read(make([]byte, 4096))
			return err
		})
		if err != nil {
			return err
		}
		rows = append(rows, sessionRow(name, all, took, cpuOf(s.hub.PID, s.agent.PID)-before))
	}
	s.b.report.table("New sessions of an application, client in this process", rows...)
	return nil
}

// browse logs in to the application as a browser does, and returns its cookie.
func (s *served) browse(ctx context.Context) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(s.ProxyAddr)
	at := &url.URL{Scheme: "https", Host: net.JoinHostPort(appHost, port), Path: "/small"}
	c := &http.Client{Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.ProxyAddr)
		},
	}}
	// The code of now was taken by the login; that of the next half minute is good as well.
	code, err := totp.GenerateCode(s.OTPSecret, time.Now().Add(30*time.Second))
	if err != nil {
		return "", err
	}
	step := func(method string, to *url.URL, form url.Values, from *url.URL) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(ctx, method, to.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Accept", "text/html")
		req.Header.Set("Sec-Fetch-Mode", "navigate")
		if form != nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Origin", from.Scheme+"://"+from.Host)
		}
		resp, err := c.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp, string(text), err
	}
	resp, page, err := step(http.MethodGet, at, nil, nil) //nolint:bodyclose // step has read and closed it
	for range 5 {
		if err != nil {
			return "", err
		}
		if resp.Request.URL.Host == at.Host && resp.StatusCode == http.StatusOK {
			for _, cookie := range jar.Cookies(at) {
				if strings.HasSuffix(cookie.Name, "_app") {
					return cookie.Name + "=" + cookie.Value, nil
				}
			}
		}
		action, form := formOf(page)
		if action == "" {
			break
		}
		if strings.HasSuffix(action, "/login") {
			form.Set("user", "alice")
			form.Set("password", s.Password)
			form.Set("code", code)
		}
		to, perr := resp.Request.URL.Parse(action)
		if perr != nil {
			return "", perr
		}
		resp, page, err = step(http.MethodPost, to, form, resp.Request.URL) //nolint:bodyclose // likewise
	}
	return "", errors.Join(err, fmt.Errorf("the login to the application ended at: %s", page))
}

var (
	formAction = regexp.MustCompile(`action="([^"]*)"`)
	formInput  = regexp.MustCompile(`<input[^>]*name="([^"]*)"[^>]*value="([^"]*)"`)
)

// formOf returns where the form of a page goes, and what it has filled in.
func formOf(page string) (string, url.Values) {
	m := formAction.FindStringSubmatch(page)
	if m == nil {
		return "", nil
	}
	fields := url.Values{}
	for _, in := range formInput.FindAllStringSubmatch(page, -1) {
		fields.Set(in[1], html.UnescapeString(in[2]))
	}
	return html.UnescapeString(m[1]), fields
}

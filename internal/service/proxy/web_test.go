package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/service/proxy"
	"teleport/internal/types"
)

// visit gets a path from the Proxy's web port, with HTTP/2 or without.
func (w *world) visit(t testing.TB, method, path string, h2 bool) (*http.Response, string) {
	t.Helper()
	cfg := ca.PinnedTLS(w.trust.Pins(), types.RoleProxy)
	tr := &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: h2, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, w.addr)
		},
	}
	defer tr.CloseIdleConnections()
	req := must(http.NewRequestWithContext(t.Context(), method, "https://proxy.example.com"+path, nil))
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return resp, string(must(io.ReadAll(resp.Body)))
}

func TestPing(t *testing.T) {
	w := newWorld(t)
	for _, h2 := range []bool{false, true} {
		resp, body := w.visit(t, "GET", "/webapi/ping", h2)
		if resp.StatusCode != 200 || resp.ProtoMajor == 2 != h2 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
			t.Fatalf("%s %d %v", resp.Proto, resp.StatusCode, resp.Header)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]any{
			"cluster_name": clusterName, "server_version": "0.1.0-dev", "min_client_version": "0.0.0",
			"auth.type": "local", "auth.second_factor": "otp", "proxy.tls_routing_enabled": true, "proxy.kube.enabled": false,
			"proxy.ssh.listen_addr": w.addr, "proxy.ssh.public_addr": "proxy.example.com:443",
			"proxy.ssh.ssh_public_addr": "proxy.example.com:443", "proxy.ssh.tunnel_public_addr": "proxy.example.com:443",
			"proxy.ssh.dial_timeout": float64(30e9),
		} {
			var v any = got
			for part := range strings.SplitSeq(path, ".") {
				m, _ := v.(map[string]any)
				v = m[part]
			}
			if v != want {
				t.Errorf("%s = %v, want %v", path, v, want)
			}
		}
	}
	_, body := w.visit(t, "GET", "/webapi/find", false)
	if strings.Contains(body, `"auth"`) || !strings.Contains(body, `"tls_routing_enabled":true`) {
		t.Errorf("find = %s", body)
	}
}

func TestPagesAndHeaders(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name, method, path string
		status             int
		text               string
	}{
		{"front", "GET", "/", 200, "tsh login --proxy="},
		{"head", "HEAD", "/", 200, ""},
		{"invitation", "GET", "/web/invite/0123abcd", 200, "tsh login --invite="},
		{"reset", "GET", "/web/reset/0123abcd", 200, "tsh login --invite="},
		{"nothing_there", "GET", "/web/invite/", 404, ""},
		{"metrics", "GET", "/metrics", 404, ""},
		{"debug", "GET", "/debug/pprof/", 404, ""},
		{"climbing", "GET", "/web/invite/../../etc/passwd", 404, ""},
		{"post", "POST", "/webapi/ping", 405, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := w.visit(t, tt.method, tt.path, true)
			if resp.StatusCode == 301 || resp.StatusCode == 307 {
				resp.StatusCode = 404 // a cleaned path leads nowhere either
			}
			if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
				t.Errorf("%d %q, want %d with %q", resp.StatusCode, body, tt.status, tt.text)
			}
			if strings.Contains(body, "0123abcd") {
				t.Error("the page repeats what was in the request")
			}
			for name, want := range map[string]string{
				"Content-Security-Policy": "frame-ancestors 'none'", "Strict-Transport-Security": "max-age=", "X-Frame-Options": "DENY",
				"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			} {
				if got := resp.Header.Get(name); !strings.Contains(got, want) {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestBigHeaderIsRefused(t *testing.T) {
	w := newWorld(t)
	conn := w.dialTLS(t, nil, "http/1.1")
	go func() {
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Big: ")
		for range 64 {
			if _, err := io.WriteString(conn, strings.Repeat("x", 1024)); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 12)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "HTTP/1.1 431" {
		t.Errorf("answer %q, %v, want 431", buf, err)
	}
}

// writePair makes a self-signed certificate for the name and returns its files.
func writePair(t testing.TB, dir, name string, notAfter time.Time) proxy.Keypair {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	p := proxy.Keypair{CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key")}
	write := func(file, kind string, der []byte) {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(p.KeyFile, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
	write(p.CertFile, "CERTIFICATE", der)
	return p
}

// shown returns the certificate that a visitor gets who asks for the name.
func (w *world) shown(t testing.TB, name string, protos ...string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{ServerName: name, NextProtos: protos, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0]
}

// saying passes on what is logged.
type saying chan string

func (s saying) Write(p []byte) (int, error) {
	select {
	case s <- string(p):
	default:
	}
	return len(p), nil
}

func (s saying) wait(t testing.TB, text string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case line := <-s:
			if strings.Contains(line, text) {
				return
			}
		case <-timeout:
			t.Fatalf("never logged: %q", text)
		}
	}
}

func TestKeypairs(t *testing.T) {
	dir := t.TempDir()
	later := time.Now().Add(time.Hour)
	a, b := writePair(t, dir, "a.example.com", later), writePair(t, dir, "b.example.com", later)
	said := make(saying, 100)
	w := newWorld(t, func(c *proxy.Config) {
		c.Keypairs, c.KeypairsReloadInterval = []proxy.Keypair{a, b}, 20*time.Millisecond
		c.Log = slog.New(slog.NewTextHandler(said, nil))
	})
	own := w.holder.Certificate(types.RoleProxy).Leaf
	for _, tt := range []struct{ name, proto, want string }{
		{"a.example.com", "h2", "a.example.com"},
		{"b.example.com", "http/1.1", "b.example.com"},
		{"b.example.com", mux.ALPNProxyGRPC, "b.example.com"},
		{"other.example.com", "h2", "a.example.com"},
		{"", "h2", "a.example.com"},
		{identity.ServerName(types.RoleProxy), mux.ALPNProxyGRPC, own.Subject.CommonName},
		{"a.example.com", mux.ALPNTunnel, own.Subject.CommonName},
	} {
		protos := []string{tt.proto}
		if tt.proto == mux.ALPNProxyGRPC {
			protos = append(protos, "h2")
		}
		if got := w.shown(t, tt.name, protos...).Subject.CommonName; got != tt.want {
			t.Errorf("%q with %s is shown %q, want %q", tt.name, tt.proto, got, tt.want)
		}
	}
	// One bad file: all stay as they were. Then both are taken.
	serial := w.shown(t, "a.example.com", "h2").SerialNumber
	writePair(t, dir, "a.example.com", later)
	good := must(os.ReadFile(b.KeyFile))
	if err := os.WriteFile(b.KeyFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	said.wait(t, "not reloaded")
	if got := w.shown(t, "b.example.com", "h2"); got.Subject.CommonName != "b.example.com" {
		t.Fatalf("b.example.com is shown %q while its key is broken", got.Subject.CommonName)
	}
	if err := os.WriteFile(b.KeyFile, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); w.shown(t, "a.example.com", "h2").SerialNumber.Cmp(serial) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the new certificate is not taken")
		}
	}
}

func TestBadKeypairsStopTheStart(t *testing.T) {
	dir := t.TempDir()
	old := writePair(t, dir, "old.example.com", time.Now().Add(-time.Hour))
	w := newWorld(t)
	_, err := proxy.New(proxy.Config{
		Listener: must(net.Listen("tcp", "127.0.0.1:0")), Holder: w.holder, Cache: w.cache, AuthConn: w.call(t),
		Emit: nopEmit, Keypairs: []proxy.Keypair{old, {CertFile: dir + "/none.crt", KeyFile: dir + "/none.key"}},
	})
	if err == nil || !strings.Contains(err.Error(), "expired at") || !strings.Contains(err.Error(), "none.crt") {
		t.Errorf("New = %v, want both problems", err)
	}
}

func TestNewNeedsTheRole(t *testing.T) {
	w := newWorld(t)
	_, err := proxy.New(proxy.Config{
		Listener: must(net.Listen("tcp", "127.0.0.1:0")), Holder: w.join(t, types.RoleNode), Cache: w.cache, AuthConn: w.call(t), Emit: nopEmit,
	})
	if err == nil || !strings.Contains(err.Error(), "role Proxy") {
		t.Errorf("New = %v, want it to need the role Proxy", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(c *proxy.Config) { c.Registerer = reg })
	w.agent(t, "web-1", "web", nil)
	w.dialUser(t, w.user(t, "web"), dialReq("web-1"))
	w.dialUser(t, w.user(t, "web"), dialReq("nowhere"))
	got := map[string]float64{}
	for _, f := range must(reg.Gather()) {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"teleport_reverse_tunnels_connected": 1, "proxy_ssh_sessions_total": 1, "proxy_ssh_sessions_active": 1, "proxy_ssh_dials_failed_total": 1,
		"proxy_connections_total": 3, "proxy_connections_garbage_total": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v, want %v", name, v, want)
		}
	}
}

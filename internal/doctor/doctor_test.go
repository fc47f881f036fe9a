package doctor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/ca"
	"teleport/internal/config"
	"teleport/internal/doctor"
	"teleport/internal/fault"
	"teleport/internal/mux"
)

const host = "proxy.test"

// options are those of a machine that wants to join a Proxy at the address, which has
// the name proxy.test.
func options(t *testing.T, addr string) doctor.Options {
	t.Helper()
	cfg := config.Default()
	cfg.Auth.Enabled, cfg.Proxy.Enabled = false, false
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.Join.TokenName = "0123456789abcdef0123456789abcdef"
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ProxyServer = net.JoinHostPort(host, port)
	return doctor.Options{
		Config: cfg, Timeout: 2 * time.Second, Getenv: func(string) string { return "" },
		Lookup: func(_ context.Context, name string) ([]string, error) {
			if name != host {
				return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
			}
			return []string{"127.0.0.1"}, nil
		},
		Rehearse: func(context.Context) (*joinv1.Explanation, error) {
			return &joinv1.Explanation{Checks: []*joinv1.Explanation_Check{{Name: "token", Passed: true, Detail: "it is good"}}}, nil
		},
	}
}

// want fails unless the first broken step is of the name and says the parts, in its
// detail or its fix.
func want(t *testing.T, r *doctor.Report, name string, parts ...string) {
	t.Helper()
	s := r.Broken()
	if name == "" {
		if s != nil {
			t.Errorf("broken: %+v, want nothing", *s)
		}
		return
	}
	if s == nil || s.Name != name || r.FirstBroken != name {
		t.Fatalf("the first broken step is %+v (%q), want %s: %+v", s, r.FirstBroken, name, r.Steps)
	}
	if s.Fix == "" {
		t.Errorf("step %s does not say what to do", name)
	}
	for _, p := range parts {
		if !strings.Contains(s.Detail+" "+s.Fix, p) {
			t.Errorf("step %s: %q is not in %q, %q", name, p, s.Detail, s.Fix)
		}
	}
}

func step(t *testing.T, r *doctor.Report, name string) doctor.Step {
	t.Helper()
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no step %s: %+v", name, r.Steps)
	return doctor.Step{}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.make(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	})
	return a
}

func (a *authority) make(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// server makes a certificate for the names that ends at the time, with its authority.
func (a *authority) server(t *testing.T, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	cert, key := a.make(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(-100 * time.Hour), NotAfter: until,
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key}
}

func (a *authority) pin() string { return ca.Pin(a.cert) }

// serve accepts connections until the test ends.
func serve(t *testing.T, ln net.Listener, handle func(net.Conn)) string {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// web answers /webapi/ping with the body, at the time.
func web(t *testing.T, body string, now func() time.Time, conf *tls.Config) http.Handler {
	t.Helper()
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", now().UTC().Format(http.TimeFormat))
		w.Header().Set("Server", "box/1.0")
		_, _ = fmt.Fprint(w, body)
	})
}

const teleportPing = `{"server_version":"1.2.3","cluster_name":"example"}`

// proxy runs what a Proxy looks like from outside: it offers the names of the
// protocols, and answers to /webapi/ping.
func proxy(t *testing.T, cert tls.Certificate, body string, protos ...string) string {
	t.Helper()
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos}
	return serve(t, listen(t), func(raw net.Conn) {
		conn := tls.Server(raw, conf)
		if conn.Handshake() != nil {
			return
		}
		if p := conn.ConnectionState().NegotiatedProtocol; p != "http/1.1" && p != "" {
			return
		}
		buf := make([]byte, 4096)
		if _, err := conn.Read(buf); err == nil {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nServer: box/1.0\r\nDate: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
				time.Now().UTC().Format(http.TimeFormat), len(body), body)
		}
	})
}

// all are the names that a Proxy knows.
func all() []string { return []string{mux.ALPNTunnel, "h2", "http/1.1"} }

func TestGood(t *testing.T) {
	a := newAuthority(t, "example host CA")
	o := options(t, proxy(t, a.server(t, time.Now().Add(time.Hour), host), teleportPing, all()...))
	o.Config.CAPins = []string{a.pin()}
	r := doctor.Examine(t.Context(), o)
	want(t, r, "")
	var names []string
	for _, s := range r.Steps {
		names = append(names, s.Name)
		if s.Status != doctor.OK || s.Detail == "" || s.Fix != "" {
			t.Errorf("step %+v, want ok", s)
		}
	}
	const steps = "configuration, data directory, identity, proxy settings, DNS, TCP, TLS, ALPN, balancer, clock, token, join: token"
	if got := strings.Join(names, ", "); got != steps {
		t.Errorf("steps = %s", got)
	}
	if d := step(t, r, "balancer").Detail; !strings.Contains(d, `Teleport 1.2.3, cluster "example"`) || !strings.Contains(d, "nothing in between ends TLS") {
		t.Errorf("balancer: %s", d)
	}
	if _, err := os.Stat(o.Config.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory was made: %v", err)
	}
}

func TestNetworkBroken(t *testing.T) {
	a, b := newAuthority(t, "example host CA"), newAuthority(t, "Corporate Inspection")
	soon := time.Now().Add(time.Hour)
	good := a.server(t, soon, host)
	tests := []struct {
		name string
		// addr starts what is there.
		addr  func(t *testing.T) string
		alter func(o *doctor.Options)
		step  string
		parts []string
	}{
		{"dns_wrong_name", nil, func(o *doctor.Options) { o.Config.ProxyServer = "wrong.test:443" }, "DNS", []string{"there is no host wrong.test", "correct the name"}},
		{"dns_no_answer", nil, func(o *doctor.Options) {
			o.Lookup = func(context.Context, string) ([]string, error) {
				return nil, &net.DNSError{Err: "server misbehaving", Name: host, IsTemporary: true}
			}
		}, "DNS", []string{"server misbehaving", "/etc/resolv.conf"}},
		{"dns_empty", nil, func(o *doctor.Options) {
			o.Lookup = func(context.Context, string) ([]string, error) { return nil, nil }
		}, "DNS", []string{"has no address"}},
		{"tcp_closed", func(t *testing.T) string {
			ln := listen(t)
			_ = ln.Close()
			return ln.Addr().String()
		}, nil, "TCP", []string{"connection refused", "start the Proxy Service"}},
		{"tcp_closed_with_a_forward_proxy", func(t *testing.T) string {
			ln := listen(t)
			_ = ln.Close()
			return ln.Addr().String()
		}, func(o *doctor.Options) {
			o.Getenv = func(name string) string { return map[string]string{"HTTPS_PROXY": "http://squid:3128"}[name] }
		}, "TCP", []string{"connection refused", "does not use a forward proxy (HTTPS_PROXY)"}},
		{"tcp_black_hole", blackHole, func(o *doctor.Options) { o.Timeout = 300 * time.Millisecond }, "TCP", []string{"no answer", "a firewall drops the packets"}},
		{"tls_plain_http", func(t *testing.T) string {
			ln := listen(t)
			server := &http.Server{Handler: web(t, "", time.Now, nil), ReadHeaderTimeout: time.Second}
			done := make(chan struct{})
			go func() { defer close(done); _ = server.Serve(ln) }()
			t.Cleanup(func() { _ = server.Close(); <-done })
			return ln.Addr().String()
		}, nil, "TLS", []string{"plain HTTP"}},
		{"tls_ssh", func(t *testing.T) string {
			return serve(t, listen(t), func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n")); _, _ = c.Read(make([]byte, 512)) })
		}, nil, "TLS", []string{"SSH server"}},
		{"tls_silent", func(t *testing.T) string {
			return serve(t, listen(t), func(c net.Conn) {
				for buf := make([]byte, 512); ; {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			})
		}, func(o *doctor.Options) { o.Timeout = 300 * time.Millisecond }, "TLS", []string{"does not answer to TLS"}},
		{"tls_closed", func(t *testing.T) string {
			return serve(t, listen(t), func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) })
		}, nil, "TLS", []string{"ends the connection"}},
		{
			"tls_unknown_issuer", func(t *testing.T) string { return proxy(t, b.server(t, soon, host), teleportPing, all()...) }, func(o *doctor.Options) { o.Config.CAPins = nil },
			"TLS",
			[]string{"does not trust", `issued by "CN=Corporate Inspection"`, "--ca-pin"},
		},
		{
			"tls_expired", func(t *testing.T) string {
				return proxy(t, a.server(t, time.Now().Add(-time.Hour), host), teleportPing, all()...)
			},
			func(o *doctor.Options) { o.Config.CAPins = nil }, "TLS",
			[]string{"has expired", "clock"},
		},
		{"tls_by_an_old_version", func(t *testing.T) string {
			conf := &tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12}
			return serve(t, listen(t), func(c net.Conn) { _ = tls.Server(c, conf).Handshake() })
		}, nil, "TLS", []string{"TLS 1.2 at most", "passthrough"}},
		{"direct_without_a_pin", nil, func(o *doctor.Options) {
			o.Config.AuthServer, o.Config.ProxyServer, o.Config.CAPins = o.Config.ProxyServer, "", nil
		}, "TLS", []string{"nothing to know the Auth Service by", "--ca-pin"}},
		{
			"alpn_terminator_before_a_proxy", func(t *testing.T) string {
				return terminator(t, b.server(t, soon, host), proxy(t, good, teleportPing, all()...))
			}, nil,
			"ALPN",
			[]string{"none chosen", `cluster "example" is behind something that ends TLS`, "passthrough"},
		},
		{
			"alpn_terminator_with_http", func(t *testing.T) string { return proxy(t, b.server(t, soon, host), teleportPing, "http/1.1") }, nil,
			"ALPN",
			[]string{"http/1.1 instead of teleport-reversetunnel", "ends TLS"},
		},
		{
			"alpn_another_server", func(t *testing.T) string { return proxy(t, b.server(t, soon, host), "hello", "http/1.1") }, nil,
			"ALPN",
			[]string{"another web server answers, box/1.0, with status 200", "correct the address"},
		},
		{
			"alpn_without_tunnels", func(t *testing.T) string { return proxy(t, good, teleportPing, "h2", "http/1.1") }, nil,
			"ALPN",
			[]string{"h2 instead of teleport-reversetunnel", "ends TLS"},
		},
		{"balancer_another_web_server", func(t *testing.T) string { return proxy(t, good, "<html>", all()...) }, nil, "balancer", []string{"another web server, box/1.0"}},
		{
			"balancer_another_cluster", func(t *testing.T) string { return proxy(t, b.server(t, soon, host), teleportPing, all()...) }, nil,
			"balancer",
			[]string{"which no CA pin names", "tctl status"},
		},
		{"clock_ahead", nil, func(o *doctor.Options) { o.Now = func() time.Time { return time.Now().Add(10 * time.Minute) } }, "clock", []string{"ahead of the Proxy's", "NTP"}},
		{"clock_behind", nil, func(o *doctor.Options) { o.Now = func() time.Time { return time.Now().Add(-10 * time.Minute) } }, "clock", []string{"behind the Proxy's"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := tt.addr
			if addr == nil {
				addr = func(t *testing.T) string { return proxy(t, good, teleportPing, all()...) }
			}
			o := options(t, addr(t))
			o.Config.CAPins = []string{a.pin()}
			if tt.alter != nil {
				tt.alter(&o)
			}
			o.Rehearse = func(context.Context) (*joinv1.Explanation, error) {
				t.Error("it rehearses over a broken network")
				return nil, errors.New("broken")
			}
			r := doctor.Examine(t.Context(), o)
			want(t, r, tt.step, tt.parts...)
			after := false
			for _, s := range r.Steps {
				if after && s.Status == doctor.OK && s.Name != "token" {
					t.Errorf("after the broken step: %+v", s)
				}
				after = after || s.Name == tt.step
			}
			if s := step(t, r, "join"); s.Status != doctor.Unknown {
				t.Errorf("join = %+v", s)
			}
		})
	}
}

// blackHole returns an address that swallows what is sent to it: a listener whose queue
// is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for range 16 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the queue does not fill")
	return ""
}

// terminator ends TLS with its own certificate, without knowing any protocol, and
// passes the rest on over TLS of its own.
func terminator(t *testing.T, cert tls.Certificate, to string) string {
	t.Helper()
	front := &tls.Config{Certificates: []tls.Certificate{cert}}
	return serve(t, listen(t), func(raw net.Conn) {
		conn := tls.Server(raw, front)
		if conn.Handshake() != nil {
			return
		}
		back, err := tls.Dial("tcp", to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			return
		}
		defer back.Close()
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					_ = back.CloseWrite()
					return
				}
				if _, err := back.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
		buf := make([]byte, 4096)
		for {
			n, err := back.Read(buf)
			if n > 0 {
				_, _ = conn.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	})
}

// TestSomeAddressesAnswer: one of several is enough, and the others are named.
func TestSomeAddressesAnswer(t *testing.T) {
	a := newAuthority(t, "example host CA")
	o := options(t, proxy(t, a.server(t, time.Now().Add(time.Hour), host), teleportPing, all()...))
	o.Config.CAPins = []string{a.pin()}
	o.Lookup = func(context.Context, string) ([]string, error) { return []string{"127.0.0.2", "127.0.0.1"}, nil }
	r := doctor.Examine(t.Context(), o)
	want(t, r, "")
	if d := step(t, r, "TCP").Detail; !strings.Contains(d, "127.0.0.2") || !strings.Contains(d, "connection refused") {
		t.Errorf("TCP: %s", d)
	}
}

// TestProxySettings: what is set and not used is named, and stops nothing.
func TestProxySettings(t *testing.T) {
	a := newAuthority(t, "example host CA")
	o := options(t, proxy(t, a.server(t, time.Now().Add(time.Hour), host), teleportPing, all()...))
	o.Config.CAPins = []string{a.pin()}
	o.Getenv = func(name string) string {
		return map[string]string{"https_proxy": "http://user:secret@squid:3128", "ALL_PROXY": "socks5://x"}[name]
	}
	r := doctor.Examine(t.Context(), o)
	want(t, r, "")
	if d := step(t, r, "proxy settings").Detail; !strings.Contains(d, "https_proxy, ALL_PROXY is set and not used") || strings.Contains(d, "secret") {
		t.Errorf("proxy settings: %s", d)
	}
}

func TestToken(t *testing.T) {
	a := newAuthority(t, "example host CA")
	addr := proxy(t, a.server(t, time.Now().Add(time.Hour), host), teleportPing, all()...)
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, value, step, says string }{
		{"none", "", "token", "tctl tokens add --type=node"},
		{"file_is_not_there", filepath.Join(dir, "none"), "token", "does not exist"},
		{"two_words", "two words", "token", "expected one word"},
		{"file_that_all_may_read", open, "", "can be read by every user"},
		{"pin_in_the_token", "0123456789abcdef0123456789abcdef." + a.pin(), "", "there is one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t, addr)
			if !strings.Contains(tt.value, "sha256") {
				o.Config.CAPins = []string{a.pin()}
			}
			o.Config.Join.TokenName = tt.value
			r := doctor.Examine(t.Context(), o)
			if tt.step == "" {
				want(t, r, "")
			} else {
				want(t, r, tt.step, tt.says)
			}
			s := step(t, r, "token")
			if !strings.Contains(s.Detail+s.Fix, tt.says) || strings.Contains(s.Detail+s.Fix, "0123456789abcdef") {
				t.Errorf("token: %+v", s)
			}
		})
	}
}

// TestRehearsal: the checks of a rehearsal are steps, with the code of the refusal.
func TestRehearsal(t *testing.T) {
	a := newAuthority(t, "example host CA")
	o := options(t, proxy(t, a.server(t, time.Now().Add(time.Hour), host), teleportPing, all()...))
	o.Config.CAPins = []string{a.pin()}
	o.Rehearse = func(context.Context) (*joinv1.Explanation, error) {
		return &joinv1.Explanation{
			Code: "rule_mismatch", Message: "no rule",
			Checks: []*joinv1.Explanation_Check{{Name: "token", Passed: true, Detail: "good"}, {Name: "rules", Detail: "no allow rule matches"}},
			Rules:  []*joinv1.Explanation_Rule{{Path: "spec.allow[0]", Fields: []*joinv1.Explanation_Field{{Name: "aws_account", Got: "1"}, {Name: "x", Matched: true}}}},
		}, nil
	}
	r := doctor.Examine(t.Context(), o)
	want(t, r, "join: rules", "no allow rule matches", `spec.allow[0]: aws_account does not match "1"`)
	if s := step(t, r, "join: rules"); s.Code != "rule_mismatch" {
		t.Errorf("code = %q", s.Code)
	}
	o.Rehearse = func(context.Context) (*joinv1.Explanation, error) {
		return nil, fault.New(fault.ErrDenied, "the pin is another one").WithCode("wrong_pin")
	}
	r = doctor.Examine(t.Context(), o)
	want(t, r, "join", "the pin is another one")
	if s := step(t, r, "join"); s.Code != "wrong_pin" {
		t.Errorf("code = %q", s.Code)
	}
}

func TestDataDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.Mkdir(damaged, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(damaged, "state"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, dir, step, says string }{
		{"is_a_file", file, "data directory", "not a directory"},
		{"below_a_file", filepath.Join(file, "below"), "data directory", "not a directory"},
		{"others_may_write", shared, "data directory", "chmod 700"},
		{"damaged_state", damaged, "identity", "join afresh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t, "127.0.0.1:1")
			o.Config.DataDir = tt.dir
			want(t, doctor.Examine(t.Context(), o), tt.step, tt.says)
		})
	}
}

// TestInUse: the process that holds the directory is named, and not disturbed.
func TestInUse(t *testing.T) {
	o := options(t, "127.0.0.1:1")
	if err := os.Mkdir(o.Config.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(o.Config.DataDir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if d := step(t, doctor.Examine(t.Context(), o), "data directory").Detail; !strings.Contains(d, fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Errorf("data directory: %s", d)
	}
}

// TestOwnCluster: an Auth Service joins nobody.
func TestOwnCluster(t *testing.T) {
	o := options(t, "127.0.0.1:1")
	o.Config.Auth.Enabled, o.Config.ProxyServer, o.Config.Join.TokenName = true, "", ""
	r := doctor.Examine(t.Context(), o)
	want(t, r, "")
	if d := step(t, r, "cluster").Detail; !strings.Contains(d, "nobody to join") {
		t.Errorf("cluster: %s", d)
	}
	o = options(t, "127.0.0.1:1")
	o.Config.ProxyServer = ""
	want(t, doctor.Examine(t.Context(), o), "configuration", "--proxy-server")
}

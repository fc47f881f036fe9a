package mux_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"teleport/internal/mux"
)

// newCert returns a self-signed P-256 certificate for localhost.
func newCert(t testing.TB) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "proxy"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// start serves m until the test ends and fails it if Serve does not return.
func start(t testing.TB, m *mux.Mux) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve() = %v, want nil when ctx ends", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not return")
		}
	})
}

func has(name string) func([]string, string) bool {
	return func(protos []string, _ string) bool { return slices.Contains(protos, name) }
}

// serveName ends TLS on ln and writes the name to each client.
func serveName(t testing.TB, ln net.Listener, name string, cert *tls.Certificate, protos ...string) {
	t.Helper()
	cfg := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: protos}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				tc := tls.Server(c, cfg)
				_, _ = io.WriteString(tc, name)
				_ = tc.Close()
			}()
		}
	}()
}

func TestRouting(t *testing.T) {
	ln, cert := listen(t), newCert(t)
	m := mux.New(mux.Config{Listener: ln})
	serveName(t, m.Route(has(mux.ALPNTunnel)), "tunnel", cert, mux.ALPNTunnel)
	serveName(t, m.Route(func(p []string, sni string) bool { return sni == "kube.localhost" }), "kube", cert, "h2")
	serveName(t, m.Default(), "web", cert, "h2", "http/1.1")
	start(t, m)
	for _, tt := range []struct {
		name, sni string
		protos    []string
		want      string
	}{
		{"by_alpn", "localhost", []string{mux.ALPNTunnel}, "tunnel"},
		{"one_of_several", "localhost", []string{"other", mux.ALPNTunnel}, "tunnel"},
		{"by_sni", "kube.localhost", []string{"h2"}, "kube"},
		{"h2", "localhost", []string{"h2"}, "web"},
		{"no_alpn", "localhost", nil, "web"},
		{"no_sni", "", nil, "web"},
		{"long_hello", "localhost", append(many("proto", 50), mux.ALPNTunnel), "tunnel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pool := x509.NewCertPool()
			pool.AddCert(cert.Leaf)
			c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
				ServerName: tt.sni, NextProtos: tt.protos, InsecureSkipVerify: true,
				VerifyConnection: func(cs tls.ConnectionState) error {
					_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool})
					return err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != tt.want {
				t.Errorf("reached %q (%v), want %q", got, err, tt.want)
			}
		})
	}
	if got := m.Stats().Accepted; got != 7 {
		t.Errorf("Accepted = %d, want 7", got)
	}
}

func many(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = prefix + strings.Repeat("x", 100)
	}
	return out
}

func TestHelloInPieces(t *testing.T) {
	ln, cert := listen(t), newCert(t)
	m := mux.New(mux.Config{Listener: ln})
	serveName(t, m.Route(has(mux.ALPNTunnel)), "tunnel", cert, mux.ALPNTunnel)
	start(t, m)
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(&trickle{conn}, &tls.Config{ServerName: "localhost", NextProtos: []string{mux.ALPNTunnel}, RootCAs: poolOf(cert)})
	defer func() { _ = tc.Close() }()
	if got, err := io.ReadAll(tc); err != nil || string(got) != "tunnel" {
		t.Errorf("reached %q (%v), want tunnel", got, err)
	}
}

func poolOf(cert *tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return pool
}

// trickle writes byte by byte.
type trickle struct{ net.Conn }

func (c *trickle) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestPlainHTTP(t *testing.T) {
	ln := listen(t)
	m := mux.New(mux.Config{Listener: ln})
	_ = m.Default()
	start(t, m)
	resp, err := http.Post("http://"+ln.Addr().String()+"/webapi/ping", "text/plain", strings.NewReader(strings.Repeat("x", 4096)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 400 || string(body) != "this port speaks HTTPS\n" {
		t.Errorf("got %d %q (%v), want a 400 that says so", resp.StatusCode, body, err)
	}
	if s := m.Stats(); s.PlainHTTP != 1 || s.Garbage != 0 {
		t.Errorf("Stats() = %+v, want one plain HTTP", s)
	}
}

func TestGarbageIsClosed(t *testing.T) {
	tooLong := append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, make([]byte, 100)...)
	manyRecords := bytes.Repeat([]byte{22, 3, 1, 0, 1, 1}, 1)
	manyRecords = append(manyRecords, bytes.Repeat([]byte{22, 3, 1, 0, 1, 0}, 40)...)
	for _, tt := range []struct {
		name string
		send []byte
	}{
		{"ssh", []byte("SSH-2.0-OpenSSH_9.2\r\n")},
		{"zeros", make([]byte, 64)},
		{"not_handshake", []byte{23, 3, 3, 0, 1, 0}},
		{"not_client_hello", []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}},
		{"empty_record", []byte{22, 3, 1, 0, 0}},
		{"huge_record", []byte{22, 3, 1, 0xff, 0xff}},
		{"huge_message", tooLong},
		{"many_records", manyRecords},
		{"empty_hello", []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := listen(t)
			m := mux.New(mux.Config{Listener: ln})
			_ = m.Default()
			start(t, m)
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := conn.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read() = %d, %v, want the connection closed at once", n, err)
			}
			if got := m.Stats().Garbage; got != 1 {
				t.Errorf("Garbage = %d, want 1", got)
			}
		})
	}
}

func TestSlowLorisMakesRoom(t *testing.T) {
	ln, cert := listen(t), newCert(t)
	m := mux.New(mux.Config{Listener: ln, MaxPending: 8, MaxPendingPerSource: 8, HandshakeTimeout: time.Minute})
	serveName(t, m.Default(), "web", cert)
	start(t, m)
	var slow []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte{22, 3, 1}); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	for range 20 {
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "localhost", RootCAs: poolOf(cert)})
		if err != nil {
			t.Fatalf("a well-behaved client is starved: %v", err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "web" {
			t.Fatalf("got %q, %v", got, err)
		}
		_ = c.Close()
	}
	// The first of them made room.
	_ = slow[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := slow[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("oldest silent connection: Read() = %v, want closed", err)
	}
	if got := m.Stats().Evicted; got < 42 {
		t.Errorf("Evicted = %d, want at least 42", got)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	ln := listen(t)
	m := mux.New(mux.Config{Listener: ln, HandshakeTimeout: 50 * time.Millisecond})
	_ = m.Default()
	start(t, m)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read() = %v, want closed by the deadline", err)
	}
}

func TestNobodyAccepts(t *testing.T) {
	ln, cert := listen(t), newCert(t)
	m := mux.New(mux.Config{Listener: ln, HandshakeTimeout: 100 * time.Millisecond})
	_ = m.Default()
	start(t, m)
	_, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "localhost", RootCAs: poolOf(cert)})
	if err == nil {
		t.Fatal("a connection that nobody accepts stays open")
	}
	for deadline := time.Now().Add(10 * time.Second); m.Stats().Unclaimed != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("Unclaimed = %d, want 1", m.Stats().Unclaimed)
		}
		runtime.Gosched()
	}
}

func TestTooManyWaiting(t *testing.T) {
	ln, cert := listen(t), newCert(t)
	m := mux.New(mux.Config{Listener: ln, MaxWaiting: 1, HandshakeTimeout: time.Minute})
	web := m.Default()
	start(t, m)
	hello := captureHello(t, &tls.Config{ServerName: "localhost"})
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	// Two of the three are closed, whichever came second and third.
	closed := make(chan error, 3)
	for _, c := range conns {
		go func() {
			_, err := c.Read(make([]byte, 1))
			closed <- err
		}()
	}
	<-closed
	<-closed
	if got := m.Stats().Unclaimed; got != 2 {
		t.Errorf("Unclaimed = %d, want 2", got)
	}
	// With the first taken there is room again.
	serveName(t, web, "web", cert)
	<-closed
	c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "localhost", RootCAs: poolOf(cert)})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

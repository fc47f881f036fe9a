package mux_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"teleport/internal/mux"
)

func TestConnCopiesBothWays(t *testing.T) {
	ln, back := listen(t), listen(t)
	m := mux.New(mux.Config{Listener: ln})
	route := m.Default()
	start(t, m)
	go func() { // backend: echo until EOF
		c, err := back.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	go func() { // relay
		c, err := route.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", back.Addr().String())
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(b, c)
			_ = b.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(c, b)
		_ = c.(*mux.Conn).CloseWrite()
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	sent := append(captureHello(t, &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}}), bytes.Repeat([]byte("payload "), 1<<17)...)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo of %d bytes = %d bytes (%v), want the same", len(sent), len(got), err)
	}
}

// captureHello returns the ClientHello that a Go client sends.
func captureHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, cfg).Handshake()
		_ = a.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	return append(head, body...)
}

func TestConnGivesRawConn(t *testing.T) {
	ln := listen(t)
	m := mux.New(mux.Config{Listener: ln})
	route := m.Default()
	start(t, m)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	hello := captureHello(t, &tls.Config{ServerName: "localhost"})
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	got, err := route.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Close() }()
	raw, ok := got.(interface{ NetConn() net.Conn })
	if !ok {
		t.Fatalf("%T gives no raw connection", got)
	}
	if _, ok := raw.NetConn().(*net.TCPConn); !ok {
		t.Errorf("NetConn() = %T, want *net.TCPConn", raw.NetConn())
	}
	back := make([]byte, len(hello))
	if _, err := io.ReadFull(got, back); err != nil || !bytes.Equal(back, hello) {
		t.Errorf("replay differs from what was sent (%v)", err)
	}
}

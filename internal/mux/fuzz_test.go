package mux

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	proxyv1 "teleport/api/proxy/v1"
)

// readConn reads from a buffer.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c *readConn) Read(p []byte) (int, error)      { return c.r.Read(p) }
func (c *readConn) SetReadDeadline(time.Time) error { return nil }

func goHello(tb testing.TB, protos ...string) []byte {
	tb.Helper()
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, &tls.Config{ServerName: "proxy.example.com", NextProtos: protos}).Handshake()
		_ = a.Close()
	}()
	buf := make([]byte, maxHello)
	n, err := b.Read(buf)
	if err != nil {
		tb.Fatal(err)
	}
	_ = b.Close()
	return buf[:n]
}

// split puts the message of one record into records of n bytes.
func split(record []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(record[recordHeader:], n) {
		out = append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestHelloAcrossRecords(t *testing.T) {
	raw := goHello(t, ALPNTunnel)
	for _, n := range []int{128, 200, 1000, 4000} {
		in := split(raw, n)
		got, h, err := peekHello(&readConn{r: bytes.NewReader(in)})
		if err != nil || h.sni != "proxy.example.com" || !slices.Equal(h.protos, []string{ALPNTunnel}) {
			t.Errorf("records of %d: %+v, %v", n, h, err)
		}
		if !bytes.Equal(got, in) {
			t.Errorf("records of %d: replay differs", n)
		}
	}
}

func FuzzClientHello(f *testing.F) {
	raw := goHello(f, "h2", ALPNAuthPrefix+"example.com")
	f.Add(raw)
	f.Add(split(raw, 200))
	f.Add(raw[:len(raw)/2])
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, h, err := peekHello(&readConn{r: bytes.NewReader(in)})
		if !bytes.HasPrefix(in, got) {
			t.Fatal("replay is not a prefix of the input")
		}
		if len(got) > 3*maxHello {
			t.Fatalf("kept %d bytes", len(got))
		}
		if err != nil {
			return
		}
		if len(h.protos) > maxProtos || len(h.sni) > 255 {
			t.Fatalf("bounds not kept: %d protos, name of %d", len(h.protos), len(h.sni))
		}
		// What we accept, crypto/tls must read the same way, if it accepts it.
		var theirs *tls.ClientHelloInfo
		stop := errors.New("seen")
		_ = tls.Server(&pipeConn{readConn{r: bytes.NewReader(in)}}, &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
				theirs = i
				return nil, stop
			},
		}).Handshake()
		if theirs != nil && (theirs.ServerName != h.sni || !slices.Equal(theirs.SupportedProtos, h.protos)) {
			t.Fatalf("we read %q %q, crypto/tls %q %q", h.sni, h.protos, theirs.ServerName, theirs.SupportedProtos)
		}
	})
}

// pipeConn swallows what is written.
type pipeConn struct{ readConn }

func (c *pipeConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }
func (c *pipeConn) Close() error                     { return nil }

func FuzzRelayed(f *testing.F) {
	f.Add([]byte(relayedMagic + "\x00\x00\x00\x02\x10\x01"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Add([]byte(relayedMagic[:4]))
	r := &relayed{
		purpose: PurposeNode, now: time.Now,
		verify: func(*x509.Certificate) error { return errors.New("nobody") },
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := r.read(&readConn{r: bytes.NewReader(in)})
		if err != nil {
			return
		}
		if _, ok := c.(*relayedConn); ok {
			t.Fatal("a preamble passed that nobody vouched for")
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, in) {
			t.Fatalf("read %q (%v), want %q unchanged", got, err, in)
		}
	})
}

func TestRelayedBytesAreUnambiguous(t *testing.T) {
	a := relayedBytes(&proxyv1.Relayed{ClientAddr: "192.0.2.1:2", Time: 21}, "node")
	b := relayedBytes(&proxyv1.Relayed{ClientAddr: "192.0.2.1:22", Time: 1}, "node")
	if bytes.Equal(a, b) {
		t.Error("two statements have the same bytes")
	}
}

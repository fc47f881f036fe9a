package mux_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/mux"
)

const client = "192.0.2.7:40001"

// relay opens a listener that trusts only cert and returns it with its address.
func relay(t testing.TB, cert *tls.Certificate, now func() time.Time) net.Listener {
	t.Helper()
	ln := mux.RelayedListener(listen(t), mux.PurposeNode, func(c *x509.Certificate) error {
		if !c.Equal(cert.Leaf) {
			return errors.New("unknown certificate")
		}
		return nil
	}, now)
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// send connects, writes b and returns the accepted connection.
func send(t testing.TB, ln net.Listener, b []byte) (local, accepted net.Conn) {
	t.Helper()
	local, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	if _, err := local.Write(b); err != nil {
		t.Fatal(err)
	}
	accepted, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = accepted.Close() })
	return local, accepted
}

func preamble(t testing.TB, cert *tls.Certificate, purpose string, now time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := mux.WriteRelayed(&b, client, purpose, cert, now); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRelayed(t *testing.T) {
	cert := newCert(t)
	ln := relay(t, cert, time.Now)
	local, got := send(t, ln, append(preamble(t, cert, mux.PurposeNode, time.Now()), "SSH-2.0-x\r\n"...))
	if got.RemoteAddr().String() != client {
		t.Errorf("RemoteAddr() = %s, want %s", got.RemoteAddr(), client)
	}
	line := make([]byte, 11)
	if _, err := io.ReadFull(got, line); err != nil || string(line) != "SSH-2.0-x\r\n" {
		t.Errorf("read %q (%v), want what follows the preamble", line, err)
	}
	if _, err := got.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(local, line[:2]); err != nil || string(line[:2]) != "hi" {
		t.Errorf("client read %q, %v", line[:2], err)
	}
}

func TestRelayedWithoutPreamble(t *testing.T) {
	cert := newCert(t)
	for _, first := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "\x16\x03\x01\x02\x00\x01", "TPRLX", "T123456789"} {
		ln := relay(t, cert, time.Now)
		local, got := send(t, ln, []byte(first))
		if got.RemoteAddr().String() != local.LocalAddr().String() {
			t.Errorf("RemoteAddr() = %s, want the peer's", got.RemoteAddr())
		}
		b := make([]byte, len(first))
		if _, err := io.ReadFull(got, b); err != nil || string(b) != first {
			t.Errorf("read %q (%v), want %q unchanged", b, err, first)
		}
	}
}

func TestRelayedSilentClientPasses(t *testing.T) {
	cert := newCert(t)
	ln := relay(t, cert, time.Now)
	local, got := send(t, ln, nil)
	if _, err := local.Write([]byte("SSH-")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(got, b); err != nil || string(b) != "SSH-" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestRelayedRefused(t *testing.T) {
	cert, other := newCert(t), newCert(t)
	now := time.Now()
	good := preamble(t, cert, mux.PurposeNode, now)
	changed := bytes.Replace(good, []byte(client), []byte(strings.Replace(client, "7", "8", 1)), 1)
	for _, tt := range []struct {
		name string
		send []byte
		want error
		text string
	}{
		{"other_purpose", preamble(t, cert, mux.PurposeAuth, now), fault.ErrUnauthenticated, "purpose"},
		{"other_certificate", preamble(t, other, mux.PurposeNode, now), fault.ErrUnauthenticated, "not signed by a Proxy"},
		{"too_old", preamble(t, cert, mux.PurposeNode, now.Add(-2*time.Minute)), fault.ErrUnauthenticated, "set the clocks right"},
		{"too_new", preamble(t, cert, mux.PurposeNode, now.Add(2*time.Minute)), fault.ErrUnauthenticated, "set the clocks right"},
		{"changed_address", changed, fault.ErrUnauthenticated, "signature"},
		{"huge", []byte("TPRLY\x00\x01\n\xff\xff\xff\xff"), fault.ErrInvalid, "expected at most"},
		{"empty", []byte("TPRLY\x00\x01\n\x00\x00\x00\x00"), fault.ErrInvalid, "expected at most"},
		{"garbage", []byte("TPRLY\x00\x01\n\x00\x00\x00\x02\xff\xff"), fault.ErrInvalid, "not a message"},
		{"no_certificate", []byte("TPRLY\x00\x01\n\x00\x00\x00\x02\x10\x01"), fault.ErrInvalid, "certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := relay(t, cert, func() time.Time { return now })
			_, got := send(t, ln, tt.send)
			_, err := got.Read(make([]byte, 1))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Read() = %v, want %v with %q", err, tt.want, tt.text)
			}
			if got.RemoteAddr().String() == client {
				t.Error("RemoteAddr() is the one that was not proven")
			}
		})
	}
}

func TestWriteRelayedRefusesBadInput(t *testing.T) {
	cert := newCert(t)
	for _, addr := range []string{"", "example.com:22", "192.0.2.1", "192.0.2.1:22\x00node"} {
		if err := mux.WriteRelayed(io.Discard, addr, mux.PurposeNode, cert, time.Now()); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("WriteRelayed(%q) = %v, want ErrInvalid", addr, err)
		}
	}
	if err := mux.WriteRelayed(io.Discard, client, mux.PurposeNode, nil, time.Now()); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("WriteRelayed without certificate = %v, want ErrInvalid", err)
	}
}

func TestRelayedCloseEndsAccept(t *testing.T) {
	cert := newCert(t)
	ln := relay(t, cert, time.Now)
	silent, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	done := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				done <- err
				return
			}
			_ = c.Close()
		}
	}()
	if err := ln.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept() = %v, want net.ErrClosed", err)
	}
}

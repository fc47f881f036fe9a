package client

import (
	"bytes"
	"encoding/binary"
	"net"
	"strings"
	"testing"
)

// setup is the first message of an X client.
func setup(order binary.AppendByteOrder, name string, cookie []byte) []byte {
	first := byte('l')
	if order == binary.BigEndian {
		first = 'B'
	}
	out := []byte{first, 0, 0, 11, 0, 0}
	out = order.AppendUint16(order.AppendUint16(out, uint16(len(name))), uint16(len(cookie)))
	out = append(out, 0, 0)
	out = append(out, name...)
	out = append(out, make([]byte, padded(len(name))-len(name))...)
	out = append(out, cookie...)
	return append(out, make([]byte, padded(len(cookie))-len(cookie))...)
}

func TestCookieIsReplaced(t *testing.T) {
	made, kept := []byte("sixteen bytes: a"), []byte("sixteen bytes: b")
	d := &Display{fake: made, real: kept}
	for name, order := range map[string]binary.AppendByteOrder{"big": binary.BigEndian, "little": binary.LittleEndian} {
		got, err := d.readSetup(bytes.NewReader(setup(order, magicCookie, made)))
		if err != nil || !bytes.Equal(got, setup(order, magicCookie, kept)) {
			t.Errorf("%s: readSetup = %q, %v", name, got, err)
		}
		open := &Display{fake: made}
		if got, err := open.readSetup(bytes.NewReader(setup(order, magicCookie, made))); err != nil || !bytes.Equal(got, setup(order, "", nil)) {
			t.Errorf("%s: readSetup for a display without a cookie = %q, %v", name, got, err)
		}
	}
	for name, message := range map[string][]byte{
		"wrong_cookie": setup(binary.BigEndian, magicCookie, kept), "no_cookie": setup(binary.BigEndian, "", nil),
		"other_protocol": setup(binary.BigEndian, "XDM-AUTHORIZATION-1", made), "short": []byte("l"), "http": []byte("GET / HTTP/1.1\r\n"),
		"huge": {'l', 0, 0, 11, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0},
	} {
		if got, err := d.readSetup(bytes.NewReader(message)); err == nil {
			t.Errorf("%s: readSetup = %q, want an error", name, got)
		}
	}
}

func TestDisplayNames(t *testing.T) {
	for name, want := range map[string][2]string{
		":0": {"unix", "/tmp/.X11-unix/X0"}, "unix:7.1": {"unix", "/tmp/.X11-unix/X7"}, "localhost:10.0": {"tcp", "localhost:6010"},
		"[::1]:1": {"tcp", "[::1]:6001"}, "/private/tmp/x:0": {"unix", "/private/tmp/x:0"},
	} {
		d, err := parseDisplay(name)
		if err != nil || d.network != want[0] || d.addr != want[1] {
			t.Errorf("parseDisplay(%q) = %+v, %v, want %v", name, d, err, want)
		}
	}
	for _, name := range []string{"", "0", ":x", ":99999", "host:", ":0.x"} {
		if d, err := parseDisplay(name); err == nil {
			t.Errorf("parseDisplay(%q) = %+v, want an error", name, d)
		}
	}
}

// FuzzSocks reads a request of the SOCKS protocol from a program.
func FuzzSocks(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\x02\x00\x02\x05\x01\x00\x03\x03web\x01\xbb"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x00", 15) + "\x01\x00\x50"))
	f.Add([]byte("\x04\x01\x00\x50\x7f\x00\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, message []byte) {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(message)
			_ = there.Close()
		}()
		go func() { _, _ = there.Read(make([]byte, 16)) }()
		e, err := socksRequest(here)
		_ = here.Close()
		if err == nil && (e.Host == "" || e.Port == 0 || e.Path != "") {
			t.Errorf("request %q leads to %+v", message, e)
		}
	})
}

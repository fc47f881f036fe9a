package egress_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
)

// What goes wrong is told without the addresses of Auth's network: a stranger reads it.
func TestErrorsHaveNoAddresses(t *testing.T) {
	addr := &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 443}
	fail := func(err error) egress.Config {
		return egress.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, err }}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for name, tt := range map[string]struct {
		cfg  egress.Config
		url  string
		want string
	}{
		"refused":      {fail(&net.OpError{Op: "dial", Net: "tcp", Addr: addr, Err: syscall.ECONNREFUSED}), "https://issuer.example.com/", "connection refused"},
		"unknown name": {fail(&net.OpError{Op: "dial", Err: &net.DNSError{Name: "issuer.example.com", Server: "10.1.2.3:53", IsNotFound: true}}), "https://issuer.example.com/", "not known"},
		"no DNS":       {fail(&net.DNSError{Name: "issuer.example.com", Server: "10.1.2.3:53", Err: "server misbehaving"}), "https://issuer.example.com/", "looked up"},
		"too late":     {egress.Config{Timeout: time.Millisecond, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }}, "https://issuer.example.com/", "in time"},
		"something":    {fail(errors.New("no route")), "https://issuer.example.com/", "no route"},
		"not public":   {egress.Config{}, "https://localhost:" + port + "/", "public network"},
		"cut connection": {egress.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			c, d := net.Pipe()
			d.Close()
			return c, nil
		}}, "https://issuer.example.com/", "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := egress.New(tt.cfg).Do(t.Context(), egress.Request{URL: tt.url})
			if !errors.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "10.1.2.3") || strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("error = %v, want %q and no address", err, tt.want)
			}
		})
	}
}

// What a document names must be on the public network, in whatever form it is written.
func TestPublicOnly(t *testing.T) {
	for _, address := range []string{
		"127.0.0.1", "10.0.0.1", "169.254.169.254", "100.100.100.200", "192.0.0.192", "198.18.0.1", "0.1.2.3", "[::1]", "[::ffff:10.0.0.1]", "[fd00:ec2::254]",
		"[fe80::1]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[::a00:1]",
	} {
		_, err := egress.New(egress.Config{Timeout: time.Second}).Do(t.Context(), egress.Request{URL: "https://" + address + "/"})
		if err == nil || !strings.Contains(err.Error(), "public network") {
			t.Errorf("%s: %v, want it refused", address, err)
		}
	}
	for _, address := range []string{"93.184.215.14:443", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443", "[64:ff9b::5db8:d70e]:443"} {
		if err := egress.PublicOnly(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

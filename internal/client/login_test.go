package client_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
)

const pinExample = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseInvite(t *testing.T) {
	for name, tt := range map[string]struct {
		link string
		want *client.Invite
	}{
		"with_pin":       {"https://proxy.example.com:3080/web/invite/abc123#" + pinExample, &client.Invite{Proxy: "proxy.example.com:3080", Token: "abc123", Pins: []string{pinExample}}},
		"without_pin":    {"https://proxy.example.com/web/invite/abc-_1.2", &client.Invite{Proxy: "proxy.example.com", Token: "abc-_1.2"}},
		"reset":          {" https://proxy.example.com/web/reset/abc\n", &client.Invite{Proxy: "proxy.example.com", Token: "abc"}},
		"ipv6":           {"https://[::1]:3080/web/invite/abc", &client.Invite{Proxy: "[::1]:3080", Token: "abc"}},
		"empty":          {"", nil},
		"http":           {"http://proxy.example.com/web/invite/abc", nil},
		"other_path":     {"https://proxy.example.com/web/login/abc", nil},
		"no_token":       {"https://proxy.example.com/web/invite/", nil},
		"slash_in_token": {"https://proxy.example.com/web/invite/a/b", nil},
		"escaped_slash":  {"https://proxy.example.com/web/invite/a%2Fb", nil},
		"query":          {"https://proxy.example.com/web/invite/abc?x=y", nil},
		"user_info":      {"https://evil@proxy.example.com/web/invite/abc", nil},
		"bad_pin":        {"https://proxy.example.com/web/invite/abc#sha256:12", nil},
		"no_host":        {"https:///web/invite/abc", nil},
		"bad_port":       {"https://proxy.example.com:99999/web/invite/abc", nil},
		"long":           {"https://proxy.example.com/web/invite/" + strings.Repeat("a", 3000), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := client.ParseInvite(tt.link)
			if (err == nil) != (tt.want != nil) {
				t.Fatalf("ParseInvite(%q) = %v, %v", tt.link, got, err)
			}
			if err != nil && strings.Contains(err.Error(), "abc") {
				t.Errorf("the error shows the secret: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParseInvite(f *testing.F) {
	f.Add("https://proxy.example.com:3080/web/invite/abc123#" + pinExample)
	f.Add("https://[::1]/web/reset/x")
	f.Fuzz(func(t *testing.T, link string) {
		inv, err := client.ParseInvite(link)
		if err != nil {
			return
		}
		if strings.ContainsAny(inv.Token, "/\\ \n?#%") || inv.Token == "" {
			t.Errorf("token %q", inv.Token)
		}
		addrs, err := client.ProxyAddrs(inv.Proxy)
		if err != nil {
			t.Fatalf("Proxy %q: %v", inv.Proxy, err)
		}
		for _, addr := range addrs {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				t.Errorf("address %q: %v", addr, err)
			}
		}
	})
}

func TestProxyAddrs(t *testing.T) {
	for in, want := range map[string][]string{
		"proxy.example.com":          {"proxy.example.com:443", "proxy.example.com:3080"},
		"proxy.example.com:8443":     {"proxy.example.com:8443"},
		"https://proxy.example.com/": {"proxy.example.com:443", "proxy.example.com:3080"},
		"127.0.0.1":                  {"127.0.0.1:443", "127.0.0.1:3080"},
		"::1":                        {"[::1]:443", "[::1]:3080"},
		"[::1]:99":                   {"[::1]:99"},
		"":                           nil,
		"a b":                        nil,
		"host:":                      {"host:443", "host:3080"},
		"host:port":                  nil,
		"host:0":                     nil,
		"host:70000":                 nil,
		"-host":                      nil,
		"a/b":                        nil,
	} {
		got, err := client.ProxyAddrs(in)
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("ProxyAddrs(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestTrustOfTheProxy(t *testing.T) {
	c, other := clienttest.Start(t), clienttest.Start(t)
	for name, tt := range map[string]struct {
		cfg  client.ProxyConfig
		want error
	}{
		"pin":            {client.ProxyConfig{Pins: c.Trust.Pins()}, nil},
		"earlier_login":  {client.ProxyConfig{Known: c.Trust.Pins()}, nil},
		"insecure":       {client.ProxyConfig{Insecure: true}, nil},
		"nothing_known":  {client.ProxyConfig{}, fault.ErrUnauthenticated},
		"wrong_pin":      {client.ProxyConfig{Pins: other.Trust.Pins()}, fault.ErrUnauthenticated},
		"wrong_cluster":  {client.ProxyConfig{Known: other.Trust.Pins()}, fault.ErrUnauthenticated},
		"pin_then_known": {client.ProxyConfig{Pins: other.Trust.Pins(), Known: c.Trust.Pins()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Addr = c.Addr
			p, err := client.ConnectProxy(t.Context(), tt.cfg)
			if !errors.Is(err, tt.want) {
				t.Fatalf("ConnectProxy() = %v, want %v", err, tt.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "--insecure") || !strings.Contains(err.Error(), c.Addr) {
					t.Errorf("the error does not say what to do: %v", err)
				}
				return
			}
			ping, err := p.Ping(t.Context())
			if err != nil || ping.ServerVersion != "0.1.0" || p.Addr() != c.Addr {
				t.Errorf("Ping() = %v, %v", ping, err)
			}
		})
	}
}

// A pin that was given must be the cluster's, whatever else vouches for the Proxy.
func TestLoginChecksGivenPins(t *testing.T) {
	c, other := clienttest.Start(t), clienttest.Start(t)
	p, err := client.ConnectProxy(t.Context(), client.ProxyConfig{Addr: c.Addr, Pins: other.Trust.Pins(), Known: c.Trust.Pins()})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Login(t.Context(), client.LoginRequest{User: "alice", Password: c.Login.Password, Code: c.Login.Code, Keys: keys})
	if !errors.Is(err, fault.ErrUnauthenticated) || !strings.Contains(err.Error(), "CA pins") {
		t.Errorf("Login() = %v, want a refusal of the pin", err)
	}
}

func TestLogin(t *testing.T) {
	c := clienttest.Start(t)
	c.Login.Logins = []string{"root"}
	p, err := client.ConnectProxy(t.Context(), client.ProxyConfig{Addr: c.Addr, Known: c.Trust.Pins()})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	req := client.LoginRequest{User: "alice", Password: c.Login.Password, Code: c.Login.Code, TTL: time.Hour, Keys: keys}
	creds, err := p.Login(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(creds.Expires()); left < 55*time.Minute || left > time.Hour {
		t.Errorf("certificates are good for %s, want an hour", left)
	}
	req.Password = "wrong"
	if _, err := p.Login(t.Context(), req); !errors.Is(err, fault.ErrUnauthenticated) {
		t.Errorf("wrong password: %v", err)
	}
}

func TestRedeem(t *testing.T) {
	c := clienttest.Start(t)
	c.Login.Invite = "s3cret"
	p, err := client.ConnectProxy(t.Context(), client.ProxyConfig{Addr: c.Addr, Pins: c.Trust.Pins()})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := p.Invitation(t.Context(), "s3cret")
	if err != nil || inv.GetUser() != "alice" {
		t.Fatalf("Invitation() = %v, %v", inv, err)
	}
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	req := client.LoginRequest{User: "alice", Password: "a new password", Code: "000000", Keys: keys}
	if _, err := p.Redeem(t.Context(), "s3cret", req); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("wrong code: %v", err)
	}
	req.Code = c.Login.Code
	creds, err := p.Redeem(t.Context(), "s3cret", req)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := creds.Identity(); err != nil || id.User.Name != "alice" || c.Login.Password != "a new password" {
		t.Errorf("redeemed as %v, %v", id, err)
	}
	if _, err := p.Redeem(t.Context(), "s3cret", req); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("second use: %v", err)
	}
}

// Without a port, 443 is preferred and 3080 is the other.
func TestPorts(t *testing.T) {
	c := clienttest.Start(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadAddr := dead.Addr().String()
	_ = dead.Close()
	for name, tt := range map[string]struct {
		https, other string
		want         string
	}{
		"both":         {c.Addr, c.Addr, "proxy.example.com:443"},
		"only_443":     {c.Addr, deadAddr, "proxy.example.com:443"},
		"only_3080":    {deadAddr, c.Addr, "proxy.example.com:3080"},
		"443_is_other": {clienttest.Start(t).Addr, c.Addr, "proxy.example.com:3080"},
		"none":         {deadAddr, deadAddr, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := client.ConnectProxy(t.Context(), client.ProxyConfig{
				Addr: "proxy.example.com", Known: c.Trust.Pins(),
				Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					to := tt.https
					if strings.HasSuffix(addr, ":3080") {
						to = tt.other
					}
					return (&net.Dialer{}).DialContext(ctx, network, to)
				},
			})
			if tt.want == "" {
				if !errors.Is(err, fault.ErrUnreachable) {
					t.Errorf("ConnectProxy() = %v, want ErrUnreachable", err)
				}
				return
			}
			if err != nil || p.Addr() != tt.want {
				t.Errorf("ConnectProxy() = %v, %v, want %s", p, err, tt.want)
			}
		})
	}
}

func TestNotATLSPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			_ = conn.Close()
		}
	}()
	_, err = client.ConnectProxy(t.Context(), client.ProxyConfig{Addr: ln.Addr().String()})
	if !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("ConnectProxy() = %v, want ErrUnreachable", err)
	}
}

package config_test

import (
	"strings"
	"testing"

	"teleport/internal/config"
)

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"teleport.example.com:443": "teleport.example.com:443",
		"teleport.example.com":     "teleport.example.com:3080",
		"10.0.0.1":                 "10.0.0.1:3080",
		"auth_server:3080":         "auth_server:3080",
		"[2001:db8::1]:443":        "[2001:db8::1]:443",
		"[2001:db8::1]":            "[2001:db8::1]:3080",
		"2001:db8::1":              "[2001:db8::1]:3080",
		"localhost:00443":          "localhost:443",
	} {
		cfg, err := config.Parse("t", []byte("version: v3\nteleport: {proxy_server: '"+in+"'}\nauth_service: {enabled: no}"))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if cfg.ProxyServer != want {
			t.Errorf("%q is read as %q, want %q", in, cfg.ProxyServer, want)
		}
	}
	for _, in := range []string{
		"", ":", ":443", "3080", "a:b", "a:0", "a:-1", "a:65536", "a:1:2", "[::1", "::1]", "[::1]]:1", "[a]]", "1.2.3.4.5:1", "999.1.1.1:1",
		"a b:1", "-a:1", "a..b:1", "https://a:1", "a/b:1", "a:1/x", strings.Repeat("a", 300) + ":1", "a\\x00:1", "user@a:1",
	} {
		cfg, err := config.Parse("t", []byte("version: v3\nteleport: {proxy_server: \""+in+"\"}\nauth_service: {enabled: no}"))
		if err == nil {
			t.Errorf("%q is accepted as %q", in, cfg.ProxyServer)
		}
	}
	cfg := parse(t, "auth_service: {listen_addr: ':0'}\nproxy_service: {web_listen_addr: '127.0.0.1:0'}\nssh_service: {listen_addr: '[::]:5022'}\n")
	if cfg.Auth.ListenAddr != "0.0.0.0:0" || cfg.Proxy.WebListenAddr != "127.0.0.1:0" || cfg.SSH.ListenAddr != "[::]:5022" {
		t.Errorf("listen addresses = %q %q %q", cfg.Auth.ListenAddr, cfg.Proxy.WebListenAddr, cfg.SSH.ListenAddr)
	}
}

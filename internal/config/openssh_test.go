package config_test

import (
	"net/netip"
	"slices"
	"testing"
)

func TestOpenSSHSourceAddrs(t *testing.T) {
	cfg := parse(t, "proxy_service: {openssh_source_addrs: [203.0.113.7, '2001:db8::1', '::ffff:10.0.0.1']}\n")
	want := []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.1")}
	if got := cfg.Proxy.OpenSSHSources; !slices.Equal(got, want) {
		t.Errorf("sources = %v, want %v", got, want)
	}
	if got := parse(t, "proxy_service: {openssh_source_addrs: 192.0.2.1}\n").Proxy.OpenSSHSources; len(got) != 1 {
		t.Errorf("one address = %v", got)
	}
}

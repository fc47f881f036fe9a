package identity_test

import (
	"net"
	"testing"

	"teleport/internal/identity"
)

func TestCheckSource(t *testing.T) {
	pinned := func(ip string) *identity.Identity {
		return &identity.Identity{Cluster: "c", User: &identity.User{Name: "alice", SourceIP: ip}}
	}
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 4711} }
	for name, tt := range map[string]struct {
		id   *identity.Identity
		from net.Addr
		good bool
	}{
		"same":        {pinned("192.0.2.7"), tcp("192.0.2.7"), true},
		"mapped":      {pinned("192.0.2.7"), tcp("::ffff:192.0.2.7"), true},
		"ipv6":        {pinned("2001:db8::1"), tcp("2001:db8::1"), true},
		"other":       {pinned("192.0.2.7"), tcp("192.0.2.8"), false},
		"no_address":  {pinned("192.0.2.7"), &net.UnixAddr{Name: "192.0.2.7"}, false},
		"nil_address": {pinned("192.0.2.7"), nil, false},
		"not_pinned":  {pinned(""), &net.UnixAddr{}, true},
		"host":        {host(), tcp("192.0.2.7"), true},
	} {
		if err := tt.id.CheckSource(tt.from); (err == nil) != tt.good {
			t.Errorf("%s: CheckSource = %v, want success %t", name, err, tt.good)
		}
	}
	for _, ip := range []string{"192.0.2.7/32", "192.0.2.007", "::ffff:192.0.2.7", "localhost", "2001:DB8::1"} {
		if err := pinned(ip).Check(); err == nil {
			t.Errorf("the source address %q is accepted", ip)
		}
	}
}

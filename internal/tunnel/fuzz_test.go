package tunnel

import (
	"net/netip"
	"testing"
	"time"

	"teleport/internal/types"
)

func FuzzTransportRequest(f *testing.F) {
	good, err := marshalTransport(types.RoleNode, "192.0.2.7:40001")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Add(make([]byte, maxExtra+1))
	f.Fuzz(func(t *testing.T, in []byte) {
		role, addr, err := parseTransport(in)
		if err != nil {
			return
		}
		if _, err := types.ParseSystemRole(string(role)); err != nil {
			t.Fatalf("accepted role %q", role)
		}
		if _, err := netip.ParseAddrPort(addr.String()); err != nil {
			t.Fatalf("accepted address %q", addr)
		}
	})
}

func TestLeavingRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		in   []byte
		want time.Duration
	}{
		{marshalLeaving(0), 0},
		{marshalLeaving(1500 * time.Millisecond), 1500 * time.Millisecond},
		{marshalLeaving(time.Hour), maxSpread},
		{[]byte{0xff, 0xff, 0xff, 0xff}, maxSpread},
		{[]byte{1}, 0},
		{nil, 0},
	} {
		if got := parseLeaving(tt.in); got != tt.want {
			t.Errorf("parseLeaving(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[31mb\n"); got != `"a\x1b[31mb\n"` {
		t.Errorf("printable() = %s, want escapes quoted", got)
	}
}

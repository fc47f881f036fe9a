package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"teleport/internal/types"
)

func FuzzTransportRequest(f *testing.F) {
	for _, req := range []Request{
		{Service: types.RoleNode, ClientAddr: "192.0.2.7:40001"},
		{Service: types.RoleDB, ClientAddr: "[2001:db8::1]:1", Resource: "Sales-1", Native: true},
	} {
		good, err := req.marshal()
		if err != nil {
			f.Fatal(err)
		}
		if got, _, err := parseTransport(good); err != nil || got != req {
			f.Fatalf("parseTransport = %v, %v, want %v", got, err, req)
		}
		f.Add(good)
	}
	f.Add([]byte{})
	f.Add(make([]byte, maxExtra+1))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, addr, err := parseTransport(in)
		if err != nil {
			return
		}
		if _, err := types.ParseSystemRole(string(req.Service)); err != nil {
			t.Fatalf("accepted role %q", req.Service)
		}
		if _, err := netip.ParseAddrPort(addr.String()); err != nil {
			t.Fatalf("accepted address %q", addr)
		}
		if len(req.Resource) > 63 || strings.ContainsAny(req.Resource, " /\x00\n") {
			t.Fatalf("accepted resource %q", req.Resource)
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

package route

import (
	"net"
	"net/netip"
	"slices"
	"syscall"

	"teleport/internal/fault"
)

// safeDialer returns a dialer that looks at each address before it connects, after
// the name was resolved: a name may mean anything.
func safeDialer(loopback bool) *net.Dialer {
	return &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error { return allowed(address, loopback) }}
}

// allowed refuses addresses that no node has: those of metadata services, and
// groups. A node may be at a loopback address only where the caller says so.
func allowed(address string, loopback bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil //nolint:nilerr // not an IP network: a test's pipe
	}
	ip := ap.Addr().Unmap().WithZone("")
	switch {
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified(), slices.Contains(metadataAddrs(), ip):
		return fault.Denied("the node's address %s is not one that a Proxy connects to", ip)
	case ip.IsLoopback() && !loopback:
		return fault.Denied("the node registered the loopback address %s, which is another machine's own: let it connect through proxy_server, or set teleport.advertise_ip there", ip)
	}
	return nil
}

// metadataAddrs are where clouds serve instance metadata outside link-local.
func metadataAddrs() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{100, 100, 100, 200}),                           // Alibaba
		netip.AddrFrom4([4]byte{168, 63, 129, 16}),                             // Azure
		netip.AddrFrom4([4]byte{192, 0, 0, 192}),                               // Oracle
		netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2, 14: 0x02, 15: 0x54}), // AWS
	}
}

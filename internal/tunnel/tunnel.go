// Package tunnel keeps agents reachable behind firewalls: the agent dials the
// Proxy and the Proxy opens channels back through that connection. It knows
// nothing about what is sent through them.
//
//	agent  -> TCP, TLS (ALPN teleport-reversetunnel; the agent checks the Proxy)
//	agent  -> SSH client handshake; both ends show host certificates
//	Proxy  -> channel "teleport-transport", TransportRequest as its extra data
//	both   -> global request "teleport-ping" every half minute, answered by "teleport-pong"
//	Proxy  -> global request "teleport-leaving": dial again soon, keep what is open
//
// One tunnel carries all services of the agent's process. An agent may have
// several at once while an old one runs out; the newest is used first.
package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	channelType    = "teleport-transport"
	requestPing    = "teleport-ping"
	requestPong    = "teleport-pong"
	requestLeaving = "teleport-leaving"

	sshVersion = "SSH-2.0-Teleport"

	// maxExtra bounds the extra data of a channel.
	maxExtra = 4 << 10
	// maxChannels bounds the open channels of one tunnel.
	maxChannels = 4096

	handshakeTimeout = 15 * time.Second
	pingInterval     = 30 * time.Second
	pingTimeout      = 15 * time.Second
)

// algorithms is what both ends speak: what is fastest among what is sound. The
// peers are of this program only, so there is nothing else to be compatible with.
func algorithms() ssh.Config {
	return ssh.Config{
		KeyExchanges: []string{ssh.KeyExchangeCurve25519, ssh.KeyExchangeMLKEM768X25519},
		Ciphers:      []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM},
		MACs:         []string{ssh.HMACSHA256ETM}, // unused: the ciphers authenticate
	}
}

// Request says what a connection through a tunnel is for.
type Request struct {
	// Service is who is to serve it.
	Service types.SystemRole
	// ClientAddr is the client's ip:port.
	ClientAddr string
	// Resource is the application or database that is asked for, empty for a node. It is
	// a hint: what the user may do is for the service to find out.
	Resource string
	// Native says that the client's own program ends TLS, in the way of its protocol.
	Native bool
}

// marshal makes the extra data of a channel.
func (r Request) marshal() ([]byte, error) {
	b, err := proto.Marshal(&proxyv1.TransportRequest{
		Service: string(r.Service), ClientAddr: r.ClientAddr, Resource: r.Resource, Native: r.Native,
	})
	if err != nil {
		return nil, fmt.Errorf("encode transport request: %w", err)
	}
	if len(b) > maxExtra {
		return nil, fault.Invalid("transport request of %d bytes: at most %d are allowed", len(b), maxExtra)
	}
	return b, nil
}

// parseTransport reads the extra data of a channel.
func parseTransport(b []byte) (Request, net.Addr, error) {
	if len(b) > maxExtra {
		return Request{}, nil, fault.Invalid("transport request of %d bytes: at most %d are allowed", len(b), maxExtra)
	}
	var m proxyv1.TransportRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return Request{}, nil, fault.Invalid("transport request: not a message: %w", err)
	}
	role, err := types.ParseSystemRole(m.GetService())
	if err != nil {
		return Request{}, nil, fmt.Errorf("transport request: %w", err)
	}
	addr, err := netip.ParseAddrPort(m.GetClientAddr())
	if err != nil {
		return Request{}, nil, fault.Invalid("transport request: client address %q: expected ip:port", m.GetClientAddr())
	}
	if err := checkResource(role, m.GetResource()); err != nil {
		return Request{}, nil, fmt.Errorf("transport request: %w", err)
	}
	client := net.TCPAddrFromAddrPort(addr)
	return Request{Service: role, ClientAddr: client.String(), Resource: m.GetResource(), Native: m.GetNative()}, client, nil
}

// checkResource refuses names that no resource of the service has.
func checkResource(service types.SystemRole, name string) error {
	switch service {
	case types.RoleApp:
		return types.ValidAppName(name)
	case types.RoleDB:
		return types.ValidDatabaseName(name)
	}
	if name != "" {
		return fault.Invalid("the %s service has no resource %q", service, name)
	}
	return nil
}

// marshalLeaving makes the payload of a leaving request: within which time the agents that
// got it should spread their new connections.
func marshalLeaving(spread time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(spread, maxSpread).Milliseconds()))
}

// maxSpread bounds how long a Proxy may make its agents wait.
const maxSpread = time.Minute

func parseLeaving(b []byte) time.Duration {
	if len(b) != 4 {
		return 0
	}
	return min(time.Duration(binary.BigEndian.Uint32(b))*time.Millisecond, maxSpread)
}

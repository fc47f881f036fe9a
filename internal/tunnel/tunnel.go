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

// marshalTransport makes the extra data of a channel.
func marshalTransport(service types.SystemRole, clientAddr string) ([]byte, error) {
	b, err := proto.Marshal(&proxyv1.TransportRequest{Service: string(service), ClientAddr: clientAddr})
	if err != nil {
		return nil, fmt.Errorf("encode transport request: %w", err)
	}
	if len(b) > maxExtra {
		return nil, fault.Invalid("transport request of %d bytes: at most %d are allowed", len(b), maxExtra)
	}
	return b, nil
}

// parseTransport reads the extra data of a channel.
func parseTransport(b []byte) (types.SystemRole, net.Addr, error) {
	if len(b) > maxExtra {
		return "", nil, fault.Invalid("transport request of %d bytes: at most %d are allowed", len(b), maxExtra)
	}
	var m proxyv1.TransportRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return "", nil, fault.Invalid("transport request: not a message: %w", err)
	}
	role, err := types.ParseSystemRole(m.GetService())
	if err != nil {
		return "", nil, fmt.Errorf("transport request: %w", err)
	}
	addr, err := netip.ParseAddrPort(m.GetClientAddr())
	if err != nil {
		return "", nil, fault.Invalid("transport request: client address %q: expected ip:port", m.GetClientAddr())
	}
	return role, net.TCPAddrFromAddrPort(addr), nil
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

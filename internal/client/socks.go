package client

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"teleport/internal/fault"
)

// socksTimeout bounds how long a program may take to say where it wants to go.
const socksTimeout = 30 * time.Second

// Numbers of SOCKS 5 (RFC 1928).
const (
	socksVersion = 5
	socksConnect = 1
	socksIPv4    = 1
	socksName    = 3
	socksIPv6    = 4
	socksFailed  = 4 // host unreachable
	socksNoAuth  = 0
	socksRefused = 0xff
)

// socksRequest reads where a program wants to go: CONNECT, without authentication.
func socksRequest(conn net.Conn) (Endpoint, error) {
	_ = conn.SetDeadline(time.Now().Add(socksTimeout))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	var head [2]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return Endpoint{}, fault.Invalid("the SOCKS request is cut off")
	}
	if head[0] != socksVersion {
		return Endpoint{}, fault.Unsupported("the program does not speak SOCKS 5 (its first byte is %d): tell it to use socks5", head[0])
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(conn, methods); err != nil {
		return Endpoint{}, fault.Invalid("the SOCKS request is cut off")
	}
	choice := byte(socksRefused)
	for _, m := range methods {
		if m == socksNoAuth {
			choice = socksNoAuth
		}
	}
	if _, err := conn.Write([]byte{socksVersion, choice}); err != nil {
		return Endpoint{}, err
	}
	if choice != socksNoAuth {
		return Endpoint{}, fault.Unsupported("the program wants a password on SOCKS: there is none")
	}
	return readSocksTarget(conn)
}

func readSocksTarget(r io.Reader) (Endpoint, error) {
	cut := fault.Invalid("the SOCKS request is cut off")
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Endpoint{}, cut
	}
	if head[0] != socksVersion || head[1] != socksConnect {
		return Endpoint{}, fault.Unsupported("SOCKS command %d: only CONNECT is served", head[1])
	}
	size := map[byte]int{socksIPv4: net.IPv4len, socksIPv6: net.IPv6len}[head[3]]
	if head[3] == socksName {
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return Endpoint{}, cut
		}
		size = int(n[0])
	}
	if size == 0 {
		return Endpoint{}, fault.Invalid("SOCKS address of type %d", head[3])
	}
	b := make([]byte, size+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return Endpoint{}, cut
	}
	e := Endpoint{Host: string(b[:size]), Port: binary.BigEndian.Uint16(b[size:])}
	if head[3] != socksName {
		addr, _ := netip.AddrFromSlice(b[:size])
		e.Host = addr.Unmap().String()
	}
	if e.Port == 0 {
		return Endpoint{}, fault.Invalid("SOCKS request for port 0")
	}
	return e, nil
}

// socksReply tells the program whether it is connected. The address in it is of no use
// to anybody.
func socksReply(w io.Writer, connected bool) error {
	code := byte(0)
	if !connected {
		code = socksFailed
	}
	_, err := w.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

package sshd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// QuickAck returns a listener whose connections acknowledge at once what arrives
// during the handshake. OpenSSH's client uses Nagle's algorithm until it is logged
// in: it holds each second packet back until the first is acknowledged, which the
// kernel delays by 40 ms. ln must be the TCP listener itself.
func QuickAck(ln net.Listener) net.Listener { return quickListener{ln} }

type quickListener struct{ net.Listener }

// Accept returns the next connection.
func (l quickListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return &quickConn{Conn: nc, raw: raw, left: quickReads}, nil
		}
	}
	return nc, nil
}

// quickReads is how many reads a handshake takes at most.
const quickReads = 24

type quickConn struct {
	net.Conn
	raw syscall.RawConn
	// left counts the reads still to be acknowledged at once; only Read uses it.
	left int
}

// Read reads, and has the kernel acknowledge.
func (c *quickConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left > 0 && n > 0 {
		c.left--
		_ = c.raw.Control(func(fd uintptr) {
			// The option does not stick. Without it we are only slower.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		})
	}
	return n, err
}

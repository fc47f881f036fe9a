//go:build !linux

package rpc

import (
	"net"

	"teleport/internal/fault"
)

// peerUID is known on Linux only: elsewhere there is no local administration.
func peerUID(*net.UnixConn) (int, error) {
	return 0, fault.Unsupported("the local socket of the Auth Service needs Linux")
}

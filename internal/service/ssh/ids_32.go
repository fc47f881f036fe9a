//go:build 386 || arm

package ssh

import "golang.org/x/sys/unix"

// The calls that set real, effective and saved ids, of the calling thread alone. Those
// without 32 in their names know 16 bits.
const (
	sysSetresgid = unix.SYS_SETRESGID32
	sysSetresuid = unix.SYS_SETRESUID32
)

//go:build !386 && !arm

package ssh

import "golang.org/x/sys/unix"

// The calls that set real, effective and saved ids, of the calling thread alone.
const (
	sysSetresgid = unix.SYS_SETRESGID
	sysSetresuid = unix.SYS_SETRESUID
)

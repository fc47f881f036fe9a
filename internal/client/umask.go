package client

import "golang.org/x/sys/unix"

// umask lets only the user into files that are made until the function that it returns
// is called.
func umask() func() {
	old := unix.Umask(0o177)
	return func() { unix.Umask(old) }
}

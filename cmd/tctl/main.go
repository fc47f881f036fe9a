// Command tctl administers a cluster: tokens, users, resources, audit. It works on
// the Auth Service's own host without a login, and anywhere with tsh's or an
// identity file's credentials.
package main

import (
	"os"

	"teleport/internal/client/screen"
)

func main() {
	os.Exit(run(os.Args[1:], screen.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

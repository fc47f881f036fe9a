// Command tsh is what people use: it logs in, lists what there is and connects to
// it through the Proxy.
package main

import (
	"os"

	"teleport/internal/client/screen"
)

func main() {
	os.Exit(run(os.Args[1:], screen.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

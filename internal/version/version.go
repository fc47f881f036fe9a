// Package version says which build this is.
package version

import (
	"fmt"
	"runtime"
)

// Version and Commit are stamped by the build (see the Makefile).
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)

// Line returns the one-line form that `teleport version` and `tctl version`
// print: product, version, commit and Go release.
func Line() string {
	return fmt.Sprintf("Teleport v%s git:%s %s", Version, Commit, runtime.Version())
}

// ClientLine returns the form that `tsh version` prints, without the commit.
func ClientLine() string {
	return fmt.Sprintf("Teleport v%s %s", Version, runtime.Version())
}

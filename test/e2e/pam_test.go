package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"teleport/internal/pam/pamtest"
)

// pamService VAR FILE makes a service of PAM with the lines of a file, as long as the
// script, and sets the variable to its name.
func pamService(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: pamservice VAR FILE")
	}
	name := "teleport-e2e-" + strings.ToLower(rand.Text()[:12])
	path := filepath.Join(pamtest.Dir, name)
	ts.Check(os.WriteFile(path, []byte(ts.ReadFile(args[1])), 0o644))
	ts.Defer(func() { _ = os.Remove(path) })
	ts.Setenv(args[0], name)
}

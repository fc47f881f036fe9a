// Package pamtest is for tests with PAM as it is on this machine: it compiles teleport-pam
// from cmd/teleport-pam and makes services of PAM that go away again.
package pamtest

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Dir is where the files of services are.
const Dir = "/etc/pam.d"

// Compile compiles teleport-pam into the directory and returns its path.
func Compile(dir string) (string, error) {
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("where the sources are is not known")
	}
	sources, err := filepath.Glob(filepath.Join(filepath.Dir(self), "../../../cmd/teleport-pam/*.c"))
	if err != nil || len(sources) == 0 {
		return "", fmt.Errorf("no sources of teleport-pam: %w", err)
	}
	out := filepath.Join(dir, "teleport-pam")
	args := append([]string{"-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o", out}, sources...)
	if text, err := exec.Command("gcc", append(args, "-lpam")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile teleport-pam (it needs gcc and libpam0g-dev): %w\n%s", err, text)
	}
	return out, nil
}

var compiled = struct {
	sync.Mutex
	path string
}{}

// Program returns teleport-pam, which is compiled once for all tests of a package; dir is
// a directory that is there as long as the tests.
func Program(t testing.TB, dir string) string {
	t.Helper()
	compiled.Lock()
	defer compiled.Unlock()
	if compiled.path == "" {
		path, err := Compile(dir)
		if err != nil {
			t.Fatal(err)
		}
		compiled.path = path
	}
	return compiled.path
}

// Service makes a service of PAM with the lines, as long as the test, and returns its name.
func Service(t testing.TB, lines ...string) string {
	t.Helper()
	name := "teleport-test-" + strings.ToLower(rand.Text()[:12])
	path := filepath.Join(Dir, name)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	return name
}

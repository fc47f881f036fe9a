package dbtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// ferretVersion is that of FerretDB; test/ferretdb/go.mod has it too.
const ferretVersion = "v1.24.0"

// FerretDB runs FerretDB with SQLite, until the test ends. It speaks MongoDB's protocol, on
// 127.0.0.1 and without TLS: it knows no users with certificates.
func FerretDB(t testing.TB) *Server {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, "teleport-test", "ferretdb-"+ferretVersion)
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("FerretDB is missing: run make ferretdb: %v", err)
	}
	s := NewServer(t, "")
	s.Start(t, s.Listens, program, "--handler=sqlite", "--sqlite-url=file:"+s.Dir+"/", "--state-dir="+s.Dir, "--debug-addr=-", "--telemetry=disable",
		"--log-level=ERROR", "--listen-addr="+net.JoinHostPort("127.0.0.1", s.Port))
	return s
}

// Package swtpm runs Debian's software TPM for tests: each with an endorsement
// certificate by an authority of its own, so that nothing of it is shared.
package swtpm

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TPM is a running TPM.
type TPM struct {
	// Device is what the setting tpm.device wants.
	Device string
	// Authorities are the certificates of the authority that made the endorsement
	// certificate, in PEM: the issuer, then its root.
	Authorities []string
}

// Start makes a TPM and runs it until the test ends. The arguments are for swtpm_setup,
// such as "--create-ek-cert".
func Start(t testing.TB, setup ...string) *TPM {
	t.Helper()
	dir := t.TempDir()
	ca, state := filepath.Join(dir, "ca"), filepath.Join(dir, "state")
	for _, d := range []string{ca, state} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "setup.conf"), fmt.Sprintf("create_certs_tool = swtpm_localca\ncreate_certs_tool_config = %s/localca.conf\ncreate_certs_tool_options = %s/localca.options\n", dir, dir))
	write(t, filepath.Join(dir, "localca.conf"), fmt.Sprintf("statedir = %s\nsigningkey = %s/key.pem\nissuercert = %s/issuer.pem\ncertserial = %s/serial\n", ca, ca, ca, ca))
	write(t, filepath.Join(dir, "localca.options"), "--platform-manufacturer Suite\n--platform-version 1.0\n--platform-model Suite\n")
	args := append([]string{"--tpm2", "--tpmstate", state, "--config", filepath.Join(dir, "setup.conf")}, setup...)
	if out, err := exec.CommandContext(t.Context(), "swtpm_setup", args...).CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup (Debian package swtpm-tools): %v\n%s", err, out)
	}
	tpm := &TPM{Device: "unix:" + filepath.Join(dir, "sock")}
	for _, name := range []string{"issuer.pem", "swtpm-localca-rootca-cert.pem"} {
		if data, err := os.ReadFile(filepath.Join(ca, name)); err == nil {
			tpm.Authorities = append(tpm.Authorities, string(data))
		}
	}
	run(t, state, filepath.Join(dir, "sock"))
	return tpm
}

func run(t testing.TB, state, socket string) {
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

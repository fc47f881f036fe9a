package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"teleport/test/swtpm"
)

func TestTPMIdentify(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	r := run(t, "", "tpm", "identify", "--device", dev.Device)
	if r.code != 0 || !strings.Contains(r.stdout, "EK certificate detected: yes\nEK certificate serial:   ") {
		t.Fatalf("tpm identify = %+v", r)
	}
	var out map[string]any
	again := run(t, "", "tpm", "identify", "--device", dev.Device, "--format=json")
	if err := json.Unmarshal([]byte(again.stdout), &out); err != nil {
		t.Fatal(err)
	}
	hash, ok := out["ek_public_hash"].(string)
	if !ok || len(hash) != 64 || !strings.Contains(r.stdout, "EK public hash:          "+hash+"\n") {
		t.Errorf("as text %q, as JSON %q", r.stdout, again.stdout)
	}
	if r := run(t, "", "tpm", "identify", "--device", filepath.Join(t.TempDir(), "tpm0")); r.code != 1 || !strings.Contains(r.stderr, "has no TPM 2.0") {
		t.Errorf("without a TPM: %+v", r)
	}
	if r := run(t, "", "tpm", "identify", "--format=xml"); r.code != 2 {
		t.Errorf("--format=xml: %+v", r)
	}
}

func TestKeypairCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := run(t, "", "keypair", "create", "--data-dir", dir)
	if first.code != 0 || !strings.HasPrefix(first.stdout, "ssh-ed25519 ") {
		t.Fatalf("keypair create = %+v", first)
	}
	info, err := os.Stat(filepath.Join(dir, "bound_keypair.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	again := run(t, "", "keypair", "create", "--data-dir", dir)
	if again.code != 0 || again.stdout != first.stdout || !strings.Contains(again.stderr, "was not changed") {
		t.Errorf("the second time: %+v", again)
	}
	own := run(t, "", "keypair", "create", "--key-path", filepath.Join(dir, "own.key"), "--format=json")
	var out map[string]string
	if err := json.Unmarshal([]byte(own.stdout), &out); err != nil || out["public_key"] == "" || strings.HasPrefix(first.stdout, out["public_key"]) {
		t.Errorf("--key-path: %+v, %v", own, err)
	}
}

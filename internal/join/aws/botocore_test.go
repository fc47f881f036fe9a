package aws_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// botocoreProfiles finds credentials with the library of Debian's awscli, in one
// environment after the other.
const botocoreProfiles = `
import json, os, sys
import awscli, botocore.session
for line in sys.stdin:
    os.environ.clear()
    os.environ.update(json.loads(line))
    try:
        print("found", botocore.session.Session().get_credentials().access_key)
    except Exception as e:
        print("error", type(e).__name__)
`

// TestProfilesAgreeWithBotocore reads the files of profileRows with both. Where the
// two are known to differ, ours does as AWS's library for Go.
func TestProfilesAgreeWithBotocore(t *testing.T) {
	differ := map[string]string{
		"comments":        "botocore takes a comment behind a value as part of it",
		"byte order mark": "botocore cannot read it",
		"profile default": "botocore takes the later of the two sections",
	}
	var input bytes.Buffer
	var names []string
	for name, row := range profileRows() {
		if row.fail != "" || strings.Contains(row.want, "SESSION") || strings.Contains(row.want, "IMDS") {
			continue // STS, the instance, or the words of an error
		}
		names = append(names, name)
		home := t.TempDir()
		for path, text := range map[string]string{credentialsFile: row.credentials, configFile: row.config} {
			file := filepath.Join(home, ".aws", filepath.Base(path))
			if text == "" {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		env := map[string]string{"HOME": home, "AWS_EC2_METADATA_DISABLED": "true"}
		for k, v := range row.env {
			env[k] = v
		}
		if err := json.NewEncoder(&input).Encode(env); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", botocoreProfiles)
	cmd.Stdin = &input
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("botocore of Debian's awscli: %v\n%s", err, stderr.String())
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(got) != len(names) || len(got) < 10 {
		t.Fatalf("botocore answered %d of %d times", len(got), len(names))
	}
	for i, name := range names {
		agrees := got[i] == "found "+profileRows()[name].want
		if reason := differ[name]; reason != "" {
			if agrees {
				t.Errorf("%s: botocore agrees, but is said not to: %s", name, reason)
			}
			continue
		}
		if !agrees {
			t.Errorf("%s: botocore says %q, we find %s", name, got[i], profileRows()[name].want)
		}
	}
}

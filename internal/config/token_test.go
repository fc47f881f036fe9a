package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/config"
)

func write(t *testing.T, text string, perm os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), perm); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadToken(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"literal", "abcd123", "abcd123"},
		{"literal_with_space_around", "  abcd123\n", "abcd123"},
		{"relative_path_is_a_literal", "./token", "./token"},
		{"file", write(t, "from-file\n", 0o600), "from-file"},
		{"file_with_carriage_return", write(t, "from-file\r\n", 0o600), "from-file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.ReadToken(tt.value)
			if err != nil || got != tt.want {
				t.Errorf("ReadToken(%q) = %q, %v, want %q", tt.value, got, err, tt.want)
			}
		})
	}
	for _, tt := range []struct{ name, value, want string }{
		{"empty", "", "empty join token"},
		{"blank", "  \n", "empty join token"},
		{"empty_file", write(t, "\n", 0o600), "empty join token in"},
		{"two_lines", write(t, "hush\nmore", 0o600), "one word"},
		{"two_words", "hush more", "one word"},
		{"control", "hush\x1b[2J", "one word"},
		{"too_long", strings.Repeat("a", 600), "too long"},
		{"large_file", write(t, strings.Repeat("a", 10000), 0o600), "too large"},
		{"missing_file", "/does/not/exist", "does not exist"},
		{"directory", t.TempDir(), "not a regular file"},
		{"device", "/dev/zero", "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.ReadToken(tt.value)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("ReadToken = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTokenWarning(t *testing.T) {
	open, closed := write(t, "x", 0o644), write(t, "x", 0o640)
	if w := config.TokenWarning(open); !strings.Contains(w, open) {
		t.Errorf("warning for a file that everybody can read = %q", w)
	}
	for _, v := range []string{closed, "literal", "/does/not/exist"} {
		if w := config.TokenWarning(v); w != "" {
			t.Errorf("TokenWarning(%q) = %q", v, w)
		}
	}
}

func TestStaticTokenFromFile(t *testing.T) {
	path := write(t, "from-file\n", 0o644)
	cfg := parse(t, "version: v3\nauth_service:\n  tokens:\n  - \"Node, PROXY:"+path+"\"\n")
	if len(cfg.Auth.Tokens) != 1 || cfg.Auth.Tokens[0].Value != "from-file" {
		t.Fatalf("tokens = %v", cfg.Auth.Tokens)
	}
	if got := cfg.Auth.Tokens[0].String(); got != "[Node Proxy] (token redacted)" {
		t.Errorf("token prints as %q", got)
	}
	if len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0], path) {
		t.Errorf("warnings = %q", cfg.Warnings)
	}
}

func TestCAPins(t *testing.T) {
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	file := write(t, a+"\n"+b+"\n", 0o600)
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"string", a, []string{a}},
		{"upper_case", strings.Replace(a, "a256", "a256", 1), []string{a}},
		{"list", "[" + a + ", '" + b + "']", []string{a, b}},
		{"file", file, []string{a, b}},
		{"list_of_files", "[" + file + "]", []string{a, b}},
		{"empty", `""`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, parse(t, "teleport:\n  ca_pin: "+tt.text+"\n").CAPins); d != "" {
				t.Error(d)
			}
		})
	}
	if got, err := config.ParsePins([]string{a, file}); err != nil || len(got) != 3 {
		t.Errorf("ParsePins = %v, %v", got, err)
	}
	for _, bad := range []string{"sha256:", strings.Repeat("a", 64), "sha256:" + strings.Repeat("g", 64), a + "00", "/does/not/exist", write(t, "", 0o600), write(t, "hello", 0o600)} {
		if got, err := config.ParsePins([]string{bad}); err == nil {
			t.Errorf("ParsePins(%q) = %v", bad, got)
		}
	}
}

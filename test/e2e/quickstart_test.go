package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestQuickStart compares the README with the script: each line that a reader is told
// to type is typed there.
func TestQuickStart(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "quickstart.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	typed := map[string]bool{}
	for _, m := range regexp.MustCompile(`'((?:[^'\n]|'')*)'`).FindAllStringSubmatch(string(script), -1) {
		typed[strings.ReplaceAll(m[1], "''", "'")] = true
	}
	lines := quickStart(string(readme))
	if len(lines) < 15 {
		t.Fatalf("found %d lines to type in the quick start: %q", len(lines), lines)
	}
	for _, line := range lines {
		if !typed[line] {
			t.Errorf("testdata/quickstart.txtar does not type this line of README.md: %s", line)
		}
	}
}

// quickStart returns the lines of the shell blocks of the quick start, without
// comments.
func quickStart(readme string) []string {
	_, text, _ := strings.Cut(readme, "\n## Quick start")
	text, _, _ = strings.Cut(text, "\n## ")
	var lines []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(block[1]) {
			line, _, _ = strings.Cut(line, "  #")
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

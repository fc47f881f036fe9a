package label_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"teleport/internal/label"
)

func TestResults(t *testing.T) {
	long := strings.Repeat("x", 5000)
	s, err := label.New(nil, []label.Command{
		{Name: "kernel", Command: []string{"printf", "  linux\\n\\033[1m "}, Period: time.Minute},
		{Name: "broken", Command: []string{"false"}, Period: time.Minute},
		{Name: "missing", Command: []string{"/no/such/program"}, Period: time.Minute},
		{Name: "long", Command: []string{"echo", long}, Period: time.Minute},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Results(); len(got) != 4 || got["kernel"] != "" {
		t.Errorf("before the first run Results = %v, want four empty ones", got)
	}
	s.RunAll(t.Context())
	got := s.Results()
	if got["kernel"] != "linux  [1m" {
		t.Errorf("kernel = %q, want one printable line", got["kernel"])
	}
	if !strings.HasPrefix(got["broken"], "error: ") || !strings.HasPrefix(got["missing"], "error: ") {
		t.Errorf("results of commands that fail = %q, %q; want errors", got["broken"], got["missing"])
	}
	if got["long"] != long[:1024] {
		t.Errorf("long output became %d bytes, want 1024", len(got["long"]))
	}
}

func TestNewRefuses(t *testing.T) {
	for name, commands := range map[string][]label.Command{
		"no_name":    {{Command: []string{"true"}, Period: time.Minute}},
		"no_command": {{Name: "x", Period: time.Minute}},
		"often":      {{Name: "x", Command: []string{"true"}, Period: time.Second}},
		"twice":      {{Name: "x", Command: []string{"true"}, Period: time.Minute}, {Name: "x", Command: []string{"true"}, Period: time.Minute}},
		"static":     {{Name: "env", Command: []string{"true"}, Period: time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := label.New(map[string]string{"env": "test"}, commands, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("New = nil, want an error")
			}
		})
	}
}

package config_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"teleport/internal/config"
)

func TestNewLogger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "teleport.log")
	cfg := config.Log{Output: path, Severity: slog.LevelWarn, Format: config.LogJSON, ExtraFields: []string{"level"}}
	for range 2 {
		log, closer, err := config.NewLogger(cfg)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("not shown")
		log.Warn("shown", "component", "auth", "key", "value")
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 2 {
		t.Fatalf("log has %d lines, want 2 (the second logger appends):\n%s", len(lines), data)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
		t.Fatal(err)
	}
	if got["msg"] != "shown" || got["level"] != "WARN" || got["key"] != "value" {
		t.Errorf("line = %v", got)
	}
	if got["time"] != nil || got["component"] != nil || got["source"] != nil {
		t.Errorf("fields that were not asked for: %v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the log file = %v, %v", info.Mode(), err)
	}
}

func TestNewLoggerCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "teleport.log")
	log, closer, err := config.NewLogger(config.Log{Output: path, Format: config.LogText, ExtraFields: config.LogFields()})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hello", "component", "auth")
	if err := closer.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"time=", "level=INFO", "source=", "log_test.go", "component=auth", "msg=hello"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("line lacks %q: %s", want, data)
		}
	}
}

func TestNewLoggerFailure(t *testing.T) {
	_, _, err := config.NewLogger(config.Log{Output: filepath.Join(t.TempDir(), "no", "such", "dir")})
	if err == nil || !strings.Contains(err.Error(), "teleport.log.output") {
		t.Errorf("err = %v", err)
	}
	for _, out := range []string{"", config.LogStderr, config.LogStdout} {
		_, closer, err := config.NewLogger(config.Log{Output: out})
		if err != nil || closer.Close() != nil {
			t.Errorf("output %q: %v", out, err)
		}
	}
}

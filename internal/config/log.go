package config

import (
	"io"
	"log/slog"
	"os"
	"slices"

	"teleport/internal/fault"
)

// Outputs of the log that are not files.
const (
	LogStderr = "stderr"
	LogStdout = "stdout"
)

// Forms of a log line.
const (
	LogText = "text"
	LogJSON = "json"
)

// Log is the teleport.log section.
type Log struct {
	// Output is LogStderr, LogStdout or the absolute path of a file.
	Output   string
	Severity slog.Level
	// Format is LogText or LogJSON.
	Format string
	// ExtraFields are those of LogFields that a line has besides its message.
	ExtraFields []string
}

// LogFields lists the values of teleport.log.format.extra_fields.
func LogFields() []string { return []string{"timestamp", "level", "component", "caller"} }

func defaultLog() Log {
	return Log{
		Output: LogStderr, Severity: slog.LevelInfo, Format: LogText,
		ExtraFields: []string{"timestamp", "level", "component"},
	}
}

// NewLogger returns a logger as configured and what to close at the end. Closing
// is a no-op for standard error and output.
func NewLogger(cfg Log) (*slog.Logger, io.Closer, error) {
	var w io.Writer
	closer := io.Closer(nopCloser{})
	switch cfg.Output {
	case LogStderr, "":
		w = os.Stderr
	case LogStdout:
		w = os.Stdout
	default:
		f, err := os.OpenFile(cfg.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fault.Invalid("open log file (teleport.log.output): %w", err)
		}
		w, closer = f, f
	}
	return slog.New(newHandler(w, cfg)), closer, nil
}

func newHandler(w io.Writer, cfg Log) slog.Handler {
	opts := &slog.HandlerOptions{
		Level:       cfg.Severity,
		AddSource:   slices.Contains(cfg.ExtraFields, "caller"),
		ReplaceAttr: keepFields(cfg.ExtraFields),
	}
	if cfg.Format == LogJSON {
		return slog.NewJSONHandler(w, opts)
	}
	return slog.NewTextHandler(w, opts)
}

// keepFields drops the standard fields of a line that were not asked for. With
// no list every field stays.
func keepFields(fields []string) func([]string, slog.Attr) slog.Attr {
	if len(fields) == 0 {
		return nil
	}
	names := map[string]string{slog.TimeKey: "timestamp", slog.LevelKey: "level", "component": "component"}
	return func(groups []string, a slog.Attr) slog.Attr {
		if name, standard := names[a.Key]; standard && len(groups) == 0 && !slices.Contains(fields, name) {
			return slog.Attr{}
		}
		return a
	}
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

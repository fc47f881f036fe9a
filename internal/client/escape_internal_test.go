package client

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEscapes(t *testing.T) {
	for name, tt := range map[string]struct {
		in, want string
		hangUps  int
	}{
		"plain":        {"ls -l\r", "ls -l\r", 0},
		"hang_up":      {"~.", "", 1},
		"after_line":   {"ls\r~.", "ls\r", 1},
		"not_at_start": {"ls ~.\r", "ls ~.\r", 0},
		"home":         {"~/bin\r", "~/bin\r", 0},
		"tilde":        {"~~.\r", "~.\r", 0},
		"tilde_return": {"~\r~.", "~\r", 1},
	} {
		for _, reader := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
			hangUps := 0
			got, err := io.ReadAll(&escapes{in: reader, hangUp: func() { hangUps++ }})
			if err != nil || string(got) != tt.want || hangUps != tt.hangUps {
				t.Errorf("%s: %q, %d, %v, want %q, %d", name, got, hangUps, err, tt.want, tt.hangUps)
			}
		}
	}
}

package screen_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image/color"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/boombuler/barcode/qr"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain text, ünïcödé ⟵ ✓": "plain text, ünïcödé ⟵ ✓",
		"\x1b[31mred":             `\x1b[31mred`,
		"two\nlines\tand\rmore":   `two\x0alines\x09and\x0dmore`,
		"c1 \u009b31m":            `c1 \x9b31m`,
		"\x7f":                    `\x7f`,
		"bad \xff utf-8":          `bad \xff utf-8`,
		"over\u202eride":          `over\u202eride`,
		"zero\u200bwidth":         `zero\u200bwidth`,
		"nbsp\u00a0":              `nbsp\xa0`,
		"wide 日本":                 "wide 日本",
	} {
		if got := screen.Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("\x1b]0;title\x07")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range screen.Escape(s) {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
				t.Errorf("Escape(%q) has %U", s, r)
			}
		}
	})
}

func TestTable(t *testing.T) {
	table := screen.NewTable("Token", "Type", "Labels", "Expiry Time (UTC)")
	table.Row("abcd123-insecure-do-not-use-this", "Node", "", "30 Mar 23 18:15 UTC (2m8s)")
	table.Row("x", "\x1b[2J", "é=ü", "never")
	table.Row("short")
	var out strings.Builder
	if err := table.Write(&out); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"Token                            Type    Labels Expiry Time (UTC)\n" +
		"-------------------------------- ------- ------ --------------------------\n" +
		"abcd123-insecure-do-not-use-this Node           30 Mar 23 18:15 UTC (2m8s)\n" +
		"x                                \\x1b[2J é=ü    never\n" +
		"short\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2023, 3, 30, 18, 12, 52, 0, time.UTC)
	for _, tt := range []struct{ got, want string }{
		{screen.Expiry(now.Add(128*time.Second), now), "30 Mar 23 18:15 UTC (2m8s)"},
		{screen.Expiry(now.Add(90*time.Minute), now), "30 Mar 23 19:42 UTC (1h30m)"},
		{screen.Expiry(now.Add(12*time.Hour), now), "31 Mar 23 06:12 UTC (12h)"},
		{screen.Expiry(now.Add(-time.Second), now), "30 Mar 23 18:12 UTC (expired)"},
		{screen.Expiry(time.Time{}, now), "never"},
		{screen.Duration(time.Hour), "1h"},
		{screen.Duration(10 * time.Minute), "10m"},
		{screen.Duration(10 * time.Second), "10s"},
		{screen.Duration(20*time.Hour + 10*time.Minute), "20h10m"},
		{screen.Amount(5 * time.Minute), "5 minutes"},
		{screen.Amount(time.Minute), "1 minute"},
		{screen.Amount(30 * time.Second), "30 seconds"},
		{screen.Amount(time.Second), "1 second"},
		{screen.Amount(2 * time.Hour), "120 minutes"},
		{screen.Short("6805dda3-779e-493b-a1c5-8d0bd3a0a2f1"), "6805dda3-779e-493b..."},
		{screen.Short("6805dda3-779e-493b"), "6805dda3-779e-493b"},
		{screen.Labels(map[string]string{"b": "2", "a": "1"}), "a=1,b=2"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestJSONIsHarmless(t *testing.T) {
	var out bytes.Buffer
	in := map[string]string{"name": "\x1b[2J\u009b\u202e<\U000e0001"}
	if err := screen.WriteJSON(&out, in); err != nil {
		t.Fatal(err)
	}
	if want := "{\n    \"name\": \"\\u001b[2J\\u009b\\u202e<\\udb40\\udc01\"\n}\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["name"] != in["name"] {
		t.Errorf("reads as %q, %v", back, err)
	}
}

func TestPrompterReadsLines(t *testing.T) {
	var talk strings.Builder
	p := screen.NewPrompter(strings.NewReader("secret \r\n123456\nlast"), &talk)
	for _, want := range []string{"secret ", "123456", "last"} {
		if got, err := p.Secret(t.Context(), "what"); err != nil || got != want {
			t.Errorf("Secret() = %q, %v, want %q", got, err, want)
		}
	}
	if _, err := p.Ask(t.Context(), "what"); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("after the end: %v", err)
	}
	long := screen.NewPrompter(strings.NewReader(strings.Repeat("x", 1<<20)), &talk)
	if _, err := long.Ask(t.Context(), "what"); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("a line without end: %v", err)
	}
	if talk.Len() > 0 {
		t.Errorf("said %q to a file", talk.String())
	}
}

// The picture has the modules of the code and a margin.
func TestQR(t *testing.T) {
	const text = "otpauth://totp/test:alice?secret=JBSWY3DPEHPK3PXP&issuer=test"
	picture, err := screen.QR(text)
	if err != nil {
		t.Fatal(err)
	}
	code, err := qr.Encode(text, qr.L, qr.Unicode)
	if err != nil {
		t.Fatal(err)
	}
	size := code.Bounds().Dx()
	lines := strings.Split(strings.TrimSuffix(picture, "\n"), "\n")
	if want := (size + 4 + 1) / 2; len(lines) != want {
		t.Fatalf("%d lines, want %d", len(lines), want)
	}
	halves := map[rune][2]bool{' ': {}, '▀': {true, false}, '▄': {false, true}, '█': {true, true}}
	for y, line := range lines {
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[38;5;16m\x1b[48;5;231m"), "\x1b[0m")
		modules := []rune(line)
		if len(modules) != size+4 {
			t.Fatalf("line %d has %d characters, want %d", y, len(modules), size+4)
		}
		for x, r := range modules {
			for half := range 2 {
				cx, cy := x-2, 2*y+half-2
				want := cx >= 0 && cy >= 0 && cx < size && cy < size && code.At(cx, cy) == color.Black
				if got := halves[r][half]; got != want {
					t.Fatalf("module %d,%d is %v, want %v", cx, cy, got, want)
				}
			}
		}
	}
	if _, err := screen.QR(strings.Repeat("x", 10_000)); err == nil {
		t.Error("a text too long for a QR code was drawn")
	}
}

func TestExecute(t *testing.T) {
	run := func(args ...string) (int, string, string) {
		var out, talk bytes.Buffer
		root := screen.Group(&cobra.Command{Use: "prog", Short: "Do things"},
			&cobra.Command{Use: "fail", RunE: func(*cobra.Command, []string) error { return fault.Denied("no \x1b[2J") }},
			&cobra.Command{Use: "code", RunE: func(*cobra.Command, []string) error { return screen.Code(42) }},
			&cobra.Command{Use: "one ARG", Args: screen.Args(1, 1), RunE: func(*cobra.Command, []string) error { return nil }},
			&cobra.Command{Use: "signals", RunE: func(cmd *cobra.Command, _ []string) error {
				screen.ReleaseSignals(cmd.Context())
				return context.Cause(cmd.Context())
			}},
		)
		code := screen.Execute(root, args, screen.Streams{In: strings.NewReader(""), Out: &out, Err: &talk})
		return code, out.String(), talk.String()
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		talk string
	}{
		"good":            {[]string{"one", "x"}, 0, ""},
		"failure":         {[]string{"fail"}, 1, "ERROR: no \\x1b[2J\n"},
		"passed_on":       {[]string{"code"}, 42, ""},
		"argument":        {[]string{"one"}, 2, "ERROR: prog one: an argument is missing: prog one ARG [flags]\nRun 'prog --help' for usage.\n"},
		"too_many":        {[]string{"one", "x", "y"}, 2, "ERROR: prog one: unexpected argument \"y\": prog one ARG [flags]\nRun 'prog --help' for usage.\n"},
		"flag":            {[]string{"one", "--nope"}, 2, "ERROR: prog one: unknown flag: --nope\nRun 'prog --help' for usage.\n"},
		"command":         {[]string{"fial"}, 2, "ERROR: prog: unknown command \"fial\": did you mean fail?\nRun 'prog --help' for usage.\n"},
		"signals_release": {[]string{"signals"}, 1, "interrupted\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, talk := run(tt.args...)
			if code != tt.code || talk != tt.talk || out != "" {
				t.Errorf("exit code %d, %q, %q, want %d, %q", code, out, talk, tt.code, tt.talk)
			}
		})
	}
	if code, out, _ := run(); code != 0 || !strings.Contains(out, "Available Commands") {
		t.Errorf("no arguments: %d, %q", code, out)
	}
}

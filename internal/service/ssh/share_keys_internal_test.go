package ssh

import (
	"strings"
	"testing"
)

func TestKeyboard(t *testing.T) {
	for name, tt := range map[string]struct{ said, keys string }{
		"keys":                   {"a t\r", "a t\r"},
		"name_of_terminal":       {"\x1bP>|xterm(379)\x1b\\", ""},
		"name_and_key":           {"\x1bP>|kitty(0.26.5)\x1b\\t", "t"},
		"colour":                 {"\x1b]11;rgb:1e1e/1e1e/1e1e\x07x", "x"},
		"attributes":             {"\x1b[?62;22c\x1b[>1;10;0cq", "q"},
		"arrow_and_function_key": {"\x1b[A\x1bOQ\x1b[24~k", "k"},
		"alt_key":                {"\x1btu", "u"},
		"focus":                  {"\x1b[I\x1b[O", ""},
		"leaves_at_any_time":     {"\x1b]never ends\x03t", "\x03t"},
		"escape_twice":           {"\x1b\x1b[tz", "z"},
		"answer_in_an_answer":    {"\x1bPabc\x1b[tt", "t"},
		"endless":                {"\x1b]" + strings.Repeat("t", maxAnswer) + "q", "q"},
	} {
		for _, step := range []int{1, 3, len(tt.said)} {
			var k keyboard
			var got []byte
			for rest := []byte(tt.said); len(rest) > 0; {
				n := min(step, len(rest))
				got = append(got, k.typed(rest[:n])...)
				rest = rest[n:]
			}
			if !strings.HasSuffix(string(got), tt.keys) || name != "endless" && string(got) != tt.keys {
				t.Errorf("%s, in steps of %d: %q, want %q", name, step, got, tt.keys)
			}
		}
	}
}

package aws

import (
	"bytes"
	"strings"

	"teleport/internal/fault"
)

// Limits of the shared files.
const (
	maxFile  = 1 << 20
	maxLines = 20_000
)

// section is one profile: its settings by lower-case name.
type section map[string]string

// parseINI reads a shared credentials or config file: sections in brackets, settings
// name = value, comments with # or ; at the start of a line, or after a blank behind a
// value. A line that is indented further than the setting above belongs to it and is
// skipped. Of a section or setting that stands twice, the later setting counts.
func parseINI(text []byte) (map[string]section, error) {
	if len(text) > maxFile {
		return nil, fault.Invalid("longer than %d bytes", maxFile)
	}
	lines := bytes.Split(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), []byte("\n"))
	if len(lines) > maxLines {
		return nil, fault.Invalid("more than %d lines", maxLines)
	}
	out := map[string]section{}
	var current section
	const none = maxFile
	above := none // the indentation of the setting above
	for i, raw := range lines {
		line := strings.TrimSpace(string(raw))
		indent := len(raw) - len(bytes.TrimLeft(raw, " \t"))
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case indent > above:
			// Nested settings, such as those of s3: nothing of them is for us.
		case line[0] == '[':
			end := strings.IndexByte(line, ']')
			if end < 0 {
				return nil, fault.Invalid("line %d: a section without its closing bracket", i+1)
			}
			name := strings.Join(strings.Fields(line[1:end]), " ")
			if current = out[name]; current == nil {
				current = section{}
				out[name] = current
			}
			above = none
		default:
			name, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fault.Invalid("line %d: expected name = value", i+1)
			}
			if current == nil {
				return nil, fault.Invalid("line %d: a setting before the first [section]", i+1)
			}
			above = indent
			current[strings.ToLower(strings.TrimSpace(name))] = settingValue(value)
		}
	}
	return out, nil
}

func settingValue(v string) string {
	for _, mark := range []string{" #", " ;", "\t#", "\t;"} {
		if i := strings.Index(v, mark); i >= 0 {
			v = v[:i]
		}
	}
	return strings.TrimSpace(v)
}

package screen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

// Output formats of commands that read.
const (
	Text  = "text"
	JSON  = "json"
	YAML  = "yaml"
	Names = "names"
)

// FormatFlag adds --format with its choices, the first of which is the default.
func FormatFlag(cmd *cobra.Command, to *string, choices ...string) {
	*to = choices[0]
	cmd.Flags().VarP(&choice{value: to, choices: choices}, "format", "f", "output format: "+strings.Join(choices, ", "))
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   *string
	choices []string
}

// String returns the value.
func (c *choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

// Set takes one of the choices.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.choices, s) {
		return fmt.Errorf("use %s", strings.Join(c.choices, " or "))
	}
	*c.value = s
	return nil
}

// Type names the flag's value in the help.
func (c *choice) Type() string { return "format" }

// WriteJSON writes v indented. Everything that could steer a terminal is escaped.
func WriteJSON(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	return WriteRawJSON(w, buf.Bytes())
}

// WriteRawJSON writes JSON text, escaping what could steer a terminal.
func WriteRawJSON(w io.Writer, text []byte) error {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n' || r == '\t' || plain(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	_, err := w.Write(out)
	return err
}

// WriteYAML writes v.
func WriteYAML(w io.Writer, v any) error {
	text, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	return WriteText(w, text)
}

// WriteText writes text for programs and people: as it is to a file or a pipe,
// escaped to a terminal.
func WriteText(w io.Writer, text []byte) error {
	if IsTerminal(w) {
		text = []byte(EscapeLines(string(text)))
	}
	_, err := w.Write(text)
	return err
}

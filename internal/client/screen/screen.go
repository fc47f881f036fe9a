// Package screen is how tsh and tctl talk to a terminal: tables, text that came
// from elsewhere made harmless, times, questions and QR codes. It knows nothing
// of clusters.
package screen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Escape makes text from elsewhere safe to show on one line: control characters,
// direction overrides and bytes that are not UTF-8 become \x and \u escapes.
func Escape(s string) string {
	clean := true
	for _, r := range s {
		if !plain(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, s[i])
		case plain(r):
			out.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&out, `\x%02x`, r)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		i += size
	}
	return out.String()
}

// plain reports whether a rune only shows itself. Spaces other than the plain one
// and format characters (direction overrides, zero width) do not.
func plain(r rune) bool {
	return r != utf8.RuneError && (r == ' ' || unicode.IsGraphic(r) && !unicode.Is(unicode.Zs, r))
}

// ShellQuote makes one word of a line that somebody gives to a shell.
func ShellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:@-") == "" && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// EscapeLines is Escape for text of several lines.
func EscapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Escape(line)
	}
	return strings.Join(lines, "\n")
}

// Table is text in columns with a line of dashes under the titles.
type Table struct {
	// Gap is the number of spaces between columns; 0 means 1.
	Gap    int
	titles []string
	rows   [][]string
}

// NewTable returns a table with the titles.
func NewTable(titles ...string) *Table { return &Table{titles: titles} }

// Row adds a row; cells are escaped, and missing ones are empty.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(t.titles))
	for i := range row {
		if i < len(cells) {
			row[i] = Escape(cells[i])
		}
	}
	t.rows = append(t.rows, row)
}

// Write writes the table.
func (t *Table) Write(w io.Writer) error {
	widths := make([]int, len(t.titles))
	for _, row := range append([][]string{t.titles}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	dashes := make([]string, len(widths))
	for i, width := range widths {
		dashes[i] = strings.Repeat("-", width)
	}
	var out strings.Builder
	for _, row := range append([][]string{t.titles, dashes}, t.rows...) {
		writeRow(&out, row, widths, max(t.Gap, 1))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func writeRow(out *strings.Builder, row []string, widths []int, gap int) {
	var line strings.Builder
	for i, cell := range row {
		line.WriteString(cell)
		if i < len(row)-1 {
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
		}
	}
	out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
}

// Pairs writes aligned lines of name and value; a name may be empty.
func Pairs(w io.Writer, indent string, pairs ...[2]string) error {
	width := 0
	for _, p := range pairs {
		width = max(width, utf8.RuneCountInString(p[0]))
	}
	var out strings.Builder
	for _, p := range pairs {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(p[0])+2)
		out.WriteString(strings.TrimRight(indent+p[0]+pad+Escape(p[1]), " ") + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// Labels writes labels as a=b,c=d in order of their names.
func Labels(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, name+"="+labels[name])
	}
	return strings.Join(parts, ",")
}

// Short cuts an id to 18 characters and an ellipsis.
func Short(id string) string {
	const keep = 18
	if utf8.RuneCountInString(id) <= keep {
		return id
	}
	return string([]rune(id)[:keep]) + "..."
}

// Expiry writes a time as the tables have it, with what is left: "30 Mar 23 18:15
// UTC (2m8s)", "never" for the zero time.
func Expiry(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	left := t.Sub(now).Round(time.Second)
	if left <= 0 {
		return t.UTC().Format(time.RFC822) + " (expired)"
	}
	return fmt.Sprintf("%s (%s)", t.UTC().Format(time.RFC822), Duration(left))
}

// Duration writes a duration without units that are zero at its end: 12h, 1h30m.
func Duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Amount writes a duration in words, in whole units: "5 minutes", "1 hour".
func Amount(d time.Duration) string {
	n, unit := int64(d.Round(time.Minute)/time.Minute), "minute"
	if d < time.Minute {
		n, unit = int64(d.Round(time.Second)/time.Second), "second"
	}
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

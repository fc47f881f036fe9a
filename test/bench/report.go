package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"unicode/utf8"
)

// report prints what was measured as it comes and keeps it for the file.
type report struct {
	out   io.Writer
	kept  bytes.Buffer
	goals [][]string
}

func newReport(out io.Writer) *report { return &report{out: out} }

func (r *report) printf(format string, args ...any) {
	fmt.Fprintf(io.MultiWriter(r.out, &r.kept), format, args...)
}

// environment says where and how it was measured.
func (r *report) environment(lines []string) {
	for _, line := range lines {
		r.printf("- %s\n", line)
	}
}

// table prints a title and rows, the first of which is the heading.
func (r *report) table(title string, rows ...[]string) {
	r.printf("\n### %s\n\n%s", title, align(rows))
}

// note prints a paragraph.
func (r *report) note(format string, args ...any) { r.printf("\n%s\n", fmt.Sprintf(format, args...)) }

// atMost records a goal that is met by at most the limit.
func (r *report) atMost(what string, got, limit float64, unit string) {
	r.goal(what, "<=", got, limit, unit, got <= limit)
}

// atLeast records a goal that is met by at least the limit.
func (r *report) atLeast(what string, got, limit float64, unit string) {
	r.goal(what, ">=", got, limit, unit, got >= limit)
}

func (r *report) goal(what, relation string, got, limit float64, unit string, met bool) {
	if math.IsNaN(got) || math.IsInf(got, 0) {
		return // one side was left out
	}
	verdict := "met"
	if !met {
		verdict = "MISSED"
	}
	row := []string{what, relation + " " + number(limit) + unit, number(got) + unit, verdict}
	r.goals = append(r.goals, row)
	fmt.Fprintf(r.out, "goal: %s: %s, goal %s: %s\n", row[0], row[2], row[1], row[3])
}

// finish prints all goals.
func (r *report) finish() {
	if len(r.goals) > 0 {
		r.table("Goals", append([][]string{{"what", "goal", "seen", ""}}, r.goals...)...)
	}
}

// The marks in the file, between which the figures stand.
const (
	beginMark = "<!-- figures of make bench: begin -->"
	endMark   = "<!-- figures of make bench: end -->"
)

// writeTo replaces what is between the marks of a file.
func (r *report) writeTo(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err = replaceFigures(text, r.kept.Bytes())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, text, 0o644)
}

func replaceFigures(text, figures []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(beginMark))
	if !ok {
		return nil, fmt.Errorf("no line %q", beginMark)
	}
	_, after, ok := bytes.Cut(rest, []byte(endMark))
	if !ok {
		return nil, fmt.Errorf("no line %q", endMark)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s\n%s\n%s%s", before, beginMark, bytes.TrimSpace(figures), endMark, after)
	return b.Bytes(), nil
}

// align returns rows as a Markdown table, the columns padded.
func align(rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 3)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// number prints three digits that matter.
func number(x float64) string {
	switch {
	case x >= 100 || x == float64(int(x)):
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

package config

import (
	"fmt"
	"slices"
	"strings"

	"teleport/internal/fault"
)

// maxProblems bounds a report: a file with more is broken in one way many times.
const maxProblems = 50

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// File is empty for a configuration that came from flags alone.
	File string
	// Line and Column count from one; zero means that no place is to blame.
	Line, Column int
	// Key is the path of the key, such as "ssh_service.labels.env", or empty.
	Key string
	// Text says what is wrong and what is expected.
	Text string
}

// String returns the one-line form "file:line:column: key: text".
func (p Problem) String() string {
	var b strings.Builder
	switch {
	case p.Line > 0:
		fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	case p.File != "":
		fmt.Fprintf(&b, "%s: ", p.File)
	}
	if p.Key != "" {
		fmt.Fprintf(&b, "%s: ", p.Key)
	}
	b.WriteString(p.Text)
	return b.String()
}

// Error is every problem of a configuration, in the order of the file. It is a
// fault.ErrInvalid.
type Error struct {
	Problems []Problem
}

// Error returns one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems))
	for i, p := range e.Problems {
		if i == maxProblems {
			lines = append(lines, fmt.Sprintf("and %d more problems", len(e.Problems)-maxProblems))
			break
		}
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes the error a fault.ErrInvalid.
func (e *Error) Unwrap() error { return fault.ErrInvalid }

// problems returns them as an error in the order of the file, or nil.
func asError(ps []Problem) error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &Error{Problems: ps}
}

package join_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"teleport/internal/join"
)

// Every reason code has its row in the page that people look it up in, and every row
// is of a code that exists.
func TestEveryCodeIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/join-errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.SplitSeq(string(page), "\n") {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			rows[name[:strings.IndexByte(name, '`')]] = true
		}
	}
	// Package access makes this one, for all packages.
	codes := map[string]bool{join.CodeLocked: true}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, more...) {
		for _, code := range codesIn(t, file) {
			codes[code] = true
			if !rows[code] {
				t.Errorf("%s: reason code %q has no row in docs/reference/join-errors.md", file, code)
			}
		}
	}
	if len(codes) < 30 {
		t.Errorf("found only %d codes: does this test still look in the right places?", len(codes))
	}
	for row := range rows {
		if !codes[row] {
			t.Errorf("docs/reference/join-errors.md has a row for %q, which no code is", row)
		}
	}
}

// codesIn returns the values of the constants Code... that a file declares.
func codesIn(t *testing.T, file string) []string {
	t.Helper()
	if strings.HasSuffix(file, "_test.go") {
		return nil
	}
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range f.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, s := range gen.Specs {
			spec, ok := s.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(spec.Names[0].Name, "Code") || len(spec.Values) != 1 {
				continue
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
				value, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, value)
			}
		}
	}
	return out
}

package types

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"teleport/internal/fault"
)

// Limits of a file of resources. The parser below takes time that grows with the
// square of depth and of the length of a line, so both are bounded before it runs.
const (
	maxFile       = 1 << 20
	maxTokens     = 100000
	maxLineTokens = 5000
	maxDepth      = 64
	maxNodes      = 100000 // counted after aliases are followed
	maxDocuments  = 1000
	maxProblems   = 50
)

// place is a position in the file; lines and columns count from 1.
type place struct{ line, column int }

func placeOf(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{1, 1}
	}
	return place{t.Position.Line, t.Position.Column}
}

// fileProblem is a Problem with its place.
type fileProblem struct {
	at place
	Problem
}

// fileProblems is the error of ParseYAML.
type fileProblems struct {
	file string
	list []fileProblem
}

// Error returns a line per problem: "file:line:column: field: text".
func (e *fileProblems) Error() string {
	lines := make([]string, 0, len(e.list))
	for i, p := range e.list {
		if i == maxProblems {
			lines = append(lines, fmt.Sprintf("%s: and %d more", e.file, len(e.list)-i))
			break
		}
		lines = append(lines, fmt.Sprintf("%s:%d:%d: %s", e.file, p.at.line, p.at.column, p.Error()))
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is find fault.ErrInvalid.
func (e *fileProblems) Unwrap() error { return fault.ErrInvalid }

// ParseYAML reads resources that people wrote: several documents, or a list in
// one. It is strict: unknown fields, duplicate keys, wrong types and values that
// Check refuses are errors, all reported at once, each on a line of the form
// "file:line:column: field: problem". Defaults are filled in. JSON is YAML too.
func ParseYAML(file string, data []byte) ([]Resource, error) {
	p := &yamlReader{}
	out := p.file(data)
	if len(p.problems) == 0 {
		return out, nil
	}
	slices.SortStableFunc(p.problems, func(a, b fileProblem) int {
		if a.at.line != b.at.line {
			return a.at.line - b.at.line
		}
		return a.at.column - b.at.column
	})
	return nil, &fileProblems{file: file, list: p.problems}
}

// yamlReader collects the problems of a file.
type yamlReader struct {
	problems []fileProblem
	nodes    int
}

func (p *yamlReader) add(at place, path, format string, args ...any) {
	p.problems = append(p.problems, fileProblem{at: at, Problem: Problem{Path: path, Text: fmt.Sprintf(format, args...)}})
}

func (p *yamlReader) file(data []byte) []Resource {
	if len(data) > maxFile {
		p.add(place{1, 1}, "", "the file has %d bytes, the most is %d", len(data), maxFile)
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	if at, ok := unreadable(data); ok {
		p.add(at, "", "the file must be UTF-8 text without control characters")
		return nil
	}
	var out []Resource
	documents, ok := p.documents(string(data))
	if !ok {
		return nil
	}
	for _, tokens := range documents {
		body, ok := p.parse(tokens)
		if !ok {
			continue
		}
		d := &document{yamlReader: p, anchors: make(map[string]ast.Node), places: make(map[string]place)}
		out = append(out, d.resources(body, tokens)...)
	}
	if len(out) == 0 && len(p.problems) == 0 {
		p.add(place{1, 1}, "", "there is no resource in the file")
	}
	return out
}

// unreadable finds the first byte that is not text.
func unreadable(data []byte) (place, bool) {
	line, column := 1, 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\n' && r != '\t', r == 0x7f, r == '\ufeff':
			return place{line, column}, true
		case r == '\n':
			line, column = line+1, 0
		}
		column++
		data = data[n:]
	}
	return place{}, false
}

// documents splits a file into the tokens of its documents, without comments, and
// refuses what the parser should not be asked to read. The parser's own splitting
// is not used: it loses the document after one that has only a comment.
func (p *yamlReader) documents(text string) ([]token.Tokens, bool) {
	all := lexer.Tokenize(text)
	if len(all) > maxTokens {
		p.add(place{1, 1}, "", "the file has too many parts: split it")
		return nil, false
	}
	var out []token.Tokens
	var current token.Tokens
	flush := func() {
		if len(current) > 0 {
			current[0].Prev, current[len(current)-1].Next = nil, nil
			out = append(out, current)
		}
		current = nil
	}
	depth, line, onLine, openers := 0, 0, 0, 0
	for _, t := range all {
		if t.Position.Line != line {
			line, onLine, openers = t.Position.Line, 0, 0
		}
		onLine++
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth = max(0, depth-1)
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			openers++
		case token.DocumentHeaderType, token.DocumentEndType:
			depth = 0
			flush()
			continue
		case token.CommentType:
			continue
		case token.DirectiveType:
			p.add(placeOf(t), "", "directives are not supported: remove the line that starts with %%")
			return nil, false
		default:
		}
		if depth > maxDepth || openers > maxDepth || onLine > maxLineTokens {
			p.add(placeOf(t), "", "nested too deeply or too long a line: the most is %d levels and %d parts", maxDepth, maxLineTokens)
			return nil, false
		}
		current = append(current, t)
	}
	flush()
	if len(out) > maxDocuments {
		p.add(place{1, 1}, "", "the file has %d documents, the most is %d", len(out), maxDocuments)
		return nil, false
	}
	return out, true
}

// parse turns the tokens of one document into a tree. A panic of the parser is
// the fault of the text.
func (p *yamlReader) parse(tokens token.Tokens) (body ast.Node, ok bool) {
	at := placeOf(tokens[0])
	defer func() {
		if r := recover(); r != nil {
			p.add(at, "", "cannot be read as YAML")
			body, ok = nil, false
		}
	}()
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) {
			p.add(placeOf(ye.GetToken()), "", "%s", ye.GetMessage())
		} else {
			p.add(at, "", "cannot be read as YAML: %v", err)
		}
		return nil, false
	}
	for _, d := range f.Docs {
		if d.Body == nil {
			continue
		}
		if body != nil {
			p.add(placeOf(d.Body.GetToken()), "", "text after the end of the document: separate documents with a line ---")
			return nil, false
		}
		body = d.Body
	}
	return body, body != nil
}

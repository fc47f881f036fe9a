package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits on a configuration file. They are far beyond any that people write and
// keep a hostile one from costing memory, time or stack.
const (
	maxFile    = 256 << 10
	maxTokens  = 20000
	maxDepth   = 32
	maxColumn  = 256
	maxOnLine  = 16
	maxAliases = 64
	maxVisits  = 20000
	maxString  = 4096
	maxEntries = 1000
)

// Edit changes a configuration between reading and Check; command-line flags
// are edits.
type Edit func(*Config) error

// Load reads the file at path, applies the edits and checks the whole.
func Load(path string, edits ...Edit) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", quote(path), err)
	}
	return Parse(path, data, edits...)
}

// Parse reads a configuration from data, applies the edits and checks the whole.
// The name of the file is for messages. The error is an *Error with every
// problem.
func Parse(file string, data []byte, edits ...Edit) (*Config, error) {
	return parse(&decoder{file: file}, data, edits...)
}

func parse(d *decoder, data []byte, edits ...Edit) (*Config, error) {
	d.anchors, d.at = map[string]ast.Node{}, map[string]position{}
	cfg := d.decode(data)
	if err := asError(d.problems); err != nil {
		return nil, err
	}
	cfg.source = source{file: d.file, at: d.at}
	cfg.Warnings = d.warnings
	for _, edit := range edits {
		if err := edit(cfg); err != nil {
			return nil, err
		}
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// decoder walks the syntax tree of one file and collects problems.
type decoder struct {
	file     string
	problems []Problem
	warnings []string
	anchors  map[string]ast.Node
	at       map[string]position
	visits   int
	aliases  int
	// elsewhere: the file is for another machine, so files that it names are not read.
	elsewhere bool
}

// decode never returns nil; what it returns is good only without problems.
func (d *decoder) decode(data []byte) *Config {
	if len(data) > maxFile {
		d.problem(position{}, "", "the file is too large: expected at most %d KiB", maxFile>>10)
		return defaults(V1)
	}
	tokens := lexer.Tokenize(string(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	if !d.tokensWithinLimits(tokens) {
		return defaults(V1)
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return defaults(V1)
	}
	root := d.document(f)
	cfg := defaults(d.version(root))
	if root != nil {
		value{d: d, node: root}.mapping(topSchema(cfg))
	}
	fillPorts(cfg.Auth.PublicAddrs, cfg.Auth.ListenAddr, DefaultAuthPort)
	fillPorts(cfg.Proxy.PublicAddrs, cfg.Proxy.WebListenAddr, DefaultProxyPort)
	fillPorts(cfg.SSH.PublicAddrs, cfg.SSH.ListenAddr, DefaultSSHPort)
	return cfg
}

func (d *decoder) problem(at position, key, format string, args ...any) {
	d.problems = append(d.problems, Problem{
		File: d.file, Line: at.line, Column: at.column, Key: key, Text: fmt.Sprintf(format, args...),
	})
}

func (d *decoder) syntax(err error) {
	var se *yaml.SyntaxError
	if !errors.As(err, &se) || se.Token == nil || se.Token.Position == nil {
		d.problem(position{}, "", "not valid YAML")
		return
	}
	hint := ""
	if strings.Contains(se.Message, "\t") || strings.Contains(se.Message, "tab") {
		hint = ": indent with spaces"
	}
	d.problem(tokenPosition(se.Token), "", "not valid YAML: %s%s", strings.ReplaceAll(se.Message, "\t", `\t`), hint)
}

// document returns the root of the only document, or nil if the file says
// nothing.
func (d *decoder) document(f *ast.File) ast.Node {
	var root ast.Node
	for _, doc := range f.Docs {
		body := doc.Body
		if body == nil {
			continue
		}
		if dir, ok := body.(*ast.DirectiveNode); ok {
			d.problem(nodePosition(dir), "", "YAML directives are not supported: remove this line")
			continue
		}
		if root != nil {
			d.problem(nodePosition(body), "", "a second document: expected one document in a configuration file")
			break
		}
		root = body
	}
	if _, null := root.(*ast.NullNode); null {
		return nil
	}
	return root
}

// version finds the version before anything else is read, because defaults
// depend on it.
func (d *decoder) version(root ast.Node) string {
	m, ok := root.(*ast.MappingNode)
	if !ok {
		return V1
	}
	for _, e := range m.Values {
		if keyText(e.Key) != "version" {
			continue
		}
		switch text, _ := scalarText(e.Value); text {
		case V1, V2, V3:
			return text
		}
		// The schema reports it; V3 gives the fewest problems that follow from it.
		return V3
	}
	return V1
}

// tokensWithinLimits bounds the work of the parser, which recurses as deep as
// the text nests.
func (d *decoder) tokensWithinLimits(tokens token.Tokens) bool {
	flow, line, onLine := 0, 0, 0
	for i, t := range tokens {
		if t.Position == nil {
			continue
		}
		if t.Position.Line != line {
			line, onLine = t.Position.Line, 0
			if flow == 0 && t.Type != token.CommentType && t.Position.Column > maxColumn {
				d.problem(tokenPosition(t), "", "indented too far: expected at most %d columns", maxColumn)
				return false
			}
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.TagType, token.AnchorType, token.AliasType:
			onLine++
		}
		if flow > maxDepth || onLine > maxOnLine || i >= maxTokens {
			d.problem(tokenPosition(t), "", "too large or nested too deep: expected at most %d levels and %d words and signs", maxDepth, maxTokens)
			return false
		}
	}
	return true
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{}
	}
	return position{line: t.Position.Line, column: t.Position.Column}
}

// nodePosition returns where a node begins.
func nodePosition(n ast.Node) position {
	switch v := n.(type) {
	case nil:
		return position{}
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return nodePosition(v.Values[0])
		}
	case *ast.MappingValueNode:
		return tokenPosition(v.Key.GetToken())
	}
	return tokenPosition(n.GetToken())
}

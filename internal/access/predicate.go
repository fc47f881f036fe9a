package access

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// Limits of one predicate.
const (
	maxPredicate      = 2048 // bytes
	maxPredicateDepth = 32
	maxPredicateNodes = 512
)

// predicate is a condition over the caller and a resource, such as
// `contains_all(set("Node", "App"), resource.spec.roles)`. Its language is a small
// part of Go's expressions. It has no loops and calls nothing but the functions
// below, so that its cost is bounded by its size and that of what it looks at.
type predicate struct{ root node }

// scope is what a predicate is about.
type scope struct {
	user   string
	roles  []string
	traits map[string][]string
	// resource is nil where none is at hand: a predicate that asks about it then
	// cannot be decided.
	resource types.Resource
	// name and labels are those of the resource, for queries.
	name   string
	labels map[string]string
}

// valueType is what an expression results in.
type valueType int

const (
	typeBool valueType = iota
	typeString
	typeList
	typeNumber
)

func (t valueType) String() string {
	return [...]string{"a condition", "a text", "a list", "a number"}[t]
}

// value is the result of an expression: the field of its type is set.
type value struct {
	typ    valueType
	bool   bool
	text   string
	list   []string
	number int64
}

func boolean(b bool) value { return value{typ: typeBool, bool: b} }

// node is a part of a predicate.
type node interface {
	eval(s scope) (value, error)
	// check returns the type that the part has for resources of each of the messages.
	check(about []protoreflect.MessageDescriptor) (valueType, error)
}

// compilePredicate reads a predicate. What its fields are is not looked at: see check.
func compilePredicate(text string) (*predicate, error) {
	return compileIn(&compiler{field: compileField}, text)
}

// compileIn reads a predicate of the compiler's language.
func compileIn(c *compiler, text string) (*predicate, error) {
	if len(text) > maxPredicate {
		return nil, fault.Invalid("%d bytes are too long for a condition: use at most %d", len(text), maxPredicate)
	}
	// A condition may stand on several lines in YAML; Go would end it there.
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == '\t' {
			return ' '
		}
		return r
	}, text)
	if err := scanPredicate(text); err != nil {
		return nil, err
	}
	expr, err := parser.ParseExpr(text)
	if err != nil {
		return nil, fault.Invalid("%q is not a condition: %s", text, syntaxProblem(err))
	}
	root, err := c.compile(expr, 0)
	if err != nil {
		return nil, err
	}
	return &predicate{root: root}, nil
}

// syntaxProblem drops what the parser says about its own sources.
func syntaxProblem(err error) string {
	if list, ok := err.(scanner.ErrorList); ok && len(list) > 0 { //nolint:errorlint // what the parser returns, not wrapped
		return fmt.Sprintf("at character %d: %s", list[0].Pos.Column, list[0].Msg)
	}
	return err.Error()
}

// scanPredicate lets only those words through that a condition is made of, and
// bounds how deep they nest, before anything is parsed.
func scanPredicate(text string) error {
	fset := token.NewFileSet()
	var s scanner.Scanner
	var broken error
	s.Init(fset.AddFile("", -1, len(text)), []byte(text), func(pos token.Position, msg string) {
		broken = fault.Invalid("%q is not a condition: at character %d: %s", text, pos.Column, msg)
	}, scanner.ScanComments)
	depth := 0
	for words := 0; ; words++ {
		_, tok, lit := s.Scan()
		switch tok {
		case token.EOF:
			return broken
		case token.LPAREN, token.LBRACK, token.NOT:
			depth++ // of a `!` too: it nests what follows
		case token.RPAREN, token.RBRACK:
			depth--
		case token.STRING:
			if strings.HasPrefix(lit, "`") {
				return fault.Invalid("write texts in double quotes: %s", lit)
			}
		case token.IDENT, token.INT, token.LAND, token.LOR, token.EQL, token.NEQ, token.PERIOD, token.COMMA, token.SEMICOLON:
		default:
			return fault.Invalid("%q has no place in a condition: use functions, fields, texts in double quotes, !, &&, ||, == and !=", wordOf(tok, lit))
		}
		if words > 4*maxPredicateNodes || depth > 4*maxPredicateDepth {
			return fault.Invalid("the condition is too large: use at most %d parts, %d deep", maxPredicateNodes, maxPredicateDepth)
		}
	}
}

func wordOf(tok token.Token, lit string) string {
	if lit != "" {
		return lit
	}
	return tok.String()
}

// compiler reads a language: conditions of rules, or queries.
type compiler struct {
	nodes int
	// field reads what is no function and no constant.
	field func(e ast.Expr) (node, error)
	// function reads a function that the language has besides the common ones; nil for
	// one that it does not know. It may be nil.
	function func(name string, args []node) (node, error)
	// names are those of its functions, for errors.
	names []string
}

func (c *compiler) compile(e ast.Expr, depth int) (node, error) {
	if c.nodes++; c.nodes > maxPredicateNodes || depth > maxPredicateDepth {
		return nil, fault.Invalid("the condition is too large: use at most %d parts, %d deep", maxPredicateNodes, maxPredicateDepth)
	}
	switch e := e.(type) {
	case *ast.ParenExpr:
		return c.compile(e.X, depth+1)
	case *ast.UnaryExpr:
		x, err := c.compile(e.X, depth+1)
		if err == nil && e.Op != token.NOT {
			err = fault.Invalid("%q has no place in a condition", e.Op)
		}
		return not{x}, err
	case *ast.BinaryExpr:
		return c.binary(e, depth)
	case *ast.CallExpr:
		return c.call(e, depth)
	case *ast.BasicLit:
		return constant(e)
	case *ast.Ident:
		if e.Name == "true" || e.Name == "false" {
			return literal{boolean(e.Name == "true")}, nil
		}
	}
	return c.field(e)
}

func (c *compiler) binary(e *ast.BinaryExpr, depth int) (node, error) {
	x, err := c.compile(e.X, depth+1)
	if err != nil {
		return nil, err
	}
	y, err := c.compile(e.Y, depth+1)
	if err != nil {
		return nil, err
	}
	switch e.Op {
	case token.LAND, token.LOR:
		return logic{or: e.Op == token.LOR, x: x, y: y}, nil
	case token.EQL:
		return equal{x: x, y: y}, nil
	case token.NEQ:
		return not{equal{x: x, y: y}}, nil
	}
	return nil, fault.Invalid("%q has no place in a condition: use &&, ||, == or !=", e.Op)
}

func constant(e *ast.BasicLit) (node, error) {
	switch e.Kind {
	case token.STRING:
		text, err := strconv.Unquote(e.Value)
		if err != nil {
			return nil, fault.Invalid("%s is not a text", e.Value)
		}
		return literal{value{typ: typeString, text: text}}, nil
	case token.INT:
		n, err := strconv.ParseInt(e.Value, 10, 64)
		if err != nil {
			return nil, fault.Invalid("%s is not a number: write it in decimal digits", e.Value)
		}
		return literal{value{typ: typeNumber, number: n}}, nil
	}
	return nil, fault.Invalid("%s has no place in a condition", e.Value)
}

// literal is a value that was written out.
type literal struct{ v value }

func (l literal) eval(scope) (value, error) { return l.v, nil }

func (l literal) check([]protoreflect.MessageDescriptor) (valueType, error) { return l.v.typ, nil }

// not is true if x is not.
type not struct{ x node }

func (n not) eval(s scope) (value, error) {
	x, err := n.x.eval(s)
	if err == nil {
		err = expect(x.typ, typeBool, "!")
	}
	return boolean(!x.bool), err
}

func (n not) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	x, err := n.x.check(about)
	if err == nil {
		err = expect(x, typeBool, "!")
	}
	return typeBool, err
}

// logic is && or ||. The right side is looked at only if the left did not decide.
type logic struct {
	or   bool
	x, y node
}

func (l logic) name() string {
	if l.or {
		return "||"
	}
	return "&&"
}

func (l logic) eval(s scope) (value, error) {
	x, err := l.x.eval(s)
	if err == nil {
		err = expect(x.typ, typeBool, l.name())
	}
	if err != nil || x.bool == l.or {
		return x, err
	}
	y, err := l.y.eval(s)
	if err == nil {
		err = expect(y.typ, typeBool, l.name())
	}
	return y, err
}

func (l logic) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	for _, side := range []node{l.x, l.y} {
		t, err := side.check(about)
		if err == nil {
			err = expect(t, typeBool, l.name())
		}
		if err != nil {
			return typeBool, err
		}
	}
	return typeBool, nil
}

// equal compares two values of one type; lists are compared as sets.
type equal struct{ x, y node }

func (e equal) eval(s scope) (value, error) {
	x, err := e.x.eval(s)
	if err != nil {
		return x, err
	}
	y, err := e.y.eval(s)
	if err != nil {
		return y, err
	}
	if err := expect(y.typ, x.typ, "the other side of a comparison"); err != nil {
		return y, err
	}
	return boolean(x.bool == y.bool && x.text == y.text && x.number == y.number && sameSet(x.list, y.list)), nil
}

func (e equal) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	x, err := e.x.check(about)
	if err != nil {
		return x, err
	}
	y, err := e.y.check(about)
	if err != nil {
		return y, err
	}
	return typeBool, expect(y, x, "the other side of a comparison")
}

func sameSet(a, b []string) bool {
	in := func(list []string) func(string) bool {
		return func(s string) bool { return !slices.Contains(list, s) }
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

func expect(got, want valueType, by string) error {
	if got == want {
		return nil
	}
	return fault.Invalid("%s needs %s, and was given %s", by, want, got)
}

// decide reports whether the predicate holds; an error says why that cannot be told.
func (p *predicate) decide(s scope) (bool, error) {
	v, err := p.root.eval(s)
	if err == nil {
		err = expect(v.typ, typeBool, "a condition")
	}
	return err == nil && v.bool, err
}

// check finds what could never be decided about resources of the messages.
func (p *predicate) check(about []protoreflect.MessageDescriptor) error {
	t, err := p.root.check(about)
	if err != nil {
		return err
	}
	if t != typeBool {
		return fault.Invalid("the condition results in %s, expected true or false", t)
	}
	return nil
}

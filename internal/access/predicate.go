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

	typesv1 "teleport/api/types/v1"
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
	c := &compiler{}
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

type compiler struct{ nodes int }

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
	return compileField(e)
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

// field is a field of the user or of the resource.
type field struct {
	// path is whole, e.g. ["resource", "spec", "roles"].
	path []string
	// key is that of a map; has says that one was given.
	key string
	has bool
}

// compileField reads `resource.spec.roles` and `user.spec.traits["team"]`.
func compileField(e ast.Expr) (node, error) {
	var f field
	if index, ok := e.(*ast.IndexExpr); ok {
		lit, ok := index.Index.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return nil, fault.Invalid(`between [ and ] stands a text, such as labels["env"]`)
		}
		key, err := strconv.Unquote(lit.Value)
		if err != nil {
			return nil, fault.Invalid("%s is not a text", lit.Value)
		}
		f.key, f.has, e = key, true, index.X
	}
	for {
		switch x := e.(type) {
		case *ast.SelectorExpr:
			f.path = append(f.path, x.Sel.Name)
			e = x.X
			continue
		case *ast.Ident:
			f.path = append(f.path, x.Name)
			slices.Reverse(f.path)
			return f, f.checkRoot()
		}
		return nil, fault.Invalid("a condition is made of functions, of fields such as resource.spec.roles, and of texts in double quotes")
	}
}

// checkRoot refuses what is a field of neither.
func (f field) checkRoot() error {
	switch {
	case f.path[0] == "resource" && len(f.path) > 1:
		switch f.path[1] {
		case "kind", "sub_kind", "metadata", "spec", "status":
			return nil
		}
	case f.path[0] == "user":
		if _, err := f.ofUser(scope{}); err != nil {
			return err
		}
		return nil
	}
	return fault.Invalid("unknown name %q: use user.metadata.name, user.spec.roles, user.spec.traits[\"name\"], or a field of the resource such as resource.spec.roles", f)
}

func (f field) String() string {
	s := strings.Join(f.path, ".")
	if f.has {
		s += "[" + strconv.Quote(f.key) + "]"
	}
	return s
}

func (f field) eval(s scope) (value, error) {
	if f.path[0] == "user" {
		return f.ofUser(s)
	}
	if s.resource == nil {
		return value{}, fault.Invalid("%s: no resource is at hand", f)
	}
	m := s.resource.ProtoReflect()
	descs, t, err := f.resolve(m.Descriptor())
	if err != nil {
		return value{}, err
	}
	for _, d := range descs[:len(descs)-1] {
		m = m.Get(d).Message()
	}
	last := descs[len(descs)-1]
	return read(m.Get(last), last, f.key, t), nil
}

func (f field) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	if f.path[0] == "user" {
		v, err := f.ofUser(scope{})
		return v.typ, err
	}
	if len(about) == 0 {
		return typeBool, fault.Invalid("%s: what the rule is about has no fields: use those of user only", f)
	}
	var first valueType
	for i, md := range about {
		_, t, err := f.resolve(md)
		if err != nil {
			return t, err
		}
		if i > 0 && t != first {
			return t, fault.Invalid("%s is %s for one kind and %s for another: write a rule for each", f, first, t)
		}
		first = t
	}
	return first, nil
}

// ofUser returns a field of the caller.
func (f field) ofUser(s scope) (value, error) {
	switch path := strings.Join(f.path[1:], "."); {
	case path == "metadata.name" && !f.has:
		return value{typ: typeString, text: s.user}, nil
	case path == "spec.roles" && !f.has:
		return value{typ: typeList, list: s.roles}, nil
	case path == "spec.traits" && f.has:
		return value{typ: typeList, list: s.traits[f.key]}, nil
	}
	return value{}, fault.Invalid(`unknown field %q of the user: use user.metadata.name, user.spec.roles or user.spec.traits["name"]`, f)
}

// resolve finds the field in a message; the texts of lists and maps are reached,
// messages inside them are not.
func (f field) resolve(md protoreflect.MessageDescriptor) ([]protoreflect.FieldDescriptor, valueType, error) {
	var out []protoreflect.FieldDescriptor
	for i, name := range f.path[1:] {
		d := md.Fields().ByName(protoreflect.Name(name))
		if d == nil {
			return nil, 0, fault.Invalid("%s: kind %s has no field %q", f, strings.ToLower(string(kindMessage(out, md).Name())), name)
		}
		out = append(out, d)
		if last := i == len(f.path)-2; last {
			t, err := f.typeOf(d)
			return out, t, err
		}
		if d.Kind() != protoreflect.MessageKind || d.IsList() || d.IsMap() {
			return nil, 0, fault.Invalid("%s: %s has no fields of its own", f, name)
		}
		md = d.Message()
	}
	return nil, 0, fault.Invalid("%s is not a field", f)
}

// kindMessage is the message that the path began in.
func kindMessage(path []protoreflect.FieldDescriptor, md protoreflect.MessageDescriptor) protoreflect.MessageDescriptor {
	if len(path) > 0 {
		return path[0].ContainingMessage()
	}
	return md
}

func (f field) typeOf(d protoreflect.FieldDescriptor) (valueType, error) {
	switch {
	case d.IsMap() != f.has:
		return 0, fault.Invalid(`%s: write a key after a map, such as resource.metadata.labels["env"], and only there`, f)
	case d.IsMap() && d.MapValue().Kind() == protoreflect.StringKind:
		return typeString, nil
	case d.IsMap() && d.MapValue().Kind() == protoreflect.MessageKind && d.MapValue().Message().FullName() == (&typesv1.Strings{}).ProtoReflect().Descriptor().FullName():
		return typeList, nil
	case d.IsMap():
	case d.IsList() && d.Kind() == protoreflect.StringKind:
		return typeList, nil
	case d.IsList():
	case d.Kind() == protoreflect.StringKind:
		return typeString, nil
	case d.Kind() == protoreflect.BoolKind:
		return typeBool, nil
	case d.Kind() == protoreflect.Int32Kind, d.Kind() == protoreflect.Int64Kind, d.Kind() == protoreflect.Uint32Kind:
		return typeNumber, nil
	}
	return 0, fault.Invalid("%s is neither a text nor a number nor a list of texts, so a condition cannot look at it", f)
}

// read turns what the message holds into a value of the type; what is not set is
// empty.
func read(v protoreflect.Value, d protoreflect.FieldDescriptor, key string, t valueType) value {
	out := value{typ: t}
	if d.IsMap() {
		v = v.Map().Get(protoreflect.ValueOfString(key).MapKey())
		switch {
		case !v.IsValid():
		case t == typeString:
			out.text = v.String()
		default:
			if list, ok := v.Message().Interface().(*typesv1.Strings); ok {
				out.list = list.GetValues()
			}
		}
		return out
	}
	switch t {
	case typeBool:
		out.bool = v.Bool()
	case typeString:
		out.text = v.String()
	case typeList:
		for i := range v.List().Len() {
			out.list = append(out.list, v.List().Get(i).String())
		}
	case typeNumber:
		if d.Kind() == protoreflect.Uint32Kind {
			out.number = int64(v.Uint()) //nolint:gosec // 32 bits
		} else {
			out.number = v.Int()
		}
	}
	return out
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

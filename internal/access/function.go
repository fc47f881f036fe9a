package access

import (
	"go/ast"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"teleport/internal/fault"
)

// maxSet bounds the values of one set(...).
const maxSet = 256

// function is what a predicate may call.
type function struct {
	name string
	args []valueType
	call func(args []value) bool
}

// functions are all there are, besides equals, which compares any two values of
// one type, and set, which makes a list of texts. A list without values contains
// nothing, is contained in nothing, and has no values that are all equal.
func functions() []function {
	return []function{
		{"contains", []valueType{typeList, typeString}, func(a []value) bool { return slices.Contains(a[0].list, a[1].text) }},
		{"contains_any", []valueType{typeList, typeList}, func(a []value) bool {
			return slices.ContainsFunc(a[1].list, func(s string) bool { return slices.Contains(a[0].list, s) })
		}},
		{"contains_all", []valueType{typeList, typeList}, func(a []value) bool {
			return len(a[1].list) > 0 && !slices.ContainsFunc(a[1].list, func(s string) bool { return !slices.Contains(a[0].list, s) })
		}},
		{"all_equal", []valueType{typeList, typeString}, func(a []value) bool {
			return len(a[0].list) > 0 && !slices.ContainsFunc(a[0].list, func(s string) bool { return s != a[1].text })
		}},
		{"has_prefix", []valueType{typeString, typeString}, func(a []value) bool { return strings.HasPrefix(a[0].text, a[1].text) }},
	}
}

func (c *compiler) call(e *ast.CallExpr, depth int) (node, error) {
	name, ok := e.Fun.(*ast.Ident)
	if !ok {
		return nil, fault.Invalid("a condition calls functions by their name")
	}
	args := make([]node, len(e.Args))
	for i, a := range e.Args {
		var err error
		if args[i], err = c.compile(a, depth+1); err != nil {
			return nil, err
		}
	}
	switch {
	case name.Name == "equals" && len(args) == 2:
		return equal{args[0], args[1]}, nil
	case name.Name == "equals":
		return nil, fault.Invalid("equals takes 2 values, and was given %d", len(args))
	case name.Name == "set" && (len(args) == 0 || len(args) > maxSet):
		return nil, fault.Invalid("set takes 1 to %d texts, and was given %d", maxSet, len(args))
	case name.Name == "set":
		return set{args}, nil
	}
	if c.function != nil {
		if n, err := c.function(name.Name, args); n != nil || err != nil {
			return n, err
		}
	}
	known := append([]string{"equals", "set"}, c.names...)
	for _, f := range functions() {
		if f.name != name.Name {
			known = append(known, f.name)
			continue
		}
		if len(args) != len(f.args) {
			return nil, fault.Invalid("%s takes %d values, and was given %d", f.name, len(f.args), len(args))
		}
		return call{f, args}, nil
	}
	slices.Sort(known)
	return nil, fault.Invalid("unknown function %q: use %s", name.Name, strings.Join(known, ", "))
}

// call calls a function.
type call struct {
	function function
	args     []node
}

func (c call) eval(s scope) (value, error) {
	args := make([]value, len(c.args))
	for i, a := range c.args {
		var err error
		if args[i], err = a.eval(s); err != nil {
			return value{}, err
		}
		if err := expect(args[i].typ, c.function.args[i], c.function.name); err != nil {
			return value{}, err
		}
	}
	return boolean(c.function.call(args)), nil
}

func (c call) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	for i, a := range c.args {
		t, err := a.check(about)
		if err == nil {
			err = expect(t, c.function.args[i], c.function.name)
		}
		if err != nil {
			return t, err
		}
	}
	return typeBool, nil
}

// set makes a list of texts.
type set struct{ args []node }

func (l set) eval(s scope) (value, error) {
	out := value{typ: typeList}
	for _, a := range l.args {
		v, err := a.eval(s)
		if err == nil {
			err = expect(v.typ, typeString, "set")
		}
		if err != nil {
			return value{}, err
		}
		out.list = append(out.list, v.text)
	}
	return out, nil
}

func (l set) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	for _, a := range l.args {
		t, err := a.check(about)
		if err == nil {
			err = expect(t, typeString, "set")
		}
		if err != nil {
			return t, err
		}
	}
	return typeList, nil
}

package access

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Query chooses resources of one kind: what --query takes, e.g.
// `labels["env"] == "prod" && !hasPrefix(name, "old-")`. It decides about no access.
// Its language is that of conditions, where instead of the user there are
//
//	name, labels["k"], labels.k        a label that is not there is empty
//	exists(labels["k"])                whether it is there
//	search("a", "b")                   the name or a label contains all of the texts, in any case
//	hasPrefix(text, prefix)
//	split(text, separator)             a list
//	contains(list, text)               also of two texts: whether the first contains the second
type Query struct{ predicate *predicate }

// ParseQuery reads a query for resources of the kind and refuses one that could
// never be decided.
func ParseQuery(kind, text string) (*Query, error) {
	info, ok := types.Kind(kind)
	if !ok {
		return nil, fault.Invalid("%q is no kind of resource", kind)
	}
	c := &compiler{field: compileQueryField, function: queryFunction, names: []string{"exists", "hasPrefix", "search", "split"}}
	p, err := compileIn(c, text)
	if err == nil {
		err = p.check([]protoreflect.MessageDescriptor{info.New().ProtoReflect().Descriptor()})
	}
	if err != nil {
		return nil, fault.Invalid("query: %w", err)
	}
	return &Query{p}, nil
}

// Match reports whether the query chooses the resource. A nil Query chooses all.
func (q *Query) Match(r types.Resource) bool {
	if q == nil {
		return true
	}
	name, labels := Described(r)
	ok, err := q.predicate.decide(scope{resource: r, name: name, labels: labels})
	return ok && err == nil
}

// Described returns what people call a resource, and its labels: of a server the host
// name, and the labels of commands too; of an agent of an application or a database, what
// it serves.
func Described(r types.Resource) (name string, labels map[string]string) {
	switch r := r.(type) {
	case *typesv1.Server:
		return r.GetSpec().GetHostname(), types.ServerLabels(r)
	case *typesv1.AppServer:
		return r.GetSpec().GetApp().GetMetadata().GetName(), types.AppServerLabels(r)
	case *typesv1.DatabaseServer:
		return r.GetSpec().GetDatabase().GetMetadata().GetName(), types.DatabaseServerLabels(r)
	case *typesv1.App:
		return r.GetMetadata().GetName(), types.AppLabels(r)
	case *typesv1.Database:
		return r.GetMetadata().GetName(), types.DatabaseLabels(r)
	}
	return r.GetMetadata().GetName(), r.GetMetadata().GetLabels()
}

// Search reports whether the name, the id, or a key or value of a label contains each
// of the words, in any case.
func Search(r types.Resource, words []string) bool {
	name, labels := Described(r)
	return search(name, r.GetMetadata().GetName(), labels, words)
}

func search(name, id string, labels map[string]string, words []string) bool {
	texts := []string{strings.ToLower(name), strings.ToLower(id)}
	for k, v := range labels {
		texts = append(texts, strings.ToLower(k), strings.ToLower(v), strings.ToLower(k+"="+v))
	}
	for _, word := range words {
		word = strings.ToLower(word)
		if !slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(t, word) }) {
			return false
		}
	}
	return true
}

// compileQueryField reads `name`, `labels["k"]`, `labels.k` and fields of the
// resource.
func compileQueryField(e ast.Expr) (node, error) {
	switch x := e.(type) {
	case *ast.Ident:
		if x.Name == "name" {
			return nameNode{}, nil
		}
	case *ast.SelectorExpr:
		if root, ok := x.X.(*ast.Ident); ok && root.Name == "labels" {
			return labelNode{x.Sel.Name}, nil
		}
	case *ast.IndexExpr:
		root, ok := x.X.(*ast.Ident)
		key, text := x.Index.(*ast.BasicLit)
		if ok && root.Name == "labels" && text && key.Kind == token.STRING {
			name, err := strconv.Unquote(key.Value)
			if err != nil {
				return nil, fault.Invalid("%s is not a text", key.Value)
			}
			return labelNode{name}, nil
		}
	}
	n, err := compileField(e)
	if f, ok := n.(field); err != nil || !ok || f.path[0] != "resource" {
		return nil, fault.Invalid(`a query asks about name, labels["key"] and fields such as resource.spec.hostname`)
	}
	return n, nil
}

func queryFunction(name string, args []node) (node, error) {
	takes := func(n int) error {
		if len(args) == n {
			return nil
		}
		return fault.Invalid("%s takes %d values, and was given %d", name, n, len(args))
	}
	switch name {
	case "exists":
		if err := takes(1); err != nil {
			return nil, err
		}
		label, ok := args[0].(labelNode)
		if !ok {
			return nil, fault.Invalid(`exists takes a label: exists(labels["env"])`)
		}
		return existsNode(label), nil
	case "search":
		if len(args) == 0 || len(args) > maxSet {
			return nil, fault.Invalid("search takes 1 to %d texts, and was given %d", maxSet, len(args))
		}
		return searchNode{set{args}}, nil
	case "hasPrefix":
		if err := takes(2); err != nil {
			return nil, err
		}
		return call{function{name, []valueType{typeString, typeString}, func(a []value) bool {
			return strings.HasPrefix(a[0].text, a[1].text)
		}}, args}, nil
	case "split":
		return splitNode{args}, takes(2)
	case "contains":
		return containsNode{args}, takes(2)
	}
	return nil, nil
}

// nameNode is the name of the resource.
type nameNode struct{}

func (nameNode) eval(s scope) (value, error) { return value{typ: typeString, text: s.name}, nil }

func (nameNode) check([]protoreflect.MessageDescriptor) (valueType, error) { return typeString, nil }

// labelNode is the value of a label, or empty.
type labelNode struct{ key string }

func (n labelNode) eval(s scope) (value, error) {
	return value{typ: typeString, text: s.labels[n.key]}, nil
}

func (n labelNode) check([]protoreflect.MessageDescriptor) (valueType, error) { return typeString, nil }

// existsNode is whether there is a label.
type existsNode struct{ key string }

func (n existsNode) eval(s scope) (value, error) {
	_, ok := s.labels[n.key]
	return boolean(ok), nil
}

func (n existsNode) check([]protoreflect.MessageDescriptor) (valueType, error) { return typeBool, nil }

// searchNode is whether all of the texts occur.
type searchNode struct{ words set }

func (n searchNode) eval(s scope) (value, error) {
	words, err := n.words.eval(s)
	id := ""
	if s.resource != nil {
		id = s.resource.GetMetadata().GetName()
	}
	return boolean(err == nil && search(s.name, id, s.labels, words.list)), err
}

func (n searchNode) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	_, err := n.words.check(about)
	return typeBool, err
}

// splitNode is a text cut into a list.
type splitNode struct{ args []node }

func (n splitNode) eval(s scope) (value, error) {
	parts, err := set(n).eval(s)
	if err != nil {
		return value{}, err
	}
	return value{typ: typeList, list: strings.Split(parts.list[0], parts.list[1])}, nil
}

func (n splitNode) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	return set(n).check(about)
}

// containsNode is whether a list has a text, or a text another.
type containsNode struct{ args []node }

func (n containsNode) eval(s scope) (value, error) {
	in, err := n.args[0].eval(s)
	if err != nil {
		return value{}, err
	}
	what, err := n.args[1].eval(s)
	if err == nil {
		err = expect(what.typ, typeString, "contains")
	}
	if err != nil || in.typ == typeString {
		return boolean(err == nil && strings.Contains(in.text, what.text)), err
	}
	return boolean(slices.Contains(in.list, what.text)), expect(in.typ, typeList, "contains")
}

func (n containsNode) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	in, err := n.args[0].check(about)
	if err != nil {
		return typeBool, err
	}
	what, err := n.args[1].check(about)
	if err == nil {
		err = expect(what, typeString, "contains")
	}
	if err == nil && in != typeString {
		err = expect(in, typeList, "contains")
	}
	return typeBool, err
}

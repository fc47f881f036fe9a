package types

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
	"google.golang.org/protobuf/reflect/protoreflect"

	typesv1 "teleport/api/types/v1"
)

// document turns the tree of one document into resources, guided by the
// descriptors of the messages.
type document struct {
	*yamlReader
	anchors map[string]ast.Node
	// places has the place of every field of the current resource, by path.
	places map[string]place
}

// resources reads the resource of a document, or the list of them.
func (d *document) resources(body ast.Node, tokens token.Tokens) []Resource {
	before := len(d.problems)
	if !d.survey(body, tokens) || len(d.problems) > before {
		return nil
	}
	body, ok := d.follow(body)
	if !ok {
		return nil
	}
	list := []ast.Node{body}
	if seq, ok := body.(*ast.SequenceNode); ok {
		list = seq.Values
	}
	var out []Resource
	for _, n := range list {
		if r := d.resource(n); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// survey looks at every node once: it collects anchors, refuses what is not
// supported, and makes sure that no part of the text is missing in the tree.
func (d *document) survey(body ast.Node, tokens token.Tokens) bool {
	seen := make(map[*token.Token]bool, len(tokens))
	if !d.surveyNode(body, 0, seen) {
		return false
	}
	for _, t := range tokens {
		if isScalar(t.Type) && !seen[t] {
			d.add(placeOf(t), "", "%q is at a place where it would be ignored: check the lines around it", short(t.Value))
			return false
		}
	}
	return true
}

func isScalar(t token.Type) bool {
	switch t {
	case token.SingleQuoteType, token.DoubleQuoteType, token.NullType, token.InfinityType, token.NanType, token.IntegerType,
		token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType, token.FloatType, token.StringType, token.BoolType:
		return true
	default:
		return false
	}
}

func (d *document) surveyNode(n ast.Node, depth int, seen map[*token.Token]bool) bool {
	if n == nil {
		return true
	}
	if depth > maxDepth {
		d.add(placeOf(n.GetToken()), "", "nested too deeply, the most is %d levels", maxDepth)
		return false
	}
	seen[n.GetToken()] = true
	switch v := n.(type) {
	case *ast.MappingNode:
		for _, kv := range v.Values {
			if !d.surveyNode(kv, depth, seen) {
				return false
			}
		}
	case *ast.MappingValueNode:
		return d.surveyNode(v.Key, depth+1, seen) && d.surveyNode(v.Value, depth+1, seen)
	case *ast.MappingKeyNode:
		return d.surveyNode(v.Value, depth+1, seen)
	case *ast.SequenceNode:
		for _, item := range v.Values {
			if !d.surveyNode(item, depth+1, seen) {
				return false
			}
		}
	case *ast.LiteralNode:
		return d.surveyNode(v.Value, depth, seen)
	case *ast.AnchorNode:
		name := v.Name.GetToken()
		seen[name] = true
		if _, twice := d.anchors[name.Value]; twice {
			d.add(placeOf(v.GetToken()), "", "anchor &%s is there twice", short(name.Value))
			return false
		}
		d.anchors[name.Value] = v.Value
		return d.surveyNode(v.Value, depth+1, seen)
	case *ast.AliasNode:
		seen[v.Value.GetToken()] = true
	case *ast.TagNode:
		d.add(placeOf(v.GetToken()), "", "tags are not supported: remove %s", short(v.GetToken().Value))
		return false
	}
	return true
}

// follow returns the node that an anchor names or an alias stands for, and
// counts, so that aliases cannot multiply.
func (d *document) follow(n ast.Node) (ast.Node, bool) {
	for range maxDepth {
		if d.nodes++; d.nodes > maxNodes {
			if d.nodes == maxNodes+1 {
				d.add(placeOf(n.GetToken()), "", "the file has too many parts, counting those that aliases repeat")
			}
			return nil, false
		}
		switch v := n.(type) {
		case *ast.AnchorNode:
			n = v.Value
		case *ast.AliasNode:
			target, ok := d.anchors[v.Value.GetToken().Value]
			if !ok {
				d.add(placeOf(v.GetToken()), "", "there is no anchor &%s", short(v.Value.GetToken().Value))
				return nil, false
			}
			n = target
		default:
			return n, n != nil
		}
	}
	d.add(placeOf(n.GetToken()), "", "the alias stands for itself")
	return nil, false
}

// entry is a key of a map with its value.
type entry struct {
	key   string
	at    place
	value ast.Node
}

// entries returns the keys and values of a map; problems are reported.
func (d *document) entries(n ast.Node, path string) ([]entry, bool) {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		d.add(start(n), path, "want fields (name: value), got %s", describe(n))
		return nil, false
	}
	seen := make(map[string]place, len(m.Values))
	out := make([]entry, 0, len(m.Values))
	for _, kv := range m.Values {
		at := placeOf(kv.Key.GetToken())
		key, ok := kv.Key.(*ast.StringNode)
		switch {
		case kv.Key.IsMergeKey():
			d.add(at, path, "merge keys (<<) are not supported: write the fields out")
			continue
		case !ok:
			d.add(at, path, "a key must be text, got %s: put it in quotes", describe(kv.Key))
			continue
		}
		if first, twice := seen[key.Value]; twice {
			d.add(at, join(path, key.Value), "is there twice, first in line %d", first.line)
			continue
		}
		seen[key.Value] = at
		out = append(out, entry{key: key.Value, at: at, value: kv.Value})
	}
	return out, true
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// resource reads one resource, or reports what is wrong with it.
func (d *document) resource(n ast.Node) Resource {
	n, ok := d.follow(n)
	if !ok {
		return nil
	}
	before := len(d.problems)
	fields, ok := d.entries(n, "")
	if !ok {
		return nil
	}
	kind, version := "", false
	at := start(n)
	for _, f := range fields {
		switch f.key {
		case "kind":
			at = f.at
			if v, ok := d.follow(f.value); ok {
				if s, ok := v.(*ast.StringNode); ok {
					kind = s.Value
				}
			}
		case "version":
			version = true
		}
	}
	k, ok := row(kind)
	if !ok || !k.Served {
		p := unknownKind(kind)
		d.add(at, p.Path, "%s", p.Text)
		return nil
	}
	d.places = map[string]place{"": start(n)}
	r := k.New()
	d.fields(fields, "", r.ProtoReflect(), 0)
	if !version {
		d.add(start(n), "version", "missing: write version: %s", k.Version())
	}
	d.check(r, d.problems[before:])
	if len(d.problems) > before {
		return nil
	}
	return r
}

// check reports what Check finds, but for fields that could not be read.
func (d *document) check(r Resource, unread []fileProblem) {
	var found Problems
	if !errors.As(Check(r), &found) {
		return
	}
	unread = append([]fileProblem(nil), unread...)
next:
	for _, p := range found {
		for _, u := range unread {
			if u.Path == "" || strings.HasPrefix(p.Path, u.Path) || strings.HasPrefix(u.Path, p.Path) {
				continue next
			}
		}
		d.add(d.placeOfPath(p.Path), p.Path, "%s", p.Text)
	}
}

// placeOfPath is the place of a field or, if it is not in the file, of the
// nearest field around it.
func (d *document) placeOfPath(path string) place {
	for {
		if at, ok := d.places[path]; ok {
			return at
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return d.places[""]
		}
		path = path[:cut]
	}
}

// message reads a map into a message.
func (d *document) message(n ast.Node, path string, m protoreflect.Message, depth int) {
	if depth > maxDepth {
		d.add(start(n), path, "nested too deeply, the most is %d levels", maxDepth)
		return
	}
	if fields, ok := d.entries(n, path); ok {
		d.fields(fields, path, m, depth)
	}
}

func (d *document) fields(fields []entry, path string, m protoreflect.Message, depth int) {
	known := m.Descriptor().Fields()
	for _, e := range fields {
		at := join(path, e.key)
		f := known.ByName(protoreflect.Name(e.key))
		if f == nil {
			d.add(e.at, at, "unknown field: use %s", fieldNames(known))
			continue
		}
		d.places[at] = e.at
		value, ok := d.follow(e.value)
		if !ok {
			continue
		}
		if _, null := value.(*ast.NullNode); null {
			continue // the same as leaving it out
		}
		switch {
		case f.IsMap():
			d.mapField(value, at, f, m.Mutable(f).Map(), depth+1)
		case f.IsList():
			d.listField(value, at, f, m.Mutable(f).List(), depth+1)
		case f.Message() != nil && f.Message().FullName() != timestampName:
			d.message(value, at, m.Mutable(f).Message(), depth+1)
		default:
			if v, ok := d.scalar(value, at, f); ok {
				m.Set(f, v)
			}
		}
	}
}

func fieldNames(fields protoreflect.FieldDescriptors) string {
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = string(fields.Get(i).Name())
	}
	return strings.Join(names, ", ")
}

func (d *document) listField(n ast.Node, path string, f protoreflect.FieldDescriptor, list protoreflect.List, depth int) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(start(n), path, "want a list, got %s: write it as [a, b] or as lines that start with a dash", describe(n))
		return
	}
	for i, item := range seq.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.places[at] = start(item)
		item, ok := d.follow(item)
		if !ok {
			return
		}
		if f.Message() != nil && f.Message().FullName() != timestampName {
			d.message(item, at, list.AppendMutable().Message(), depth)
			continue
		}
		v, ok := d.scalar(item, at, f)
		if !ok {
			v = list.NewElement() // so that the ones after it keep their numbers
		}
		list.Append(v)
	}
}

func (d *document) mapField(n ast.Node, path string, f protoreflect.FieldDescriptor, m protoreflect.Map, depth int) {
	entries, ok := d.entries(n, path)
	if !ok {
		return
	}
	for _, e := range entries {
		at := path + "[" + e.key + "]"
		d.places[at] = e.at
		value, ok := d.follow(e.value)
		if !ok {
			continue
		}
		key := protoreflect.ValueOfString(e.key).MapKey()
		switch msg := f.MapValue().Message(); {
		case msg == nil:
			if v, ok := d.scalar(value, at, f.MapValue()); ok {
				m.Set(key, v)
			}
		case msg.FullName() == stringsName:
			m.Set(key, messageValue(&typesv1.Strings{Values: d.strings(value, at)}))
		default:
			v := m.NewValue()
			d.message(value, at, v.Message(), depth)
			m.Set(key, v)
		}
	}
}

// strings reads one text or a list of texts.
func (d *document) strings(n ast.Node, path string) []string {
	if _, ok := n.(*ast.SequenceNode); !ok {
		if s, ok := d.text(n, path); ok {
			return []string{s}
		}
		return nil
	}
	out := &typesv1.Strings{}
	m := out.ProtoReflect()
	values := m.Descriptor().Fields().ByName("values")
	d.listField(n, path, values, m.Mutable(values).List(), 0)
	return out.GetValues()
}

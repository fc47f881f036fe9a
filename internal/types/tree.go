package types

import (
	"encoding/base64"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
)

// nodeKind is what a node of the written form is.
type nodeKind int

const (
	textNode  nodeKind = iota
	plainNode          // a number, true or false
	listNode
	mapNode
)

// node is a resource on its way to YAML or JSON.
type node struct {
	kind   nodeKind
	text   string
	keys   []string // of a map, one for each of the items
	items  []*node
	folded bool // a list that YAML writes as text when it has one value
}

// tree turns a message into its written form: fields that are set, in the order
// of the message, with the names of the docs.
func tree(m protoreflect.Message) *node {
	out := &node{kind: mapNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		out.keys = append(out.keys, string(f.Name()))
		out.items = append(out.items, fieldTree(f, m.Get(f)))
	}
	return out
}

func fieldTree(f protoreflect.FieldDescriptor, v protoreflect.Value) *node {
	switch {
	case f.IsMap():
		out := &node{kind: mapNode}
		values := make(map[string]protoreflect.Value, v.Map().Len())
		v.Map().Range(func(k protoreflect.MapKey, mv protoreflect.Value) bool {
			values[k.String()] = mv
			return true
		})
		for _, k := range sortedKeys(values) {
			item := valueTree(f.MapValue(), values[k])
			item.folded = item.kind == listNode && isSelector(f)
			out.keys = append(out.keys, k)
			out.items = append(out.items, item)
		}
		return out
	case f.IsList():
		out := &node{kind: listNode}
		for i := range v.List().Len() {
			out.items = append(out.items, valueTree(f, v.List().Get(i)))
		}
		return out
	}
	return valueTree(f, v)
}

// isSelector reports whether the field selects by labels, where people write one
// value without a list.
func isSelector(f protoreflect.FieldDescriptor) bool {
	const suffix = "_labels"
	name := string(f.Name())
	return len(name) > len(suffix) && name[len(name)-len(suffix):] == suffix
}

func valueTree(f protoreflect.FieldDescriptor, v protoreflect.Value) *node {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return messageTree(v.Message())
	case protoreflect.BytesKind:
		return &node{text: base64.StdEncoding.EncodeToString(v.Bytes())}
	case protoreflect.BoolKind:
		return &node{kind: plainNode, text: strconv.FormatBool(v.Bool())}
	case protoreflect.StringKind:
		return &node{text: v.String()}
	default:
		return &node{kind: plainNode, text: v.String()}
	}
}

func messageTree(m protoreflect.Message) *node {
	switch t := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return &node{text: t.AsTime().UTC().Format(time.RFC3339Nano)}
	case *typesv1.Strings:
		out := &node{kind: listNode}
		for _, s := range t.GetValues() {
			out.items = append(out.items, &node{text: s})
		}
		return out
	}
	return tree(m)
}

var (
	stringsName   = (*typesv1.Strings)(nil).ProtoReflect().Descriptor().FullName()
	timestampName = (*timestamppb.Timestamp)(nil).ProtoReflect().Descriptor().FullName()
)

func resourceTree(r Resource) *node {
	return tree(proto.Message(r).ProtoReflect())
}

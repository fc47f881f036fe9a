package audit

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
)

// Base are the fields that many events have, encoded once for all of them.
type Base struct {
	fields []encodedField // sorted by name
	size   int
}

// NewBase returns a base with the fields, as New makes them.
func NewBase(fields map[string]any) *Base {
	var e Encoded
	if err := e.of(New(Kind{}, fields)); err != nil {
		return &Base{} // New makes what can be encoded
	}
	b := &Base{fields: e.fields}
	for _, f := range b.fields {
		b.size += f.size()
	}
	return b
}

// Field is a field beside those of a base. Its texts are UTF-8 and have the size that they
// are to have: nothing is cut.
type Field struct {
	name  string
	kind  protowire.Number
	text  string
	texts []string
	value bool
}

// Text is a field that is text.
func Text(name, text string) Field { return Field{name: name, kind: numString, text: text} }

// Texts is a field that is a list of texts.
func Texts(name string, texts []string) Field { return Field{name: name, kind: numList, texts: texts} }

// Bool is a field that is true or false.
func Bool(name string, value bool) Field { return Field{name: name, kind: numBool, value: value} }

// Fields returns the fields of the base and more, which are sorted by name and stand in
// the place of those of the same name. They are encoded: they go to Auth as other fields
// do, but GetFields shows none of them; see Decode.
func (b *Base) Fields(more ...Field) *structpb.Struct {
	size := b.size
	for _, f := range more {
		size += f.most()
	}
	out := make([]byte, 0, size)
	base := b.fields
	for _, f := range more {
		for len(base) > 0 && string(base[0].name) < f.name {
			out = base[0].append(out)
			base = base[1:]
		}
		if len(base) > 0 && string(base[0].name) == f.name {
			base = base[1:]
		}
		out = f.append(out)
	}
	for _, f := range base {
		out = f.append(out)
	}
	s := &structpb.Struct{}
	s.ProtoReflect().SetUnknown(out)
	return s
}

// Decode returns an event as its receiver sees it.
func Decode(e *auditv1.Event) (*auditv1.Event, error) {
	raw, err := proto.Marshal(e)
	if err != nil {
		return nil, err
	}
	out := &auditv1.Event{}
	return out, proto.Unmarshal(raw, out)
}

// inner is the size of what is in the value.
func (f *Field) inner() int {
	switch f.kind {
	case numString:
		return len(f.text)
	case numList:
		n := 0
		for _, text := range f.texts {
			n += 1 + protowire.SizeBytes(1+protowire.SizeBytes(len(text)))
		}
		return n
	}
	return 0
}

// content is the size of the value.
func (f *Field) content(inner int) int {
	if f.kind == numBool {
		return 2
	}
	return 1 + protowire.SizeBytes(inner)
}

// most is more than the field takes.
func (f *Field) most() int { return len(f.name) + f.inner() + 6*protowire.SizeVarint(math.MaxUint32) }

func (f *Field) append(b []byte) []byte {
	inner := f.inner()
	content := f.content(inner)
	b = appendHead(b, numEntry, 1+protowire.SizeBytes(len(f.name))+1+protowire.SizeBytes(content))
	b = append(appendHead(b, numName, len(f.name)), f.name...)
	b = appendHead(b, numContent, content)
	switch f.kind {
	case numString:
		b = append(appendHead(b, numString, inner), f.text...)
	case numList:
		b = appendHead(b, numList, inner)
		for _, text := range f.texts {
			b = appendHead(b, numEntry, 1+protowire.SizeBytes(len(text)))
			b = append(appendHead(b, numString, len(text)), text...)
		}
	case numBool:
		b = protowire.AppendTag(b, numBool, protowire.VarintType)
		b = protowire.AppendVarint(b, protowire.EncodeBool(f.value))
	}
	return b
}

// Opaque is the size of what the fields of an event have encoded.
func Opaque(e *auditv1.Event) int { return len(e.GetFields().ProtoReflect().GetUnknown()) }

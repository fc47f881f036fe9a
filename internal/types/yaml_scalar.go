package types

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// start is where a node begins; a map begins at its first key.
func start(n ast.Node) place {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return placeOf(m.Values[0].Key.GetToken())
	}
	return placeOf(n.GetToken())
}

// short cuts text of the file for use in a message.
func short(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// describe says what a node is, in messages.
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "a group of fields"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	}
	text := strconv.Quote(short(n.GetToken().Value))
	switch n.(type) {
	case *ast.BoolNode:
		return "the truth value " + text
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + text
	case *ast.StringNode, *ast.LiteralNode:
		return "the text " + text
	}
	return text
}

// text reads a text. Numbers and truth values must be in quotes: YAML would
// otherwise change how they are written.
func (d *document) text(n ast.Node, path string) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		d.add(start(n), path, "want text, got %s: put it in quotes", describe(n))
	default:
		d.add(start(n), path, "want text, got %s", describe(n))
	}
	return "", false
}

// scalar reads a single value of the field's type.
func (d *document) scalar(n ast.Node, path string, f protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	var none protoreflect.Value
	switch f.Kind() {
	case protoreflect.StringKind:
		s, ok := d.text(n, path)
		return protoreflect.ValueOfString(s), ok
	case protoreflect.BoolKind:
		b, ok := d.truth(n, path)
		return protoreflect.ValueOfBool(b), ok
	case protoreflect.BytesKind:
		s, ok := d.text(n, path)
		if !ok {
			return none, false
		}
		b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(s))
		if err != nil {
			d.add(start(n), path, "want base64, got %s", describe(n))
			return none, false
		}
		return protoreflect.ValueOfBytes(b), true
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Int32Kind, protoreflect.Int64Kind:
		return d.number(n, path, f.Kind())
	case protoreflect.MessageKind: // a timestamp: other messages never get here
		s, ok := d.text(n, path)
		if !ok {
			return none, false
		}
		t, err := time.Parse(time.RFC3339Nano, s)
		ts := timestamppb.New(t)
		if err != nil || !ts.IsValid() {
			d.add(start(n), path, "want a time such as 2030-01-02T15:04:05Z, got %s", describe(n))
			return none, false
		}
		return messageValue(ts), true
	default:
		d.add(start(n), path, "cannot be written here")
		return none, false
	}
}

func (d *document) truth(n ast.Node, path string) (bool, bool) {
	switch v := n.(type) {
	case *ast.BoolNode:
		return v.Value, true
	case *ast.StringNode:
		switch strings.ToLower(v.Value) {
		case "yes", "on", "true":
			return true, true
		case "no", "off", "false":
			return false, true
		}
	}
	d.add(start(n), path, "want true or false, got %s", describe(n))
	return false, false
}

func (d *document) number(n ast.Node, path string, kind protoreflect.Kind) (protoreflect.Value, bool) {
	var none protoreflect.Value
	bits := 64
	if kind == protoreflect.Uint32Kind || kind == protoreflect.Int32Kind {
		bits = 32
	}
	text := ""
	switch v := n.(type) {
	case *ast.IntegerNode:
		text = v.GetToken().Value
	case *ast.StringNode:
		text = v.Value // JSON writes large numbers as text
	}
	if text == "" || (len(text) > 1 && strings.HasPrefix(text, "0")) {
		d.add(start(n), path, "want a whole number, got %s", describe(n))
		return none, false
	}
	if kind == protoreflect.Int32Kind || kind == protoreflect.Int64Kind {
		i, err := strconv.ParseInt(text, 10, bits)
		if err != nil {
			d.add(start(n), path, "want a whole number of %d bits, got %s", bits, describe(n))
			return none, false
		}
		if bits == 32 {
			return protoreflect.ValueOfInt32(int32(i)), true
		}
		return protoreflect.ValueOfInt64(i), true
	}
	u, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		d.add(start(n), path, "want a whole number from 0, of %d bits, got %s", bits, describe(n))
		return none, false
	}
	if bits == 32 {
		return protoreflect.ValueOfUint32(uint32(u)), true
	}
	return protoreflect.ValueOfUint64(u), true
}

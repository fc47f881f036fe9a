package mongodb

import (
	"bytes"
	"encoding/binary"
	"math"

	"teleport/internal/fault"
)

// Types of elements (https://bsonspec.org/spec.html).
const (
	typeDouble    = 0x01
	typeString    = 0x02
	typeDocument  = 0x03
	typeArray     = 0x04
	typeBinary    = 0x05
	typeUndefined = 0x06
	typeObjectID  = 0x07
	typeBool      = 0x08
	typeDate      = 0x09
	typeNull      = 0x0a
	typeRegex     = 0x0b
	typePointer   = 0x0c
	typeCode      = 0x0d
	typeSymbol    = 0x0e
	typeScope     = 0x0f
	typeInt32     = 0x10
	typeTimestamp = 0x11
	typeInt64     = 0x12
	typeDecimal   = 0x13
	typeMaxKey    = 0x7f
	typeMinKey    = 0xff
)

// element is one of a document. Its value is the part of the document that it is in.
type element struct {
	kind  byte
	key   string
	value []byte
}

var errDocument = fault.Invalid("a document that is not BSON")

// document checks the outside of one that p begins with, and returns it.
func document(p []byte) ([]byte, error) {
	if len(p) < 5 {
		return nil, errDocument
	}
	n := binary.LittleEndian.Uint32(p)
	if n < 5 || uint64(n) > uint64(len(p)) || p[n-1] != 0 {
		return nil, errDocument
	}
	return p[:n], nil
}

// elements calls f for each element of a document, until it returns false. What is in
// documents inside is not looked at.
func elements(doc []byte, f func(e element) bool) error {
	doc, err := document(doc)
	if err != nil {
		return err
	}
	for p := doc[4 : len(doc)-1]; len(p) > 0; {
		end := bytes.IndexByte(p[1:], 0)
		if end < 0 {
			return errDocument
		}
		e := element{kind: p[0], key: string(p[1 : 1+end])}
		p = p[2+end:]
		n, ok := size(e.kind, p)
		if !ok || n > len(p) {
			return errDocument
		}
		e.value, p = p[:n], p[n:]
		if !f(e) {
			return nil
		}
	}
	return nil
}

// size is how long the value is that p begins with.
func size(kind byte, p []byte) (int, bool) {
	switch kind {
	case typeUndefined, typeNull, typeMaxKey, typeMinKey:
		return 0, true
	case typeBool:
		return 1, len(p) > 0 && p[0] <= 1
	case typeInt32:
		return 4, true
	case typeDouble, typeDate, typeTimestamp, typeInt64:
		return 8, true
	case typeObjectID:
		return 12, true
	case typeDecimal:
		return 16, true
	case typeString, typeCode, typeSymbol:
		return text(p, 0)
	case typePointer:
		return text(p, 12)
	case typeDocument, typeArray:
		doc, err := document(p)
		return len(doc), err == nil
	case typeBinary:
		n, ok := length(p)
		return 5 + n, ok && len(p) >= 5+n
	case typeScope:
		n, ok := length(p)
		return n, ok && n >= 14
	case typeRegex:
		pattern := bytes.IndexByte(p, 0)
		if pattern < 0 {
			return 0, false
		}
		options := bytes.IndexByte(p[pattern+1:], 0)
		return pattern + options + 2, options >= 0
	}
	return 0, false
}

// length reads one that does not count what comes before it.
func length(p []byte) (int, bool) {
	if len(p) < 4 {
		return 0, false
	}
	n := binary.LittleEndian.Uint32(p)
	return int(n), n <= maxMessage
}

// text is the size of a string, with more bytes after it.
func text(p []byte, more int) (int, bool) {
	n, ok := length(p)
	if !ok || n < 1 || len(p) < 4+n || p[4+n-1] != 0 {
		return 0, false
	}
	return 4 + n + more, true
}

// str is the value as text, or "".
func (e element) str() string {
	if e.kind != typeString {
		return ""
	}
	return string(e.value[4 : len(e.value)-1])
}

// bin is the value as bytes, or nil.
func (e element) bin() []byte {
	if e.kind != typeBinary {
		return nil
	}
	return e.value[5:]
}

// number is the value as a whole number, or 0.
func (e element) number() int64 {
	switch e.kind {
	case typeInt32:
		return int64(int32(binary.LittleEndian.Uint32(e.value)))
	case typeInt64:
		return int64(binary.LittleEndian.Uint64(e.value))
	case typeDouble:
		if f := math.Float64frombits(binary.LittleEndian.Uint64(e.value)); f > -1<<53 && f < 1<<53 {
			return int64(f)
		}
	case typeBool:
		return int64(e.value[0])
	}
	return 0
}

// builder makes a document.
type builder struct{ p []byte }

func (b *builder) key(kind byte, key string) {
	if b.p == nil {
		b.p = make([]byte, 4, 256)
	}
	b.p = append(append(append(b.p, kind), key...), 0)
}

func (b *builder) str(key, v string) *builder {
	b.key(typeString, key)
	b.p = binary.LittleEndian.AppendUint32(b.p, uint32(len(v)+1))
	b.p = append(append(b.p, v...), 0)
	return b
}

func (b *builder) int(key string, v int32) *builder {
	b.key(typeInt32, key)
	b.p = binary.LittleEndian.AppendUint32(b.p, uint32(v))
	return b
}

func (b *builder) double(key string, v float64) *builder {
	b.key(typeDouble, key)
	b.p = binary.LittleEndian.AppendUint64(b.p, math.Float64bits(v))
	return b
}

func (b *builder) bool(key string, v bool) *builder {
	b.key(typeBool, key)
	if v {
		b.p = append(b.p, 1)
	} else {
		b.p = append(b.p, 0)
	}
	return b
}

func (b *builder) date(key string, ms int64) *builder {
	b.key(typeDate, key)
	b.p = binary.LittleEndian.AppendUint64(b.p, uint64(ms))
	return b
}

func (b *builder) bin(key string, v []byte) *builder {
	b.key(typeBinary, key)
	b.p = binary.LittleEndian.AppendUint32(b.p, uint32(len(v)))
	b.p = append(append(b.p, 0), v...)
	return b
}

// raw adds an element that another document has.
func (b *builder) raw(e element) *builder {
	b.key(e.kind, e.key)
	b.p = append(b.p, e.value...)
	return b
}

func (b *builder) array(key string, values ...string) *builder {
	var a builder
	for i, v := range values {
		a.str(string(rune('0'+i)), v)
	}
	return b.raw(element{typeArray, key, a.doc()})
}

// doc ends the document and returns it.
func (b *builder) doc() []byte {
	if b.p == nil {
		b.p = make([]byte, 4)
	}
	b.p = append(b.p, 0)
	binary.LittleEndian.PutUint32(b.p, uint32(len(b.p)))
	return b.p
}

package audit

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/fault"
)

// The numbers of the fields of an Event, of a Timestamp, of the entries of a Struct and of
// a Value.
const (
	numEvent, numCode, numTime, numUID, numIndex, numCluster, numFields = 1, 2, 3, 4, 5, 6, 7

	numSeconds, numNanos = 1, 2

	numEntry, numName, numContent = 1, 1, 2

	numNull, numNumber, numString, numBool, numStruct, numList = 1, 2, 3, 4, 5, 6
)

// Encoded is an encoded event, taken apart as far as its way from a service to the log
// needs: each of its fields stays as it came. An event of a dozen fields is fifty
// allocations when it is decoded, and they come by the thousand. An Encoded is for one
// event after another; it refers to the bytes that it was read from.
type Encoded struct {
	Kind    Kind
	UID     string
	Index   int64
	Cluster string

	seconds int64
	nanos   int32
	timed   bool
	fields  []encodedField // sorted by name, each once
}

// encodedField is a field of an event; the value is a structpb.Value.
type encodedField struct{ name, value []byte }

// Read takes an event that is stored.
func (e *Encoded) Read(raw []byte) error {
	if e.read(raw) {
		return nil
	}
	return e.rewrite(raw, false)
}

// Take takes an event that came from another process, as Clamp does.
func (e *Encoded) Take(raw []byte) error {
	if e.read(raw) && e.fits() {
		return nil
	}
	return e.rewrite(raw, true)
}

// rewrite takes an event that is not written as we write them, or has to be cut.
func (e *Encoded) rewrite(raw []byte, clamp bool) error {
	ev := &auditv1.Event{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, ev); err != nil {
		return fault.Invalid("an event that cannot be read: %w", err)
	}
	if clamp {
		Clamp(ev)
	}
	return e.of(ev)
}

func (e *Encoded) of(ev *auditv1.Event) error {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev)
	if err != nil || !e.read(raw) {
		return fault.Invalid("an event of type %q that cannot be written: %w", ev.GetEvent(), err)
	}
	return nil
}

// read reports whether the event is written as we write them: everything once and in
// order. The order of the fields does not matter.
func (e *Encoded) read(raw []byte) bool {
	kind, uid, cluster := e.Kind, e.UID, e.Cluster
	*e = Encoded{fields: e.fields[:0]}
	last := protowire.Number(0)
	for len(raw) > 0 {
		num, wire, n := protowire.ConsumeTag(raw)
		if n < 0 || num <= last {
			return false
		}
		last, raw = num, raw[n:]
		if num == numIndex && wire == protowire.VarintType {
			index, n := protowire.ConsumeVarint(raw)
			if n < 0 {
				return false
			}
			e.Index, raw = int64(index), raw[n:]
			continue
		}
		text, n := protowire.ConsumeBytes(raw)
		if n < 0 || wire != protowire.BytesType {
			return false
		}
		raw = raw[n:]
		var ok bool
		switch num {
		case numEvent:
			e.Kind.Type, ok = again(kind.Type, text)
		case numCode:
			e.Kind.Code, ok = again(kind.Code, text)
		case numUID:
			e.UID, ok = again(uid, text)
		case numCluster:
			e.Cluster, ok = again(cluster, text)
		case numTime:
			ok = e.readTime(text)
		case numFields:
			ok = e.readFields(text)
		}
		if !ok {
			return false
		}
	}
	return true
}

// again is a text, which most of the time is that of the event before.
func again(before string, text []byte) (string, bool) {
	if string(text) == before {
		return before, true
	}
	if !utf8.Valid(text) {
		return "", false // nor is it before the next one
	}
	return string(text), true
}

func (e *Encoded) readTime(raw []byte) bool {
	e.timed = true
	last := protowire.Number(0)
	for len(raw) > 0 {
		num, wire, n := protowire.ConsumeTag(raw)
		if n < 0 || num <= last || num > numNanos || wire != protowire.VarintType {
			return false
		}
		last, raw = num, raw[n:]
		v, n := protowire.ConsumeVarint(raw)
		if n < 0 {
			return false
		}
		raw = raw[n:]
		if num == numSeconds {
			e.seconds = int64(v)
		} else {
			e.nanos = int32(v)
		}
	}
	return true
}

func (e *Encoded) readFields(raw []byte) bool {
	sorted := true
	for len(raw) > 0 {
		var f encodedField
		var ok bool
		if f, raw, ok = nextField(raw); !ok {
			return false
		}
		sorted = sorted && (len(e.fields) == 0 || bytes.Compare(e.fields[len(e.fields)-1].name, f.name) < 0)
		e.fields = append(e.fields, f)
	}
	if sorted {
		return true
	}
	slices.SortFunc(e.fields, func(a, b encodedField) int { return bytes.Compare(a.name, b.name) })
	for i, f := range e.fields[1:] {
		if bytes.Equal(f.name, e.fields[i].name) {
			return false
		}
	}
	return true
}

// nextField takes the next entry of a map off its encoding.
func nextField(raw []byte) (f encodedField, rest []byte, ok bool) {
	entry, rest, ok := nextBytes(raw, numEntry)
	if !ok {
		return f, nil, false
	}
	if f.name, entry, ok = nextBytes(entry, numName); !ok {
		return f, nil, false
	}
	f.value, entry, ok = nextBytes(entry, numContent)
	return f, rest, ok && len(entry) == 0
}

// nextBytes takes a field of the number, with bytes, off an encoding.
func nextBytes(raw []byte, num protowire.Number) (value, rest []byte, ok bool) {
	if len(raw) == 0 || raw[0] != byte(num)<<3|byte(protowire.BytesType) {
		return nil, nil, false
	}
	value, n := protowire.ConsumeBytes(raw[1:])
	if n < 0 {
		return nil, nil, false
	}
	return value, raw[1+n:], true
}

// nextValue takes a value apart. Of a number, its bits are the number. A value of no
// kind is null.
func nextValue(raw []byte) (kind protowire.Number, number uint64, content []byte, ok bool) {
	if len(raw) == 0 {
		return numNull, 0, nil, true
	}
	kind, wire, n := protowire.ConsumeTag(raw)
	if n < 0 {
		return 0, 0, nil, false
	}
	raw = raw[n:]
	switch {
	case (kind == numNull || kind == numBool) && wire == protowire.VarintType:
		number, n = protowire.ConsumeVarint(raw)
	case kind == numNumber && wire == protowire.Fixed64Type:
		number, n = protowire.ConsumeFixed64(raw)
	case (kind == numString || kind == numStruct || kind == numList) && wire == protowire.BytesType:
		content, n = protowire.ConsumeBytes(raw)
	default:
		return 0, 0, nil, false
	}
	return kind, number, content, n == len(raw)
}

// fits is fits for the encoded fields: it also says no to what is not valid.
func (e *Encoded) fits() bool {
	room := maxFields
	if len(e.fields) > maxNames {
		return false
	}
	for _, f := range e.fields {
		if !f.fits(&room, 0) {
			return false
		}
	}
	return true
}

func (f encodedField) fits(room *int, depth int) bool {
	*room -= len(f.name)
	return len(f.name) <= minString && utf8.Valid(f.name) && encodedFits(f.value, room, depth)
}

func encodedFits(value []byte, room *int, depth int) bool {
	if *room -= perValue; *room < 0 {
		return false
	}
	kind, number, content, ok := nextValue(value)
	if !ok {
		return false
	}
	switch kind {
	case numString:
		*room -= len(content)
		return *room >= 0 && len(content) <= maxString && utf8.Valid(content)
	case numBool:
		return true
	case numNumber:
		f := math.Float64frombits(number)
		return !math.IsNaN(f) && !math.IsInf(f, 0)
	case numList:
		return depth < maxDepth && listFits(content, room, depth+1)
	case numStruct:
		return depth < maxDepth && structFits(content, room, depth+1)
	}
	return false
}

func listFits(raw []byte, room *int, depth int) bool {
	for n := 0; len(raw) > 0; n++ {
		var item []byte
		var ok bool
		if item, raw, ok = nextBytes(raw, numEntry); !ok || n == maxItems || !encodedFits(item, room, depth) {
			return false
		}
	}
	return true
}

func structFits(raw []byte, room *int, depth int) bool {
	for n := 0; len(raw) > 0; n++ {
		var f encodedField
		var ok bool
		if f, raw, ok = nextField(raw); !ok || n == maxNames || !f.fits(room, depth) {
			return false
		}
	}
	return true
}

// Time returns the time of the event, nil if it has none.
func (e *Encoded) Time() *timestamppb.Timestamp {
	if !e.timed {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: e.seconds, Nanos: e.nanos}
}

// SetTime sets the time of the event.
func (e *Encoded) SetTime(t time.Time) {
	e.seconds, e.nanos, e.timed = t.Unix(), int32(t.Nanosecond()), true
}

func (e *Encoded) find(name string) (int, bool) {
	return slices.BinarySearchFunc(e.fields, name, func(f encodedField, name string) int { return strings.Compare(string(f.name), name) })
}

// Text returns a field that is text, "" if it is something else, and whether there is
// such a field.
func (e *Encoded) Text(name string) ([]byte, bool) {
	i, ok := e.find(name)
	if !ok {
		return nil, false
	}
	kind, _, content, ok := nextValue(e.fields[i].value)
	if !ok || kind != numString {
		return nil, true
	}
	return content, true
}

// SetText sets a field to a text.
func (e *Encoded) SetText(name, text string) {
	i, ok := e.find(name)
	if !ok {
		e.fields = slices.Insert(e.fields, i, encodedField{name: []byte(name)})
	}
	e.fields[i].value = append(appendHead(nil, numString, len(text)), text...)
}

// Append appends the encoded event, as a deterministic encoder would have written it.
func (e *Encoded) Append(b []byte) []byte {
	size := 0
	for _, f := range e.fields {
		size += f.size()
	}
	b = slices.Grow(b, size+128+len(e.Kind.Type)+len(e.Kind.Code)+len(e.UID)+len(e.Cluster))
	b = appendText(b, numEvent, e.Kind.Type)
	b = appendText(b, numCode, e.Kind.Code)
	if e.timed {
		b = appendTime(b, e.seconds, e.nanos)
	}
	b = appendText(b, numUID, e.UID)
	b = appendVarint(b, numIndex, uint64(e.Index))
	b = appendText(b, numCluster, e.Cluster)
	if len(e.fields) > 0 {
		b = appendHead(b, numFields, size)
		for _, f := range e.fields {
			b = f.append(b)
		}
	}
	return b
}

func appendHead(b []byte, num protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.BytesType), uint64(size))
}

// appendText appends a field that is text, unless that is empty.
func appendText(b []byte, num protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return append(appendHead(b, num, len(text)), text...)
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendTime(b []byte, seconds int64, nanos int32) []byte {
	var buf [24]byte
	inner := appendVarint(appendVarint(buf[:0], numSeconds, uint64(seconds)), numNanos, uint64(nanos))
	return append(appendHead(b, numTime, len(inner)), inner...)
}

// inside is the size of the entry without its own head, size with it.
func (f encodedField) inside() int {
	return protowire.SizeTag(numName) + protowire.SizeBytes(len(f.name)) + protowire.SizeTag(numContent) + protowire.SizeBytes(len(f.value))
}

func (f encodedField) size() int {
	return protowire.SizeTag(numEntry) + protowire.SizeBytes(f.inside())
}

func (f encodedField) append(b []byte) []byte {
	b = appendHead(b, numEntry, f.inside())
	b = append(appendHead(b, numName, len(f.name)), f.name...)
	return append(appendHead(b, numContent, len(f.value)), f.value...)
}

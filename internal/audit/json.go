package audit

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/fault"
)

// maxLine bounds a line that ParseJSON reads.
const maxLine = 1 << 20

// envelope are the names that a field of an event cannot take in the JSON form.
var envelope = []string{"event", "code", "time", "uid", "ei", "cluster_name"}

// JSON returns the event as one line without the newline: first the envelope
// (event, code, time, uid, ei, cluster_name), then the fields by name. A field
// named like a part of the envelope becomes "fields.<name>".
func JSON(e *auditv1.Event) ([]byte, error) {
	var enc Encoded
	if err := enc.of(e); err != nil {
		return nil, err
	}
	return enc.AppendJSON(nil)
}

// AppendJSON appends what JSON returns.
func (e *Encoded) AppendJSON(b []byte) ([]byte, error) {
	at := e.Time()
	if at.CheckValid() != nil {
		return nil, fault.Invalid("event %q has no valid time", e.Kind.Type)
	}
	b = appendString(append(b, `{"event":`...), e.Kind.Type)
	b = appendString(append(b, `,"code":`...), e.Kind.Code)
	b = at.AsTime().AppendFormat(append(b, `,"time":"`...), timeForm)
	b = appendString(append(b, `","uid":`...), e.UID)
	b = strconv.AppendInt(append(b, `,"ei":`...), e.Index, 10)
	b = appendString(append(b, `,"cluster_name":`...), e.Cluster)
	for _, f := range e.fields {
		b = append(b, ',')
		if slices.Contains(envelope, string(f.name)) {
			b = appendString(b, e.otherName(string(f.name)))
		} else {
			b = appendString(b, f.name)
		}
		var err error
		if b, err = appendValue(append(b, ':'), f.value); err != nil {
			return nil, fault.Invalid("event %q of type %q: %w", e.UID, e.Kind.Type, err)
		}
	}
	return append(b, '}'), nil
}

// otherName is the name that a field gets whose own is one of the envelope.
func (e *Encoded) otherName(name string) string {
	for {
		name = "fields." + name
		if _, taken := e.find(name); !taken {
			return name
		}
	}
}

// appendValue appends an encoded value.
func appendValue(b, value []byte) ([]byte, error) {
	kind, number, content, ok := nextValue(value)
	switch {
	case !ok:
	case kind == numNull:
		return append(b, "null"...), nil
	case kind == numBool:
		return strconv.AppendBool(b, number != 0), nil
	case kind == numString:
		return appendString(b, content), nil
	case kind == numNumber:
		if f := math.Float64frombits(number); f == math.Trunc(f) && math.Abs(f) < 1e15 && number != negativeZero {
			return strconv.AppendInt(b, int64(f), 10), nil
		}
	case kind == numList:
		if list, ok := appendList(b, content); ok {
			return list, nil
		}
	}
	// What is rare is left to those who know it all.
	v := &structpb.Value{}
	if err := proto.Unmarshal(value, v); err != nil {
		return nil, err
	}
	return appendAny(b, v.AsInterface())
}

const negativeZero = 1 << 63

func appendList(b, raw []byte) ([]byte, bool) {
	b = append(b, '[')
	for first := true; len(raw) > 0; first = false {
		item, rest, ok := nextBytes(raw, numEntry)
		if !ok {
			return nil, false
		}
		if !first {
			b = append(b, ',')
		}
		var err error
		if b, err = appendValue(b, item); err != nil {
			return nil, false
		}
		raw = rest
	}
	return append(b, ']'), true
}

// appendString appends a text in quotes. Most texts stand in JSON as they are or nearly
// so, and the encoder takes ten times as long to find out.
func appendString[T string | []byte](b []byte, s T) []byte {
	begin := len(b)
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b, _ = appendAny(b[:begin], string(s)) // no error: it is text
			return b
		}
		from = i + 1
	}
	return append(append(b, s[from:]...), '"')
}

// appendAny appends what the encoder makes of v.
func appendAny(b []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	// Encode ends every value with a newline.
	return buf.Bytes()[:buf.Len()-1], nil
}

// ParseJSON reads a line that JSON wrote.
func ParseJSON(line []byte) (*auditv1.Event, error) {
	if len(line) > maxLine {
		return nil, fault.Invalid("event line of %d bytes is too long: at most %d", len(line), maxLine)
	}
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return nil, fault.Invalid("event line is not a JSON object: %w", err)
	}
	e := &auditv1.Event{}
	texts := map[string]*string{"event": &e.Event, "code": &e.Code, "uid": &e.Uid, "cluster_name": &e.ClusterName}
	for name, to := range texts {
		text, ok := fields[name].(string)
		if !ok {
			return nil, fault.Invalid("event line: %q is missing or no string", name)
		}
		*to = text
	}
	text, _ := fields["time"].(string)
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fault.Invalid("event line: time %q is not in RFC 3339", text)
	}
	e.Time = timestamppb.New(t)
	if e.Time.CheckValid() != nil {
		return nil, fault.Invalid("event line: time %q is out of range", text)
	}
	index, ok := fields["ei"].(float64)
	if !ok || index != float64(int64(index)) {
		return nil, fault.Invalid("event line: \"ei\" is missing or no whole number")
	}
	e.Ei = int64(index)
	for _, name := range envelope {
		delete(fields, name)
	}
	e.Fields, err = structpb.NewStruct(fields)
	if err != nil {
		return nil, fault.Invalid("event line: %w", err)
	}
	return e, nil
}

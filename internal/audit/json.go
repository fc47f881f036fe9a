package audit

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

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
	if e.GetTime().CheckValid() != nil {
		return nil, fault.Invalid("event %q has no valid time", e.GetEvent())
	}
	var w lineWriter
	w.add("event", e.GetEvent())
	w.add("code", e.GetCode())
	w.add("time", e.GetTime().AsTime().Format(timeForm))
	w.add("uid", e.GetUid())
	w.add("ei", e.GetEi())
	w.add("cluster_name", e.GetClusterName())
	names := make([]string, 0, len(e.GetFields().GetFields()))
	for name := range e.GetFields().GetFields() {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		key := name
		for slices.Contains(envelope, key) || (key != name && e.Fields.Fields[key] != nil) {
			key = "fields." + key
		}
		w.add(key, e.Fields.Fields[name].AsInterface())
	}
	if w.err != nil {
		return nil, fault.Invalid("event %q of type %q: %w", e.GetUid(), e.GetEvent(), w.err)
	}
	w.buf.WriteByte('}')
	return w.buf.Bytes(), nil
}

// lineWriter builds a JSON object in the order of its calls.
type lineWriter struct {
	buf bytes.Buffer
	err error
}

func (w *lineWriter) add(name string, value any) {
	separator := byte(',')
	if w.buf.Len() == 0 {
		separator = '{'
	}
	w.buf.WriteByte(separator)
	w.encode(name)
	w.buf.WriteByte(':')
	w.encode(value)
}

func (w *lineWriter) encode(v any) {
	if s, ok := v.(string); ok && plain(s) {
		w.buf.WriteByte('"')
		w.buf.WriteString(s)
		w.buf.WriteByte('"')
		return
	}
	enc := json.NewEncoder(&w.buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil && w.err == nil {
		w.err = err
		return
	}
	// Encode ends every value with a newline.
	w.buf.Truncate(w.buf.Len() - 1)
}

// plain reports whether a text stands in JSON as it is: most do, and the encoder takes ten
// times as long to find out.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
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

package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Limits of one event.
const (
	// maxString is the size from which a string is cut.
	maxString = 16 << 10
	// minString is what a string is cut to at most when the event is too big.
	minString = 128
	// markRoom is what the mark of a cut adds at most: a string that was cut once is
	// not cut again at the same limit.
	markRoom = 160
	// maxFields bounds the encoded fields of an event.
	maxFields = 64 << 10
	// maxNames bounds the entries of a map, maxItems those of a list.
	maxNames = 128
	maxItems = 1024
	maxDepth = 6
)

// timeForm is how times are written: RFC 3339 with milliseconds, in UTC.
const timeForm = "2006-01-02T15:04:05.000Z07:00"

// fitFields makes the fields with ever shorter strings until they fit.
func fitFields(build func(limit int) *structpb.Struct) *structpb.Struct {
	for limit := maxString; ; limit /= 2 {
		s := build(limit)
		if limit <= minString || proto.Size(s) <= maxFields {
			return bound(s)
		}
	}
}

// bound handles what shorter strings did not mend: so many items that even
// short ones exceed the limit. Each field that is too big becomes one string.
func bound(s *structpb.Struct) *structpb.Struct {
	if proto.Size(s) <= maxFields {
		return s
	}
	share := maxFields / (2 * max(1, len(s.GetFields())))
	for name, v := range s.GetFields() {
		if proto.Size(v) > share {
			text, err := v.MarshalJSON()
			if err != nil {
				text = []byte(err.Error())
			}
			s.Fields[name] = structpb.NewStringValue(cut(string(text), minString))
		}
	}
	return s
}

// cut shortens s to about limit bytes and says what is missing: its size and
// the SHA-256 of the whole, so that a copy found elsewhere can be recognised.
func cut(s string, limit int) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if len(s) <= limit+markRoom {
		return s
	}
	keep := limit
	for keep > 0 && !utf8.RuneStart(s[keep]) {
		keep--
	}
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%s...[truncated: %d of %d bytes, sha256 %s]", s[:keep], keep, len(s), hex.EncodeToString(sum[:]))
}

// cutMark says how many items a list or map had beyond those shown.
func cutMark(kept, total int) string {
	return fmt.Sprintf("...[truncated: %d of %d items]", kept, total)
}

func makeStruct(fields map[string]any, limit int) *structpb.Struct {
	return structOf(fields, func(v any) *structpb.Value { return makeValue(v, limit, 0) })
}

// structOf converts a map; of too many items the first by name are kept.
func structOf[V any](m map[string]V, convert func(V) *structpb.Value) *structpb.Struct {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, min(len(names), maxNames+1))}
	for i, name := range names {
		if i == maxNames && len(names) > maxNames+1 {
			out.Fields["truncated"] = structpb.NewStringValue(cutMark(maxNames, len(names)))
			break
		}
		out.Fields[cut(name, minString)] = convert(m[name])
	}
	return out
}

// listOf converts n items; of too many the first are kept.
func listOf(n int, convert func(i int) *structpb.Value) *structpb.Value {
	values := make([]*structpb.Value, 0, min(n, maxItems)+1)
	for i := range n {
		if i == maxItems && n > maxItems+1 {
			values = append(values, structpb.NewStringValue(cutMark(maxItems, n)))
			break
		}
		values = append(values, convert(i))
	}
	return structpb.NewListValue(&structpb.ListValue{Values: values})
}

func makeValue(v any, limit, depth int) *structpb.Value {
	if depth > maxDepth {
		return structpb.NewStringValue(cut(fmt.Sprint(v), limit))
	}
	switch v := v.(type) {
	case nil:
		return structpb.NewNullValue()
	case string:
		return structpb.NewStringValue(cut(v, limit))
	case time.Time:
		return structpb.NewStringValue(v.UTC().Format(timeForm))
	case error, fmt.Stringer:
		return structpb.NewStringValue(cut(fmt.Sprint(v), limit))
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Bool:
		return structpb.NewBoolValue(rv.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return structpb.NewNumberValue(float64(rv.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return structpb.NewNumberValue(float64(rv.Uint()))
	case reflect.Float32, reflect.Float64:
		return makeNumber(rv.Float())
	case reflect.String:
		return structpb.NewStringValue(cut(rv.String(), limit))
	case reflect.Slice, reflect.Array:
		return listOf(rv.Len(), func(i int) *structpb.Value { return makeValue(rv.Index(i).Interface(), limit, depth+1) })
	case reflect.Map:
		if rv.Type().Key().Kind() == reflect.String {
			m := make(map[string]reflect.Value, rv.Len())
			for _, key := range rv.MapKeys() {
				m[key.String()] = rv.MapIndex(key)
			}
			return structpb.NewStructValue(structOf(m, func(v reflect.Value) *structpb.Value {
				return makeValue(v.Interface(), limit, depth+1)
			}))
		}
	}
	return structpb.NewStringValue(cut(fmt.Sprint(v), limit))
}

// makeNumber writes what JSON has no number for as text.
func makeNumber(f float64) *structpb.Value {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return structpb.NewStringValue(fmt.Sprint(f))
	}
	return structpb.NewNumberValue(f)
}

// perValue is more than the encoding of a value takes besides its text.
const perValue = 24

// fits reports whether fields are well within the limits as they are, and takes what they
// need off room. It is for the many events of which nothing has to be cut: looking costs a
// small part of copying.
func fits(s *structpb.Struct, room *int, depth int) bool {
	if len(s.GetFields()) > maxNames {
		return false
	}
	for name, v := range s.GetFields() {
		if len(name) > minString || !utf8.ValidString(name) {
			return false
		}
		if *room -= len(name); !fitsValue(v, room, depth) {
			return false
		}
	}
	return true
}

func fitsValue(v *structpb.Value, room *int, depth int) bool {
	if *room -= perValue; *room < 0 {
		return false
	}
	switch kind := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		*room -= len(kind.StringValue)
		return *room >= 0 && len(kind.StringValue) <= maxString && utf8.ValidString(kind.StringValue)
	case *structpb.Value_BoolValue:
		return true
	case *structpb.Value_NumberValue:
		return !math.IsNaN(kind.NumberValue) && !math.IsInf(kind.NumberValue, 0)
	case *structpb.Value_ListValue:
		if depth >= maxDepth || len(kind.ListValue.GetValues()) > maxItems {
			return false
		}
		for _, item := range kind.ListValue.GetValues() {
			if !fitsValue(item, room, depth+1) {
				return false
			}
		}
		return true
	case *structpb.Value_StructValue:
		return depth < maxDepth && fits(kind.StructValue, room, depth+1)
	}
	return false
}

// clampStruct copies fields that are already values.
func clampStruct(s *structpb.Struct, limit, depth int) *structpb.Struct {
	return structOf(s.GetFields(), func(v *structpb.Value) *structpb.Value { return clampValue(v, limit, depth) })
}

func clampValue(v *structpb.Value, limit, depth int) *structpb.Value {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return structpb.NewStringValue(cut(kind.StringValue, limit))
	case *structpb.Value_ListValue, *structpb.Value_StructValue:
		if depth >= maxDepth {
			text, err := v.MarshalJSON()
			if err != nil {
				text = []byte(err.Error())
			}
			return structpb.NewStringValue(cut(string(text), limit))
		}
		if list := v.GetListValue(); list != nil {
			return listOf(len(list.GetValues()), func(i int) *structpb.Value { return clampValue(list.GetValues()[i], limit, depth+1) })
		}
		return structpb.NewStructValue(clampStruct(v.GetStructValue(), limit, depth+1))
	case *structpb.Value_NumberValue:
		return makeNumber(kind.NumberValue)
	case *structpb.Value_BoolValue:
		return v
	}
	return structpb.NewNullValue()
}

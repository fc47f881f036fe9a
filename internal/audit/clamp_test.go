package audit_test

import (
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
)

// TestClampLeavesWhatFits holds that looking first does not change what Clamp does: what
// fits stays as it is, and all else is cut as by New.
func TestClampLeavesWhatFits(t *testing.T) {
	long := strings.Repeat("x", 20<<10)
	deep := structpb.NewStringValue("bottom")
	for range 10 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	many := map[string]*structpb.Value{}
	for i := range 200 {
		many[strings.Repeat("n", 1+i%50)+string(rune('a'+i%26))+strings.Repeat("m", i/26)] = structpb.NewBoolValue(true)
	}
	text := structpb.NewStringValue
	for name, tt := range map[string]struct {
		fields map[string]*structpb.Value
		same   bool
	}{
		"plain":    {map[string]*structpb.Value{"a": text("b"), "n": structpb.NewNumberValue(1), "l": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{text("x")}})}, true},
		"none":     {map[string]*structpb.Value{}, true},
		"long":     {map[string]*structpb.Value{"a": text(long)}, false},
		"together": {map[string]*structpb.Value{"a": text(long[:15<<10]), "b": text(long[:15<<10]), "c": text(long[:15<<10]), "d": text(long[:15<<10]), "e": text(long[:15<<10])}, false},
		"deep":     {map[string]*structpb.Value{"a": deep}, false},
		"infinite": {map[string]*structpb.Value{"a": structpb.NewNumberValue(math.Inf(1))}, false},
		"no_value": {map[string]*structpb.Value{"a": {}}, false},
		"name":     {map[string]*structpb.Value{long: text("x")}, false},
	} {
		e := &auditv1.Event{Fields: &structpb.Struct{Fields: tt.fields}}
		before := proto.CloneOf(e)
		audit.Clamp(e)
		if same := proto.Equal(before, e); same != tt.same {
			t.Errorf("%s: unchanged = %t, want %t", name, same, tt.same)
		}
		again := proto.CloneOf(e)
		audit.Clamp(again)
		if !proto.Equal(e, again) {
			t.Errorf("%s: what was cut is cut again", name)
		}
	}
	e := &auditv1.Event{Fields: &structpb.Struct{Fields: many}}
	audit.Clamp(e)
	if len(e.GetFields().GetFields()) > 129 {
		t.Errorf("%d names are left", len(e.GetFields().GetFields()))
	}
}
